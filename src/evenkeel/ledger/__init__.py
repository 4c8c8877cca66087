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
from ._markdown import draw_documents, draw_markdown
from ._plotting import draw_plots, glyphs_of
from ._running import CLAIMS, Ledger, claims
from ._sentences import Sentence
from ._splitting import fingerprint, split_sentences
from ._text import LANGUAGES, Language, Text
from ._walking import Walk, draw_walk, draw_walk_in_markdown, walk

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
    "Sentence",
    "SourceDocument",
    "Text",
    "Verdict",
    "Walk",
    "claims",
    "document_named",
    "draw_documents",
    "draw_markdown",
    "draw_pages",
    "draw_plots",
    "draw_table",
    "draw_walk",
    "draw_walk_in_markdown",
    "fingerprint",
    "glyphs_of",
    "split_sentences",
    "walk",
]
