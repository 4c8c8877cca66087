"""Row passes of the losses over logits, a whole row or a tile of it at a time.

Numerics: those of `softmax.py`. Of a row its maximum and the float64 log Σ e^((x − max)/T) are kept, apart, so that
logits of any size leave the latter exact; a probability comes from them as 2^(x·log2(e)/T − anchor) times a factor that
is computed once a row in float64.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ._compile import inline, narrow, widen
from ._spread import spread
from ._threads import divided_rows
from .softmax import anchor_of, log_total_of, maximum, power, scale_of, total_of

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LN_2 = 0.6931471805599453


@spread
def _gather(start, stop, logits, targets, maxima, log_totals, below, picked, first, temperature, smooth):
    for r in range(start, stop):
        row = logits[r]
        top = maximum(row)
        maxima[r] = top
        log_totals[r] = log_total_of(row, top, temperature)
        if smooth:
            below[r] = total_of(row, np.float64(top) if math.isfinite(top) else 0.0)
        place = targets[r] - first
        if 0 <= place < row.size:
            picked[r] = widen(row[place])


@inline
def _row_plan(top, log_total, weight, temperature, z_loss, scale):
    """(offset, anchor, floor) of a row, and what turns its powers into weight·(1 + 2·z_loss·logsumexp)·p/T."""
    offset, anchor, floor = anchor_of(_F(top), scale)
    unit = math.exp(np.float64(anchor) * _LN_2 + (np.float64(offset) - top) / temperature - log_total)
    logsumexp = top / temperature + log_total
    return offset, anchor, floor, _F(unit * (1 + 2 * z_loss * logsumexp) * weight / temperature)


@inline
def _slope(x, plan, scale, smooth):
    offset, anchor, floor, factor = plan
    return power(x, scale, offset, anchor, floor) * factor - smooth


@inline
def _write_slopes(row, out, plan, scale, smooth):
    for i in range(row.size):
        out[i] = narrow(_slope(widen(row[i]), plan, scale, smooth), out)


@spread
def _differentiate(start, stop, logits, targets, maxima, log_totals, weights, out, temperature, smoothing, z_loss):
    scale = scale_of(temperature)
    for r in range(start, stop):
        row, target, weight = logits[r], out[r], weights[r]
        if weight == 0 or maxima[r] == -np.inf:
            target[:] = narrow(_ZERO, out)
            continue
        plan = _row_plan(maxima[r], log_totals[r], weight, temperature, z_loss, scale)
        smooth = _F(weight * smoothing / row.size / temperature)
        _write_slopes(row, target, plan, scale, smooth)
        place = targets[r]
        slope = _slope(widen(row[place]), plan, scale, smooth) - _F(weight * (1 - smoothing) / temperature)
        target[place] = narrow(slope, out)


@inline
def _replace_by_slopes(row, plan, scale, smooth, inverse_cap):
    """In place; times 1 − (z/softcap)², the slope of the cap at what it returned, if there is a cap."""
    if inverse_cap == _ZERO:
        _write_slopes(row, row, plan, scale, smooth)
        return
    for i in range(row.size):
        capped = row[i] * inverse_cap
        row[i] = _slope(row[i], plan, scale, smooth) * (_ONE - capped * capped)


@spread
def _differentiate_tile(
    start,
    stop,
    tile,
    targets,
    maxima,
    log_totals,
    weights,
    first,
    vocabulary,
    temperature,
    smoothing,
    z_loss,
    inverse_cap,
):
    scale = scale_of(temperature)
    for r in range(start, stop):
        row, weight = tile[r], weights[r]
        if weight == 0 or maxima[r] == -np.inf:
            row[:] = _ZERO
            continue
        plan = _row_plan(maxima[r], log_totals[r], weight, temperature, z_loss, scale)
        place = targets[r] - first
        capped = row[place] * inverse_cap if inverse_cap != _ZERO and 0 <= place < row.size else _ZERO
        _replace_by_slopes(row, plan, scale, _F(weight * smoothing / vocabulary / temperature), inverse_cap)
        if 0 <= place < row.size:
            row[place] -= _F(weight * (1 - smoothing) / temperature) * (_ONE - capped * capped)


def gather(
    logits: Tensor,
    targets: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
    below: Tensor,
    picked: Tensor,
    *,
    first: int,
    temperature: float,
    smooth: bool,
) -> None:
    """Of columns [first, first + w): max, log Σe^((x − max)/T), Σ(x − max) where `smooth`, and x at a target there."""
    _gather(divided_rows(logits), logits, targets, maxima, log_totals, below, picked, first, temperature, smooth)


def differentiate(
    logits: Tensor,
    targets: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
    weights: Tensor,
    out: Tensor,
    *,
    temperature: float,
    smoothing: float,
    z_loss: float,
) -> None:
    """weight·((1 + 2·z_loss·logsumexp)·p − (1 − smoothing)·[target] − smoothing/V)/T of whole rows into `out`."""
    options = (temperature, smoothing, z_loss)
    _differentiate(divided_rows(logits), logits, targets, maxima, log_totals, weights, out, *options)


def differentiate_tile(
    tile: Tensor,
    targets: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
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
    options = (first, vocabulary, temperature, smoothing, z_loss, _F(inverse_cap))
    _differentiate_tile(divided_rows(tile), tile, targets, maxima, log_totals, weights, *options)
