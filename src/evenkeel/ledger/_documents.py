"""The five short documents whose statements the ledger tests, by name."""

from __future__ import annotations

from dataclasses import dataclass

from ._claim import Passage


@dataclass(frozen=True)
class SourceDocument:
    """A document by its own title.

    languages: those it is written in, the main one first. sentences: how many its running text has.
    """

    title: str
    languages: tuple[str, ...]
    sentences: int


DOCUMENTS = {
    "sigmoid-es": SourceDocument("Por qué se evita la sigmoide en los LLM", ("es",), 23),
    "sigmoid-en": SourceDocument("Why Sigmoid Is Avoided in LLMs", ("en",), 23),
    "attention-scaling": SourceDocument(
        "Estabilización de las Puntuaciones de Atención en los Transformadores", ("es",), 23
    ),
    "softmax": SourceDocument("Softmax", ("es", "en"), 20),
    "swiglu": SourceDocument("SwiGLU", ("pt", "en"), 20),
}


def sigmoid_sentences(*sentences: int) -> tuple[Passage, ...]:
    """Sentences of the document on the sigmoid, which says the same in Spanish and in English."""
    return tuple(Passage(document, number) for document in ("sigmoid-es", "sigmoid-en") for number in sentences)


def sentences_of(document: str, *sentences: int) -> tuple[Passage, ...]:
    """Sentences of one document."""
    return tuple(Passage(document, number) for number in sentences)
