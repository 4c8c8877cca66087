"""Attention and its statistics by definition, in float64: slow, obvious, the oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: int | None = None,
    normalizer: str = "softmax",
) -> Tensor:
    """Query by query, over a list of the keys that it sees; float64, (batch, heads, queries, value_dim)."""
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, queries, _ = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)

    nothing = 0 * (query.sum() + key.sum() + value.sum())  # a zero that autograd knows

    def sees(b: int, h: int, i: int, j: int) -> bool:
        if (causal and j > i) or (window is not None and abs(i - j) >= window):
            return False
        return mask is None or bool(mask[b, h, i, j] if mask.dtype == torch.bool else mask[b, h, i, j] != -math.inf)

    def attended(b: int, h: int, i: int) -> Tensor:
        seen = [j for j in range(keys) if sees(b, h, i, j)]
        if not seen:
            return nothing.expand(value.shape[3])
        own = h // (heads // key_heads)
        scores = scale * (key[b, own, seen] @ query[b, h, i])
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None and mask.dtype != torch.bool:
            scores = scores + mask[b, h, i, seen].double()
        if normalizer == "sigmoid":
            weights = torch.sigmoid(scores - math.log(keys))
        elif sinks is None:
            weights = scores.softmax(0)
        else:
            weights = torch.cat([scores, sinks[h : h + 1].double()]).softmax(0)[:-1]
        return weights @ value[b, own, seen]

    rows = [attended(b, h, i) for b in range(batch) for h in range(heads) for i in range(queries)]
    shape = (batch, heads, queries, value.shape[3])
    return torch.stack(rows).view(shape) if rows else nothing.expand(shape)


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
        rises = (mine["maximum"] - mine["score_mean"])[one]
        found["max_logit_rise"] = rises.max() if rises.numel() else nothing
        found["score_mean"] = seen_scores.mean()
        found["score_std"] = seen_scores.std(correction=0) if seen_scores.numel() else nothing
        found["masked_rows"] = (mine["visible"] == 0).sum().double()
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in columns.items()}
