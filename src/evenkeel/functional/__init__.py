"""Exact functions of a transformer's nonlinear parts: torch tensors in and out."""

from ._attention import AttentionStatistics, attention_statistics, hidden_by, score_statistics
from ._statistics import PIECE, Moments, Sample

__all__ = [
    "PIECE",
    "AttentionStatistics",
    "Moments",
    "Sample",
    "attention_statistics",
    "hidden_by",
    "score_statistics",
]
