"""Exact functions of a transformer's nonlinear parts: torch tensors in and out."""

from ._attention import AttentionStatistics, attention_statistics, score_statistics

__all__ = ["AttentionStatistics", "attention_statistics", "score_statistics"]
