"""Attention's statistics by definition, in float64, from the full matrix of weights: slow, obvious, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_scores(query: Tensor, key: Tensor, *, scale: float, mask: Tensor | None = None) -> Tensor:
    """scale·q kᵀ + mask, (batch, heads, queries, keys), float64; a bool mask adds nothing."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = scale * (query.double() @ key.double().mT)
    return scores if mask is None or mask.dtype == torch.bool else scores + mask.double()


def row_statistics(scores: Tensor, visible: Tensor) -> dict[str, Tensor]:
    """Every statistic of softmax over the visible keys of each row, (batch, heads, queries), float64.

    scores: (batch, heads, queries, keys). visible: bool, broadcastable to it. A row that sees nothing is all zeros.
    """
    scores, visible = scores.double(), visible.expand(scores.shape)
    seen = visible.sum(-1)
    maximum = torch.where(visible, scores, -torch.inf).amax(-1)
    maximum = torch.where(seen > 0, maximum, 0)
    unnormalised = torch.where(visible, (scores - maximum[..., None]).exp(), 0)
    total = unnormalised.sum(-1)
    weights = unnormalised / torch.where(seen > 0, total, 1)[..., None]
    mean = torch.where(visible, scores, 0).sum(-1) / seen.clamp(min=1)
    squares = weights.square().sum(-1)
    statistics = {
        "maximum": maximum,
        "logsumexp": maximum + total.log(),
        "entropy": -torch.xlogy(weights, weights).sum(-1),
        "participation": 1 / squares,
        "softmax_gain": 1 - squares,
        "sink_mass": weights[..., 0],
        "score_mean": mean,
        "score_deviation": torch.where(visible, (scores - mean[..., None]).square(), 0).sum(-1),
    }
    return {"visible": seen.double(), **{name: torch.where(seen > 0, item, 0) for name, item in statistics.items()}}


def head_statistics(scores: Tensor, visible: Tensor, padded_queries: Tensor | None = None) -> dict[str, Tensor]:
    """What an attention instrument reads, per head: means and extremes over the rows that see a key and are no padding.

    padded_queries: (batch, queries), bool. A statistic of no rows at all is NaN.
    """
    rows = row_statistics(scores, visible)
    visible = visible.expand(scores.shape)
    batch, heads, queries, _ = scores.shape
    kept = torch.ones(batch, queries, dtype=torch.bool) if padded_queries is None else ~padded_queries
    columns: dict[str, list[Tensor]] = {}
    for head in range(heads):
        mine = {name: item[:, head][kept] for name, item in rows.items()}
        one, two = mine["visible"] >= 1, mine["visible"] >= 2
        relative = mine["entropy"][two] / mine["visible"][two].log()
        seen_scores = scores[:, head][kept][visible[:, head][kept]].double()
        nothing = torch.tensor(torch.nan, dtype=torch.float64)
        found = {name: mine[name][one].mean() for name in ("entropy", "participation", "softmax_gain", "sink_mass")}
        found["entropy_relative"] = relative.mean()
        found["entropy_relative_min"] = relative.min() if relative.numel() else nothing
        found["max_logit"] = seen_scores.max() if seen_scores.numel() else nothing
        found["score_mean"] = seen_scores.mean()
        found["score_std"] = seen_scores.std(correction=0) if seen_scores.numel() else nothing
        found["masked_rows"] = (mine["visible"] == 0).sum().double()
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in columns.items()}
