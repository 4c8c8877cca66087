"""Exact functions of a transformer's nonlinear parts: torch tensors in and out."""

from ._attention_statistics import AttentionStatistics, attention_statistics, score_statistics

__all__ = ["AttentionStatistics", "attention_statistics", "score_statistics"]
