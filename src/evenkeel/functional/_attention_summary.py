"""Attention's statistics over all rows of a head, mergeable."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ._attention_statistics import AttentionStatistics


@dataclass(frozen=True, slots=True)
class AttentionSummary:
    """Sums and extremes per head, every field (heads,) in float64, over the rows that see at least one key."""

    rows: Tensor
    """How many rows see a key."""
    several: Tensor
    """How many see two or more."""
    masked: Tensor
    """How many see none."""
    entropy: Tensor
    participation: Tensor
    softmax_gain: Tensor
    sink_mass: Tensor
    relative_entropy: Tensor
    """Σ entropy / log(visible keys), over rows that see two or more."""
    least_relative_entropy: Tensor
    maximum: Tensor
    rise: Tensor
    """The most that a row's largest score lies above its mean one: what is left of a maximum that all share."""
    scores: Tensor
    """How many scores are visible."""
    score_mean: Tensor
    """NaN where no score is."""
    score_deviation: Tensor
    """Σ (s − score_mean)² over all visible scores."""

    @classmethod
    def of(cls, rows: AttentionStatistics, padded: Tensor | None = None) -> AttentionSummary:
        """Over batch and queries; padded: (batch, queries), bool, True for rows to leave out."""
        kept = torch.ones_like(rows.visible) if padded is None else (~padded)[:, None].expand_as(rows.visible).double()
        one, two = (kept * (rows.visible >= least) for least in (1, 2))
        scores = (one * rows.visible).sum((0, 2))
        mean = (one * rows.visible * rows.score_mean).sum((0, 2)) / scores
        relative = rows.entropy / rows.visible.clamp(min=2).log()

        def total(values: Tensor, where: Tensor = one) -> Tensor:
            return torch.where(where > 0, values, 0).sum((0, 2))

        return cls(
            one.sum((0, 2)),
            two.sum((0, 2)),
            (kept * (rows.visible == 0)).sum((0, 2)),
            total(rows.entropy),
            total(rows.participation),
            total(rows.softmax_gain),
            total(rows.sink_mass),
            total(relative, two),
            torch.where(two > 0, relative, torch.inf).amin((0, 2)),
            torch.where(one > 0, rows.maximum, -torch.inf).amax((0, 2)),
            torch.where(one > 0, rows.maximum - rows.score_mean, 0).amax((0, 2)),
            scores,
            mean,
            total(rows.score_deviation + rows.visible * (rows.score_mean - mean[:, None]).square()),
        )

    def merged(self, other: AttentionSummary) -> AttentionSummary:
        """The summary of the rows of both; associative up to rounding.

        Source: the pairwise update of Chan, Golub and LeVeque 1979.
        """
        found: dict[str, Any] = {
            field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)
        }
        found["least_relative_entropy"] = torch.minimum(self.least_relative_entropy, other.least_relative_entropy)
        for name in ("maximum", "rise"):
            found[name] = torch.maximum(getattr(self, name), getattr(other, name))
        first, second = (torch.where(item.scores > 0, item.score_mean, 0) for item in (self, other))
        share = other.scores / found["scores"]
        found["score_mean"] = first + (second - first) * share
        found["score_deviation"] += (second - first).square() * self.scores * share
        return AttentionSummary(**found)
