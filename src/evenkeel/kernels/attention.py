"""Attention's row passes in torch, for every device and dtype: what is done to a tile of scores between two products.

`kernels/cpu/attention.py` has the same functions in numba.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Scores of some queries with some keys, and all that decides which of them count.

    The query at position i sees the keys from i − before to i + after that the mask shows.
    """

    scores: Tensor
    """(heads, group, queries, keys): scale·q kᵀ, contiguous; overwritten. A key head serves `group` query heads."""
    mask: Tensor | None
    """bool (True = visible) or added to the scores, expanded to their shape."""
    softcap: float | None
    """c of c·tanh(s/c), which comes before the mask."""
    position: int
    """Where the first query stands."""
    first: int
    """Where the first key stands."""
    before: int
    after: int
    lowest: float = -math.inf
    """A float mask hides by values at or below this, and by `also` exactly."""
    also: float = math.nan


def gather_statistics(tile: Tile, result: Tensor, head: int) -> None:
    """Add a tile to the running sums of its rows, which begin at query head `head`.

    result: (9, heads, queries) float64, zeros at first. With z = s − max its rows hold how many keys were seen, max,
    Σe^z, Σz·e^z, Σe^2z, e^z of the first key, Σz, Σz² and nothing; `finish_statistics` makes statistics of them.
    """
    hidden = _show(tile)[0]
    heads, group, queries, _ = tile.scores.shape
    shape = (heads * group, queries, -1)
    scores = tile.scores.view(shape)
    shown = torch.ones((), dtype=torch.bool, device=scores.device) if hidden is None else ~hidden.view(shape)
    shown = shown.expand(scores.shape)
    rows = result[:, head : head + heads * group, tile.position : tile.position + queries]
    count, old = rows[0].clone(), rows[1].clone()
    visible = shown.sum(-1, dtype=torch.float64)
    maximum = torch.where(shown, scores, -torch.inf).amax(-1).double()
    maximum = torch.where(visible == 0, old, torch.where(count == 0, maximum, torch.maximum(old, maximum)))
    shift = torch.where(shown, scores - maximum.unsqueeze(-1).to(scores.dtype), 0)
    weights = torch.where(shown, shift.exp(), 0)
    _rescale(rows, torch.where(count == 0, 0, old - maximum))
    rows[0] += visible
    rows[1] = maximum
    for row, addend in ((2, weights), (3, weights * shift), (4, weights * weights), (6, shift), (7, shift * shift)):
        rows[row] += addend.sum(-1, dtype=torch.float64)
    if tile.first == 0:
        rows[5] = weights[..., 0]


def _rescale(rows: Tensor, lower: Tensor) -> None:
    """Running sums about a maximum that lies −lower higher."""
    count, factor = rows[0], lower.exp()
    rows[7] += lower * (2 * rows[6] + count * lower)
    rows[6] += count * lower
    rows[3] = factor * (rows[3] + lower * rows[2])
    rows[2] *= factor
    rows[4] *= factor.square()
    rows[5] *= factor


def finish_statistics(rows: Tensor) -> None:
    """Turn the running sums of rows into the statistics of AttentionStatistics; zeros where nothing was seen.

    rows: (9, heads, queries), part of the result.
    """
    count, maximum, total, weighted, squares, first, shift, deviation, _ = rows.clone()
    some = count > 0
    maximum = torch.where(total.isnan(), torch.nan, maximum)
    mean, log_total, concentration = shift / count, total.log(), squares / total.square()
    values = (
        count,
        maximum,
        maximum + log_total,
        (log_total - weighted / total).clamp(min=0),
        1 / concentration,
        1 - concentration,
        first / total,
        maximum + mean,
        (deviation - count * mean.square()).clamp(min=0),
    )
    for row, value in zip(rows, values, strict=True):
        row.copy_(torch.where(some, value, 0))


def weigh(tile: Tile, maximum: Tensor, total: Tensor, gathered: Tensor) -> None:
    """Scores become e^(s − maximum), after the maximum has risen to the tile's own.

    maximum, total: (heads, group·queries): the largest score so far (−inf at first) and Σe^(s − maximum).
    gathered: (heads, group·queries, value_dim): Σ e^(s − maximum)·value. Both sums are brought up to the new maximum,
    and the tile's is added to total.
    """
    hidden, _ = _show(tile)
    scores = tile.scores.view(*maximum.shape, -1)
    if hidden is not None:
        tile.scores.masked_fill_(hidden, -torch.inf)
    highest = torch.maximum(maximum, scores.amax(-1))
    finite = torch.where(highest == -torch.inf, 0, highest)
    factor = (maximum - finite).exp()
    maximum.copy_(highest)
    scores.sub_(finite.unsqueeze(-1)).exp_()
    total.mul_(factor).add_(scores.sum(-1))
    gathered.mul_(factor.unsqueeze(-1))


def squash(tile: Tile, offset: float) -> None:
    """Scores become σ(s + offset)."""
    hidden, _ = _show(tile)
    tile.scores.add_(offset).sigmoid_()
    if hidden is not None:
        tile.scores.masked_fill_(hidden, 0)


def differentiate(tile: Tile, slopes: Tensor, logsumexp: Tensor, mean_slope: Tensor) -> Tensor:
    """Scores become the weights p = e^(s − logsumexp); slopes, ∂/∂p, become ∂/∂(scale·q kᵀ).

    slopes: like the scores. logsumexp, mean_slope: (heads, group·queries), mean_slope = Σ_j p_j ∂/∂p_j.
    Returns ∂/∂mask.
    """
    hidden, bend = _show(tile)
    weights = tile.scores.view(*logsumexp.shape, -1)
    weights.sub_(logsumexp.unsqueeze(-1)).exp_()
    if hidden is not None:
        tile.scores.masked_fill_(hidden, 0)
    inner = (slopes.view(weights.shape) - mean_slope.unsqueeze(-1)).mul_(weights).view(slopes.shape)
    slopes.copy_(inner if bend is None else inner * bend)
    return inner


def differentiate_squashed(tile: Tile, slopes: Tensor, offset: float) -> Tensor:
    """The same for weights σ(s + offset)."""
    hidden, bend = _show(tile)
    weights = tile.scores.add_(offset).sigmoid_()
    if hidden is not None:
        weights.masked_fill_(hidden, 0)
    inner = slopes * (weights * (1 - weights))
    slopes.copy_(inner if bend is None else inner * bend)
    return inner


def _show(tile: Tile) -> tuple[Tensor | None, Tensor | None]:
    """Apply softcap and mask to the scores; return which of them are hidden, and the softcap's derivative."""
    scores, bend = tile.scores, None
    if tile.softcap is not None:
        capped = scores.div_(tile.softcap).tanh_()
        bend = 1 - capped.square()
        scores.mul_(tile.softcap)
    hidden = _out_of_reach(tile)
    if tile.mask is not None:
        if tile.mask.dtype == torch.bool:
            masked = ~tile.mask
        else:
            masked = (tile.mask <= tile.lowest) | (tile.mask == tile.also)
            scores.add_(tile.mask.masked_fill(masked, 0))
        hidden = masked if hidden is None else hidden | masked
    return None if hidden is None else hidden.expand(scores.shape), bend


def _out_of_reach(tile: Tile) -> Tensor | None:
    """Which keys come too early or too late for a query; None where none does."""
    queries, keys = tile.scores.shape[2:]
    device = tile.scores.device
    distance = (
        torch.arange(tile.first, tile.first + keys, device=device)
        - torch.arange(tile.position, tile.position + queries, device=device)[:, None]
    )
    late = tile.first + keys - 1 - tile.position > tile.after
    early = tile.position + queries - 1 - tile.first > tile.before
    if late and early:
        return (distance > tile.after) | (distance < -tile.before)
    return distance > tile.after if late else distance < -tile.before if early else None
