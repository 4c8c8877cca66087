"""The ledger of claims: what the field repeats about nonlinear parts, each statement with a measured verdict."""

from ._claim import (
    VERDICTS,
    Bound,
    Citation,
    Claim,
    MeasuredClaim,
    Measurement,
    Verdict,
)
from ._documents import DOCUMENTS, Passage, SourceDocument, document_named
from ._drawing import draw_pages, draw_table
from ._markdown import draw_markdown
from ._running import CLAIMS, Ledger, claims
from ._sentences import PLANNED, Sentence
from ._splitting import fingerprint, split_sentences
from ._text import LANGUAGES, Language, Text

__all__ = [
    "CLAIMS",
    "DOCUMENTS",
    "LANGUAGES",
    "PLANNED",
    "VERDICTS",
    "Bound",
    "Citation",
    "Claim",
    "Language",
    "Ledger",
    "MeasuredClaim",
    "Measurement",
    "Passage",
    "Sentence",
    "SourceDocument",
    "Text",
    "Verdict",
    "claims",
    "document_named",
    "draw_markdown",
    "draw_pages",
    "draw_table",
    "fingerprint",
    "split_sentences",
]
