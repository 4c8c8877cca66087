"""Attention tile by tile: products into reused memory, with a row pass between them, in O(length) memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import attention as torch_passes
from ..kernels import cpu
from ..kernels.attention import Tile
from ..kernels.cpu._threads import as_called_here, in_parallel
from ._dtypes import widened
from ._operators import with_batch

_QUERIES, _KEYS = 256, 2048  # of a tile: 2 MiB of float32; with fewer of either, products and calls cost more


class Place(NamedTuple):
    """Some key heads of one batch element, and some query positions."""

    batch: int
    heads: slice
    queries: slice


def places(shape: Sequence[int], keys: int, device: torch.device, whole: bool = False) -> list[Place]:
    """All places of (batch, key_heads, group, queries, ...), last queries first; whole: all queries in each."""
    batch, heads, group, queries = shape[:4]
    largest = group * min(queries, _rows(shape, device)) * min(keys, _KEYS * _factor(device))
    fitting = max(1, min(heads, _factor(device) ** 2 * _QUERIES * _KEYS // max(1, largest)))
    steps = [slice(0, queries)] if whole else row_blocks(shape, device)
    return [
        Place(element, slice(head, min(heads, head + fitting)), block)
        for element in range(batch)
        for head in range(0, heads, fitting)
        for block in steps
    ]


def row_blocks(shape: Sequence[int], device: torch.device) -> list[slice]:
    """Slices that cut queries into tiles, the last first: under a causal mask they see most keys."""
    return list(_blocks(0, shape[3], _rows(shape, device)))[::-1]


def _rows(shape: Sequence[int], device: torch.device) -> int:
    """How many queries a tile has: fewer of a short sequence, for what lies above the diagonal is computed in vain."""
    group, queries = shape[2:4]
    wanted = _factor(device) * max(_QUERIES // 2, min(_QUERIES, queries // 8))
    return -(-wanted // group)


def key_blocks(start: int, stop: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut keys into tiles."""
    return _blocks(start, stop, _KEYS * _factor(device))


def _blocks(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(at, min(stop, at + step)) for at in range(start, stop, step))


def _factor(device: torch.device) -> int:
    """How many times larger either side of a tile is: other devices have no such cache, and a call costs them more."""
    return 1 if device.type == "cpu" else 4


@dataclass(frozen=True, slots=True)
class Scores:
    """What scores are computed from; `query` (batch, key_heads, group, queries, head_dim), `key` as it came."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None
    before: int
    after: int
    lowest: float = -math.inf
    also: float = math.nan

    @classmethod
    def of(cls, query: Tensor, key: Tensor, mask: Tensor | None, *rest: Any) -> Scores:
        """From tensors as they came: widened to the dtype to compute in, heads grouped by the key head they share."""
        batch, heads, queries, _ = query.shape
        group = (key.shape[1], heads // max(1, key.shape[1]) or 1)
        if mask is not None:
            mask = mask.detach().expand(batch, heads, queries, key.shape[2]).unflatten(1, group)
        return cls(rows_of(query).unflatten(1, group), rows_of(key), mask, *rest)

    def places(self, whole: bool = False) -> list[Place]:
        return places(self.query.shape, self.key.shape[2], self.query.device, whole)

    def row_blocks(self) -> list[slice]:
        return row_blocks(self.query.shape, self.query.device)

    def keys_seen(self, queries: slice) -> Iterator[slice]:
        """Blocks of the keys that are in reach of some of these queries."""
        start, stop = max(0, queries.start - self.before), min(self.key.shape[2], queries.stop + self.after)
        return key_blocks(start, stop, self.key.device)

    def tile(self, place: Place, query: Tensor, keys: slice, memory: Memory) -> Tile:
        """The scores of a place's queries, as `stacked` gives them, with some keys."""
        heads, group, queries = query.shape[0], self.query.shape[2], place.queries
        scores = memory.take(heads, query.shape[1], keys.stop - keys.start)
        product(query, self.key[place.batch, place.heads, keys].mT, scores, self.scale)
        mask = None if self.mask is None else self.mask[place.batch, place.heads, :, queries, keys]
        return Tile(
            scores.view(heads, group, -1, scores.shape[2]),
            mask,
            self.softcap,
            queries.start,
            keys.start,
            self.before,
            self.after,
            self.lowest,
            self.also,
        )


def rows_of(tensor: Tensor) -> Tensor:
    """In the dtype to compute in, with each row in one piece, as products want it."""
    tensor = widened(tensor.detach())
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def stacked(grouped: Tensor, place: Place) -> Tensor:
    """A place's rows of (batch, key_heads, group, queries, dim), as (heads, group·queries, dim)."""
    return grouped[place.batch, place.heads, :, place.queries].flatten(1, 2)


def product(left: Tensor, right: Tensor, out: Tensor, scale: float = 1.0, beta: float = 0.0) -> None:
    """out = beta·out + scale·left·right, per head."""
    torch.baddbmm(out, left, right, beta=beta, alpha=scale, out=out)


class Memory:
    """Memory for a tile, used again for every tile of a thread."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def take(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if self._memory.numel() < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


def passes_for(*tensors: Tensor) -> Any:
    """The row passes for these tensors: in numba where that serves them, else in torch."""
    if cpu.serves(*tensors):
        from ..kernels.cpu import attention

        return attention
    return torch_passes


def over(all_places: list[Place], passes: Any, work: Callable[[list[Place]], object]) -> None:
    """work(part) for parts that cover all places; on several threads with the passes of numba."""

    part = as_called_here(lambda start, stop: work(all_places[start:stop]))
    if passes is torch_passes:
        part(0, len(all_places))
    else:
        in_parallel(part, len(all_places))


def folded(tensor: Tensor | None, dim: int | None, size: int) -> Any:
    """With the extra dimension of a vmap as part of the batch."""
    return None if tensor is None else with_batch(tensor, dim, size).flatten(0, 1)


def folded_mask(mask: Tensor | None, dim: int | None, size: int, batch: int, keep: bool = True) -> Tensor | None:
    """The same for a mask, whose batch may be 1; one mask for all stays one if it may."""
    if mask is None or (keep and dim is None and mask.shape[0] == 1):
        return mask
    return with_batch(mask, dim, size).expand(-1, batch, -1, -1, -1).flatten(0, 1)
