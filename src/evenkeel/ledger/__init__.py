"""The ledger of claims: what the field repeats about nonlinear parts, each statement with a measured verdict."""

from ._claim import (
    LANGUAGES,
    VERDICTS,
    Bound,
    Citation,
    Claim,
    Language,
    MeasuredClaim,
    Measurement,
    Passage,
    Text,
    Verdict,
)
from ._documents import DOCUMENTS, SourceDocument
from ._drawing import draw_pages, draw_table
from ._markdown import draw_markdown
from ._running import CLAIMS, Ledger, claims

__all__ = [
    "CLAIMS",
    "DOCUMENTS",
    "LANGUAGES",
    "VERDICTS",
    "Bound",
    "Citation",
    "Claim",
    "Language",
    "Ledger",
    "MeasuredClaim",
    "Measurement",
    "Passage",
    "SourceDocument",
    "Text",
    "Verdict",
    "claims",
    "draw_markdown",
    "draw_pages",
    "draw_table",
]
