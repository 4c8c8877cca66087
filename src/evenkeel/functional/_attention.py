"""Attention's softmax, measured exactly without ever holding a queries × keys matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..errors import UsageError

_TILE = 2**19  # scores in a tile: 2 MiB of float32, so that every pass over it stays in cache
_HIDDEN = -1e30  # what a hidden key's score is lowered by: below every score, far from overflow
_SMALLEST = -87.0  # e^-87 is the last normal float32; beside the maximum's e^0 it is nothing, and subnormals are slow
_ROWS = 128  # query rows that share a read of the keys; fewer make their product slow


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
    query: Tensor, key: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> AttentionStatistics:
    """Entropy, maximum, participation and the like of softmax(scale·q kᵀ + mask), in one blockwise pass.

    query: (batch, heads, queries, head_dim). key: (batch, key_heads, keys, head_dim), heads a multiple of key_heads.
    causal: query i sees keys j ≤ i (aligned top-left, as in torch). mask: broadcastable to
    (batch, heads, queries, keys); bool (True = visible) or added to the scores, where −inf, the dtype's minimum, −1e9
    and exactly −10000 hide a key.
    Computed in float32 (float64 for float64 inputs), with scores shifted by their row's maximum: with z = s − max the
    pass gathers Σe^z, Σz·e^z, Σe^2z, Σz and Σz², in O(queries) memory. bf16 and fp16 are widened tile by tile.
    Raises UsageError for shapes that do not fit. Source: the online softmax of Milakov and Gimelshein 2018, with the
    sums of the entropy and of the second moments beside it.
    """
    batch, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if heads % key_heads or key.shape[0] != batch or key.shape[3] != head_dim:
        raise UsageError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; both must be (batch, heads, length, "
            "head_dim) of one batch and head_dim, with the query's heads a multiple of the key's"
        )
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    result = _empty(query, (batch, heads, queries))
    group = heads // key_heads
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        buffers = _Buffers(query.device, dtype)
        for batches, key_head, rows in _tiles(batch, key_heads, queries, group * keys, -(-_ROWS // group)):
            part = (batches, slice(key_head.start * group, key_head.stop * group), rows)
            seen = min(keys, rows.stop) if causal else keys
            left, right = query[part].to(dtype), key[batches, key_head, :seen].to(dtype)
            scores, other = buffers.take((*left.shape[:3], seen))
            _multiply(left, right, scale, scores)
            hidden, start = None, 0
            if mask is not None:
                tile = _tile_of(mask, part, seen)
                hidden = _hidden_by(tile)
                if tile.dtype != torch.bool:
                    scores += tile.masked_fill(hidden, 0)
            if causal:
                start = min(rows.start, seen) if mask is None else 0  # earlier keys are seen by every row
                future = _future(rows, slice(start, seen), query.device)
                hidden = future if hidden is None else hidden | future
            _write(result, part, _row_statistics(scores, other, hidden, start))
    return result


def score_statistics(scores: Tensor, *, visible: Tensor | None = None) -> AttentionStatistics:
    """The same statistics from scores that exist already, as eager attention makes them.

    scores: (batch, heads, queries, keys), scale and mask included. visible: broadcastable bool, True where a key may be
    seen; by default −inf, anything below half the dtype's minimum and anything below −0.99e9 is hidden.
    """
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    batch, heads, queries, keys = scores.shape
    result = _empty(scores, (batch, heads, queries))
    with torch.no_grad():
        buffers = _Buffers(scores.device, dtype)
        for part in _tiles(batch, heads, queries, keys, 1):
            own, other = buffers.take(scores[part].shape)
            own.copy_(scores[part])
            hidden = _below(scores[part]) if visible is None else ~_tile_of(visible, part, keys) | (own == -torch.inf)
            own.masked_fill_(hidden, 0)
            _write(result, part, _row_statistics(own, other, hidden))
    return result


def _multiply(query: Tensor, key: Tensor, scale: float, out: Tensor) -> None:
    """scale·q kᵀ into `out`; query heads that share a key head are stacked as its rows, so that no key is repeated."""
    stacked = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3).flatten(0, 1)
    product = out.view(stacked.shape[0], stacked.shape[1], key.shape[2])
    torch.baddbmm(product, stacked, key.flatten(0, 1).mT, beta=0, alpha=scale, out=product)


def _tile_of(mask: Tensor, part: tuple[slice, slice, slice], seen: int) -> Tensor:
    """A tile's part of a mask, with the dimensions of size 1 that the mask has before its keys."""
    mask = mask[(None,) * (4 - mask.dim())]
    places = (place if length > 1 else slice(None) for place, length in zip(part, mask.shape, strict=False))
    tile = mask[tuple(places)]
    return tile.expand(*tile.shape[:3], seen) if tile.shape[3] == 1 else tile[..., :seen]


def _hidden_by(mask: Tensor) -> Tensor:
    """Which keys a mask hides: False in a bool one; −inf, the dtype's minimum, −1e9, exactly −10000 in a float one."""
    if mask.dtype == torch.bool:
        return ~mask
    return _below(mask) | (mask == -10000.0)


def _below(values: Tensor) -> Tensor:
    return values <= max(torch.finfo(values.dtype).min / 2, -0.99e9)


def _row_statistics(scores: Tensor, other: Tensor, hidden: Tensor | None, start: int = 0) -> tuple[Tensor, ...]:
    """The row pass; `scores` and `other` (batch, heads, rows, keys) are overwritten; `hidden` is of keys from `start`.

    Hidden keys are pushed down to a weight of e^−87, which no sum notices, and their scores are multiplied away: an
    exponential of −inf costs three of a finite number, and a masked fill as much as the exponential.
    """
    keys = scores.shape[-1]
    shown = None if hidden is None else hidden.logical_not().to(scores.dtype)
    if shown is None:
        visible = torch.full(scores.shape[:-1], float(keys), dtype=torch.float64, device=scores.device)
    else:
        visible = (start + shown.sum(-1, dtype=torch.float64)).expand(scores.shape[:-1])
        scores[..., start:] += (1 - shown) * _HIDDEN
    some = visible > 0
    maximum = torch.where(some, scores.amax(-1), 0)
    scores -= maximum.unsqueeze(-1)
    first = scores[..., 0].exp().double()
    weights = torch.clamp(scores, min=_SMALLEST, out=other).exp_()
    if shown is not None:
        scores[..., start:] *= shown
    total = weights.sum(-1).double()
    squares = torch.linalg.vector_norm(weights, dim=-1).double().square()
    shift, deviation = scores.sum(-1).double(), torch.linalg.vector_norm(scores, dim=-1).double().square()
    weighted = weights.mul_(scores).sum(-1).double()
    safe_total, safe_squares = (torch.where(some, item, 1) for item in (total, squares))
    mean_shift = shift / visible.clamp(min=1)
    concentration = safe_squares / safe_total.square()
    values = (
        maximum.double(),
        maximum.double() + safe_total.log(),
        (safe_total.log() - weighted / safe_total).clamp(min=0),
        1 / concentration,
        1 - concentration,
        first / safe_total,
        maximum.double() + mean_shift,
        (deviation - visible * mean_shift.square()).clamp(min=0),
    )
    return (visible, *(torch.where(some, item, 0) for item in values))


class _Buffers:
    """Two tiles of memory, used again for every tile of a pass."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._like = {"device": device, "dtype": dtype}
        self._memory: tuple[Tensor, Tensor] | None = None

    def take(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        size = math.prod(shape)
        if self._memory is None or self._memory[0].numel() < size:
            self._memory = (torch.empty(size, **self._like), torch.empty(size, **self._like))
        first, second = self._memory
        return first[:size].view(shape), second[:size].view(shape)


def _tiles(batch: int, heads: int, queries: int, per_row: int, least: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of batch, heads and queries that cut the scores into tiles; whole batches where they fit.

    A row has `per_row` scores; a tile has at least `least` rows.
    """
    rows = max(1, min(queries, max(least, _TILE // max(1, per_row))))
    fitting = max(1, _TILE // max(1, rows * per_row))
    batches = max(1, fitting // heads)
    fitting = min(heads, fitting)
    for first in range(0, batch, batches):
        for head in range(0, heads, fitting):
            for row in range(0, queries, rows):
                yield (
                    slice(first, min(batch, first + batches)),
                    slice(head, min(heads, head + fitting)),
                    slice(row, min(queries, row + rows)),
                )


def _future(rows: slice, keys: slice, device: torch.device) -> Tensor:
    """True where a key of `keys` comes after the query."""
    return (
        torch.arange(keys.start, keys.stop, device=device) > torch.arange(rows.start, rows.stop, device=device)[:, None]
    )


def _empty(like: Tensor, shape: tuple[int, ...]) -> AttentionStatistics:
    names = fields(AttentionStatistics)
    return AttentionStatistics(*(torch.zeros(shape, dtype=torch.float64, device=like.device) for _ in names))


def _write(result: AttentionStatistics, part: tuple[slice, slice, slice], values: tuple[Tensor, ...]) -> None:
    for field, value in zip(fields(AttentionStatistics), values, strict=True):
        getattr(result, field.name)[part] = value
