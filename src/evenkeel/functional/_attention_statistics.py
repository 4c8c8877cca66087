"""Attention's softmax, measured exactly without ever holding a queries × keys matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.attention import Tile
from ._attention_options import EVERYWHERE, Scale, check_softcap, checked, reach, scale_factor
from ._attention_tiles import (
    Memory,
    Place,
    Scores,
    folded,
    folded_mask,
    key_blocks,
    over,
    passes_for,
    places,
    stacked,
)
from ._dtypes import computing_dtype
from ._operators import operator

_TEN_THOUSAND = -10000.0  # what BERT's and GPT-2's first code hides by


@dataclass(frozen=True, slots=True)
class AttentionStatistics:
    """Statistics of softmax(scores) per row; every field has shape (batch, heads, queries) and is float64.

    A row in which nothing is visible has `visible` 0 and zeros everywhere else.
    """

    visible: Tensor
    """How many keys the query sees."""
    maximum: Tensor
    """The largest visible score."""
    logsumexp: Tensor
    """log Σ_j e^s_j."""
    entropy: Tensor
    """−Σ_j p_j log p_j, in nats."""
    participation: Tensor
    """1 / Σ_j p_j²: how many keys share the weight."""
    softmax_gain: Tensor
    """1 − Σ_j p_j²: the trace of the softmax's Jacobian diag(p) − p pᵀ."""
    sink_mass: Tensor
    """p_0, the weight of the first key."""
    score_mean: Tensor
    """The mean of the visible scores."""
    score_deviation: Tensor
    """Σ_j (s_j − score_mean)² over the visible scores."""


def attention_statistics(
    query: Tensor,
    key: Tensor,
    *,
    scale: Scale = "sqrt",
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> AttentionStatistics:
    """Entropy, maximum, participation and the like of attention's softmax(scale·q kᵀ + mask), in one blockwise pass.

    query: (batch, heads, queries, head_dim). key: (batch, key_heads, keys, head_dim), heads a multiple of key_heads.
    scale: "sqrt" = 1/√head_dim, "dim" = 1/head_dim, "none" = 1, or a number.
    causal: query i sees keys j ≤ i (aligned top-left, as in torch). mask: broadcastable to
    (batch, heads, queries, keys); bool (True = visible) or added to the scores, where −inf, the dtype's minimum, −1e9
    and exactly −10000 hide a key. softcap: c of c·tanh(s/c), before the mask. window: query i sees keys with
    |i − j| < window.
    Computed in float32 (float64 for float64 inputs) with float64 totals: with z = s − max the pass gathers Σe^z,
    Σz·e^z, Σe^2z, Σz and Σz², in O(queries) memory. Not differentiable.
    Raises UsageError for shapes and options that do not fit.
    Source: the online softmax of Milakov and Gimelshein 2018, with the sums of the entropy and of the second moments
    beside it.
    """
    mask = checked(query, key, mask)
    check_softcap(softcap)
    factor = scale_factor(scale, query.shape[-1])
    with torch.no_grad():
        rows = _from_query_and_key(query, key, mask, factor, softcap, *reach(causal, window))
    return AttentionStatistics(*rows.unbind())


def score_statistics(scores: Tensor, *, visible: Tensor | None = None) -> AttentionStatistics:
    """The same statistics from scores that exist already, as eager attention makes them.

    scores: (batch, heads, queries, keys), scale and mask included. visible: broadcastable bool, True where a key may be
    seen; by default −inf, anything below half the dtype's minimum and anything below −0.99e9 is hidden.
    """
    visible = visible if visible is None else visible[(None,) * (4 - visible.dim())]
    with torch.no_grad():
        return AttentionStatistics(*_from_scores(scores, visible).unbind())


def _hidden_below(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).min / 2, -0.99e9)


def _of_query_and_key(query: Tensor, key: Tensor, mask: Tensor | None, *rules: Any) -> Tensor:
    hiding = (-math.inf, math.nan)
    if mask is not None and mask.dtype.is_floating_point:
        hiding = (_hidden_below(mask.dtype), float(torch.tensor(_TEN_THOUSAND, dtype=mask.dtype)))
    scores = Scores.of(query, key, mask, *rules, *hiding)

    def tiles(place: Place, memory: Memory) -> Iterator[Tile]:
        rows = stacked(scores.query, place)
        return (scores.tile(place, rows, keys, memory) for keys in scores.keys_seen(place.queries))

    return _gathered(tiles, scores.query, key.shape[2])


def _of_scores(scores: Tensor, visible: Tensor | None) -> Tensor:
    grouped = scores.detach().unsqueeze(2)
    shown = None if visible is None else visible.expand(scores.shape).unsqueeze(2)
    like = grouped.new_empty(0, dtype=computing_dtype(scores))

    def tiles(place: Place, memory: Memory) -> Iterator[Tile]:
        for keys in key_blocks(0, scores.shape[3], scores.device):
            part = (place.batch, place.heads, slice(None), place.queries, keys)
            values = grouped[part]
            if shown is None:
                mask = (values <= _hidden_below(scores.dtype)).logical_not_()
            else:
                mask = (values != -torch.inf).logical_and_(shown[part])
            own = memory.take(*values.shape).copy_(values)
            yield Tile(own, mask, None, place.queries.start, keys.start, EVERYWHERE, EVERYWHERE)

    return _gathered(tiles, like.expand((*grouped.shape[:4], 0)), scores.shape[3])


def _gathered(tiles: Callable[[Place, Memory], Iterator[Tile]], like: Tensor, keys: int) -> Tensor:
    """The statistics of (batch, key_heads, group, queries, ...) rows from their tiles, (9, batch, heads, queries)."""
    batch, heads, group, queries = like.shape[:4]
    result = like.new_zeros((9, batch * heads * group, queries), dtype=torch.float64)
    passes = passes_for(like)

    def work(part: list[Place]) -> None:
        memory = Memory(like)
        for place in part:
            first, last = ((place.batch * heads + head) * group for head in (place.heads.start, place.heads.stop))
            for tile in tiles(place, memory):
                passes.gather_statistics(tile, result, first)
            passes.finish_statistics(result[:, first:last, place.queries])

    over(places(like.shape, keys, like.device), passes, work)
    return result.unflatten(1, (batch, heads * group))


def _rows_like(tensor: Tensor, *_: object) -> Tensor:
    return tensor.new_empty((9, *tensor.shape[:3]), dtype=torch.float64)


def _batched_query_and_key(
    info: Any, dims: tuple[int | None, ...], query: Tensor, key: Tensor, mask: Tensor | None, *rules: Any
) -> tuple[Tensor, int]:
    query, key = folded(query, dims[0], info.batch_size), folded(key, dims[1], info.batch_size)
    mask = folded_mask(mask, dims[2], info.batch_size, query.shape[0] // info.batch_size)
    return _from_query_and_key(query, key, mask, *rules).unflatten(1, (info.batch_size, -1)), 1


def _batched_scores(
    info: Any, dims: tuple[int | None, ...], scores: Tensor, visible: Tensor | None
) -> tuple[Tensor, int]:
    scores = folded(scores, dims[0], info.batch_size)
    visible = folded_mask(visible, dims[1], info.batch_size, scores.shape[0] // info.batch_size)
    return _from_scores(scores, visible).unflatten(1, (info.batch_size, -1)), 1


_from_query_and_key = operator(
    "attention_statistics(Tensor query, Tensor key, Tensor? mask, float scale, float? softcap, int before, int after)"
    " -> Tensor",
    cpu=_of_query_and_key,
    composite=_of_query_and_key,
    fake=_rows_like,
    vmap=_batched_query_and_key,
)
_from_scores = operator(
    "score_statistics(Tensor scores, Tensor? visible) -> Tensor",
    cpu=_of_scores,
    composite=_of_scores,
    fake=_rows_like,
    vmap=_batched_scores,
)
