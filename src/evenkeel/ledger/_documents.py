"""The five short documents whose statements the ledger tests, by name and by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..catalogue import near_miss
from ..errors import UsageError
from ._sentences import SENTENCES, Sentence


@dataclass(frozen=True)
class Passage:
    """Where a document says it: the document's name in `DOCUMENTS`, and the number of the sentence, from 1.

    Sentences are counted over the running text; headings, lists of references and page furniture are not sentences.
    """

    document: str
    sentence: int

    def to_dict(self) -> dict[str, Any]:
        return {"document": self.document, "sentence": self.sentence}


@dataclass(frozen=True)
class SourceDocument:
    """A document by its own title.

    number: with which its file's name begins. languages: those it is written in, the main one first. sentences: those
    of its running text, in order.
    """

    number: str
    title: str
    languages: tuple[str, ...]
    sentences: tuple[Sentence, ...]

    @property
    def claims(self) -> tuple[str, ...]:
        """The ids of the claims that it makes, each once, as they come up."""
        return tuple(dict.fromkeys(name for sentence in self.sentences for name in sentence.claims))


_TITLES = {
    "sigmoid-es": ("Por qué se evita la sigmoide en los LLM", ("es",)),
    "sigmoid-en": ("Why Sigmoid Is Avoided in LLMs", ("en",)),
    "attention-scaling": ("Estabilización de las Puntuaciones de Atención en los Transformadores", ("es",)),
    "softmax": ("Softmax", ("es", "en")),
    "swiglu": ("SwiGLU", ("pt", "en")),
}

DOCUMENTS = {
    name: SourceDocument(f"{number:03}", title, languages, SENTENCES[name])
    for number, (name, (title, languages)) in enumerate(_TITLES.items())
}


def document_named(name: str) -> str:
    """The name of a document, from its name or its number; raises UsageError if there is none."""
    by_number = {document.number: known for known, document in DOCUMENTS.items()}
    found = by_number.get(name, name)
    if found not in DOCUMENTS:
        known = ", ".join(f"{number} {title}" for number, title in by_number.items())
        hint = near_miss(name, [*by_number, *DOCUMENTS], "give one of these")
        raise UsageError(f"no document is called {name!r}; {hint} ({known})")
    return found


def passages_of(claim: str) -> tuple[Passage, ...]:
    """Every sentence that makes a claim, given by its id."""
    return tuple(
        Passage(name, number)
        for name, document in DOCUMENTS.items()
        for number, sentence in enumerate(document.sentences, 1)
        if claim in sentence.claims
    )
