"""The five short documents whose statements the ledger tests, by name."""

from __future__ import annotations

from dataclasses import dataclass

from ._claim import Passage


@dataclass(frozen=True)
class SourceDocument:
    """A document by its own title; `languages` are those it is written in, the main one first."""

    title: str
    languages: tuple[str, ...]


DOCUMENTS = {
    "sigmoid-es": SourceDocument("Por qué se evita la sigmoide en los LLM", ("es",)),
    "sigmoid-en": SourceDocument("Why Sigmoid Is Avoided in LLMs", ("en",)),
    "attention-scaling": SourceDocument(
        "Estabilización de las Puntuaciones de Atención en los Transformadores", ("es",)
    ),
    "softmax": SourceDocument("Softmax", ("es", "en")),
    "swiglu": SourceDocument("SwiGLU", ("pt", "en")),
}


def sigmoid_sentences(*sentences: int) -> tuple[Passage, ...]:
    """Sentences of the document on the sigmoid, which says the same in Spanish and in English."""
    return tuple(Passage(document, number) for document in ("sigmoid-es", "sigmoid-en") for number in sentences)


def sentences_of(document: str, *sentences: int) -> tuple[Passage, ...]:
    """Sentences of one document."""
    return tuple(Passage(document, number) for number in sentences)
