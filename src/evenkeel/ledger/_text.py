"""The ledger's words, each in three languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Language = Literal["en", "es", "pt"]

LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(frozen=True, kw_only=True)
class Text:
    """The same words in English, Spanish and Portuguese."""

    en: str
    es: str
    pt: str

    def to_dict(self) -> dict[str, Any]:
        return {"en": self.en, "es": self.es, "pt": self.pt}


def in_language(text: Text, language: Language) -> str:
    """The words of a text in one language."""
    return getattr(text, language)
