"""Row passes of the losses over logits, a whole row or a tile of it at a time.

Numerics: those of `softmax.py`. Log-sum-exps and what is summed over tiles are float64; a probability comes from its
row's log-sum-exp as 2^(x·log2(e)/T − anchor) times a factor that is computed once a row in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ._compile import as_array, inline, kernel, narrow, widen
from ._threads import in_parallel
from .softmax import anchor_of, logsumexp_of, maximum, power, scale_of

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LN_2 = 0.6931471805599453
_BLOCK = 1024
_PART = 2**15  # elements worth a thread


@inline(flags={"reassoc", "nsz"})
def _block_total(row):
    total = _ZERO
    for i in range(row.size):
        total += widen(row[i])
    return total


@kernel
def _gather(logits, targets, logsumexps, totals, picked, first, temperature, smooth):
    for r in range(logits.shape[0]):
        row = logits[r]
        logsumexps[r] = logsumexp_of(row, maximum(row), temperature)
        if smooth:
            for start in range(0, row.size, _BLOCK):
                totals[r] += np.float64(_block_total(row[start : start + _BLOCK]))
        place = targets[r] - first
        if 0 <= place < row.size:
            picked[r] = widen(row[place])


@inline
def _row_plan(logsumexp, weight, temperature, z_loss, scale):
    """(offset, anchor, floor) of a row, and what turns its powers into weight·(1 + 2·z_loss·logsumexp)·p/T."""
    offset, anchor, floor = anchor_of(_F(logsumexp * temperature), scale)
    unit = math.exp(np.float64(anchor) * _LN_2 + np.float64(offset) / temperature - logsumexp)
    return offset, anchor, floor, _F(unit * (1 + 2 * z_loss * logsumexp) * weight / temperature)


@inline
def _slope(x, plan, scale, smooth):
    offset, anchor, floor, factor = plan
    return power(x, scale, offset, anchor, floor) * factor - smooth


@inline
def _write_slopes(row, out, plan, scale, smooth):
    for i in range(row.size):
        out[i] = narrow(_slope(widen(row[i]), plan, scale, smooth), out)


@kernel
def _differentiate(logits, targets, logsumexps, weights, out, temperature, smoothing, z_loss):
    scale = scale_of(temperature)
    for r in range(logits.shape[0]):
        row, target, weight = logits[r], out[r], weights[r]
        if weight == 0 or logsumexps[r] == -np.inf:
            target[:] = narrow(_ZERO, out)
            continue
        plan = _row_plan(logsumexps[r], weight, temperature, z_loss, scale)
        smooth = _F(weight * smoothing / row.size / temperature)
        _write_slopes(row, target, plan, scale, smooth)
        place = targets[r]
        slope = _slope(widen(row[place]), plan, scale, smooth) - _F(weight * (1 - smoothing) / temperature)
        target[place] = narrow(slope, out)


@inline
def _replace_by_slopes(row, plan, scale, smooth, inverse_cap):
    """In place; times 1 − (z/softcap)², the slope of the cap at what it returned."""
    for i in range(row.size):
        capped = row[i] * inverse_cap
        row[i] = _slope(row[i], plan, scale, smooth) * (_ONE - capped * capped)


@kernel
def _differentiate_tile(
    tile, targets, logsumexps, weights, first, vocabulary, temperature, smoothing, z_loss, inverse_cap
):
    scale = scale_of(temperature)
    for r in range(tile.shape[0]):
        row, weight = tile[r], weights[r]
        if weight == 0:
            row[:] = _ZERO
            continue
        plan = _row_plan(logsumexps[r], weight, temperature, z_loss, scale)
        place = targets[r] - first
        capped = row[place] * inverse_cap if 0 <= place < row.size else _ZERO
        _replace_by_slopes(row, plan, scale, _F(weight * smoothing / vocabulary / temperature), inverse_cap)
        if 0 <= place < row.size:
            row[place] -= _F(weight * (1 - smoothing) / temperature) * (_ONE - capped * capped)


def over_rows(rows: Any, tensors: tuple[Tensor, ...], *rest: object) -> None:
    """Call a kernel on tensors whose first dimension is rows, the first of them (rows, V), a share on each thread."""
    arrays = tuple(as_array(tensor) for tensor in tensors)

    def part(start: int, stop: int) -> None:
        rows(*(array[start:stop] for array in arrays), *rest)

    in_parallel(part, arrays[0].shape[0], max(1, _PART // max(1, arrays[0].shape[1])))


def gather(
    logits: Tensor,
    targets: Tensor,
    logsumexps: Tensor,
    totals: Tensor,
    picked: Tensor,
    *,
    first: int,
    temperature: float,
    smooth: bool,
) -> None:
    """Of columns [first, first + w): log Σe^(x/T), Σx (added, where `smooth`), and x at the target if it is there."""
    over_rows(_gather, (logits, targets, logsumexps, totals, picked), first, temperature, smooth)


def differentiate(
    logits: Tensor,
    targets: Tensor,
    logsumexps: Tensor,
    weights: Tensor,
    out: Tensor,
    *,
    temperature: float,
    smoothing: float,
    z_loss: float,
) -> None:
    """weight·((1 + 2·z_loss·logsumexp)·p − (1 − smoothing)·[target] − smoothing/V)/T of whole rows into `out`."""
    over_rows(_differentiate, (logits, targets, logsumexps, weights, out), temperature, smoothing, z_loss)


def differentiate_tile(
    tile: Tensor,
    targets: Tensor,
    logsumexps: Tensor,
    weights: Tensor,
    *,
    first: int,
    vocabulary: int,
    temperature: float,
    smoothing: float,
    z_loss: float,
    inverse_cap: float,
) -> None:
    """The same in place, of columns [first, first + w) of `vocabulary`, whose float32 scores went through a softcap."""
    rest = (first, vocabulary, temperature, smoothing, z_loss, _F(inverse_cap))
    over_rows(_differentiate_tile, (tile, targets, logsumexps, weights), *rest)
