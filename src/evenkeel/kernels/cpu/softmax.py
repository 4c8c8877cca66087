"""The softmax family over contiguous rows: the maximum, then exponentials and their sums, then the results.

Numerics. A row is scaled by a power of two instead of shifted by its maximum, because x − max is rounded at the size of
x: x·log2(e)/T = k + f, with f exact to 2^-26 by two fused products; 2^f is a polynomial off by less than 3e-9; and
k − anchor goes into the exponent, where the anchor lies _HEADROOM below the maximum's k. Sums run in float32 over
_BLOCK elements and in float64 from there. A probability is off by less than 5e-7 of its value at any row length,
subnormals included; −inf and all that lies 2^-172 below the maximum is 0.
Only where |x|·log2(e)/T reaches 2^20 is the maximum subtracted, and there the difference is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ._compile import add_exponent, as_array, fma, inline, larger, magnitude, narrow, rounded_as, widen
from ._spread import spread
from ._threads import divided_rows

_F = np.float32
_ZERO, _ONE, _ROUND = _F(0), _F(1), _F(1.5 * 2**23)
_NOTHING, _ALL = _F(-np.inf), _F(np.inf)
_C1, _C2, _C3, _C4, _C5, _C6 = (  # (2^f − 1)/f for |f| <= 1/2
    _F(0.6931471824645996),
    _F(0.24022647738456726),
    _F(0.05550359934568405),
    _F(0.009618505835533142),
    _F(0.0013390806270763278),
    _F(0.0001532646274426952),
)
_LOG2_E, _LN_2 = 1.4426950408889634, 0.6931471805599453
_HEADROOM = _F(48)  # 2^48·V and its square are finite; below it lie 172 binades, more than float32 has
_DEPTH = _F(124)
_FAR = _F(2**20)
_BLOCK = 1024
_SUMS = {"reassoc", "nsz"}


@inline
def maximum(row):
    """The largest element, −inf of none, NaN of any NaN."""
    top = rounded_as(-np.inf, row)
    for i in range(row.size):
        top = larger(top, widen(row[i]))
    return top


@inline
def scale_of(temperature):
    """log2(e)/T in two float32 parts, and its inverse."""
    exact = _LOG2_E / temperature
    high = _F(exact)
    return high, _F(exact - np.float64(high)), _F(temperature * _LN_2)


@inline
def anchor_of(top, scale):
    """(offset, anchor, floor) of a row with a finite maximum: where x − offset is below floor, 2^-172 is left of it."""
    high, _, inverse = scale
    offset = top if magnitude(top * high) >= _FAR else _ZERO
    anchor = fma(top - offset, high, _ROUND) - _ROUND - _HEADROOM
    return offset, anchor, (anchor - _DEPTH) * inverse


@inline
def power(x, scale, offset, anchor, floor):
    """2^((x − offset)·scale − anchor)."""
    high, low, _ = scale
    rounding = _ROUND - anchor  # what is added to round, so that the anchor is subtracted with it
    z = x - offset
    z = floor if z < floor else z
    t = fma(z, high, rounding)
    f = fma(z, low, fma(z, high, -(t - rounding)))
    p = fma(f, _C6, _C5)
    p = fma(f, p, _C4)
    p = fma(f, p, _C3)
    p = fma(f, p, _C2)
    p = fma(f, p, _C1)
    return add_exponent(fma(f, p, _ONE), t)


@inline(flags=_SUMS)
def _block_sum(row, scale, offset, anchor, floor):
    total = _ZERO
    for i in range(row.size):
        total += power(widen(row[i]), scale, offset, anchor, floor)
    return total


@inline
def sum_of_powers(row, scale, offset, anchor, floor):
    """Σ of `power` over a row, in float64."""
    total = 0.0
    for start in range(0, row.size, _BLOCK):
        total += np.float64(_block_sum(row[start : start + _BLOCK], scale, offset, anchor, floor))
    return total


@inline
def log_total_of(row, top, temperature):
    """log Σ e^((x − max)/T) of a row whose maximum is known, in float64; 0 where that is not finite.

    Kept apart from max/T, beside which it would lose its digits.
    """
    if not math.isfinite(top):
        return 0.0
    scale = scale_of(temperature)
    offset, anchor, floor = anchor_of(top, scale)
    total = sum_of_powers(row, scale, offset, anchor, floor)
    return math.log(total) + (np.float64(anchor) * _LN_2 + (np.float64(offset) - np.float64(top)) / temperature)


@inline
def _share(row):
    """1 / how many elements are +inf."""
    count = 0
    for i in range(row.size):
        count += 1 if widen(row[i]) == _ALL else 0
    return 1 / count


@inline
def _write_constants(row, out, at_infinity, elsewhere):
    for i in range(row.size):
        out[i] = narrow(_F(at_infinity) if widen(row[i]) == _ALL else _F(elsewhere), out)


@inline(flags=_SUMS)
def _block_powers(row, out, scale, offset, anchor, floor):
    total = _ZERO
    for i in range(row.size):
        e = power(widen(row[i]), scale, offset, anchor, floor)
        out[i] = e
        total += e
    return total


@inline
def _write_multiples(row, out, first, second):
    for i in range(row.size):
        out[i] = narrow(fma(row[i], first, row[i] * second), out)


@inline
def _multiply(row, first, second):
    for i in range(row.size):
        row[i] = fma(row[i], first, row[i] * second)


@spread
def _softmax(start, stop, logits, out, powers, temperature, in_place):
    """powers: float32, (rows, V): `out` itself if in_place; else empty, and a row in cache is used again and again."""
    scale = scale_of(temperature)
    buffer = np.empty(0 if in_place else logits.shape[1], _F)
    for r in range(start, stop):
        row, target, power_row = logits[r], out[r], powers[r] if in_place else buffer
        top = maximum(row)
        if top == _ALL:
            _write_constants(row, target, _share(row), 0.0)
        elif top == _NOTHING:
            _write_constants(row, target, 0.0, 0.0)
        elif top != top:
            _write_constants(row, target, top, top)
        else:
            offset, anchor, floor = anchor_of(top, scale)
            total = 0.0
            for first in range(0, row.size, _BLOCK):
                last = first + _BLOCK
                total += np.float64(_block_powers(row[first:last], power_row[first:last], scale, offset, anchor, floor))
            first = _F(1 / total)  # in two parts, so that no error is common to a row
            second = _F(1 / total - np.float64(first))
            if in_place:
                _multiply(power_row, first, second)
            else:
                _write_multiples(power_row, target, first, second)


@inline
def _write_differences(row, out, temperature, top, log_total):
    inverse = 1 / temperature
    for i in range(row.size):
        out[i] = narrow(_F(fma(np.float64(widen(row[i])) - top, inverse, -log_total)), out)


@spread
def _log_softmax(start, stop, logits, out, temperature):
    for r in range(start, stop):
        row, target = logits[r], out[r]
        top = maximum(row)
        if top == _ALL:
            _write_constants(row, target, math.log(_share(row)), -np.inf)
        elif top == _NOTHING:
            _write_constants(row, target, 0.0, -np.inf)
        else:
            _write_differences(row, target, temperature, np.float64(top), log_total_of(row, top, temperature))


@spread
def _logsumexp(start, stop, logits, out, temperature):
    for r in range(start, stop):
        row = logits[r]
        top = maximum(row)
        out[r] = narrow(_F(np.float64(top) / temperature + log_total_of(row, top, temperature)), out)


@inline(flags=_SUMS)
def _block_moments(row, top, scale, offset, anchor, floor):
    total, weighted, squares = _ZERO, _ZERO, _ZERO
    for i in range(row.size):
        z = widen(row[i]) - offset
        z = floor if z < floor else z
        e = power(z, scale, _ZERO, anchor, floor)
        total += e
        weighted += e * (z - top)
        squares += e * e
    return total, weighted, squares


@spread
def _statistics(start, stop, logits, out, temperature):
    """Columns of out: log Σe^(x/T), entropy, participation."""
    scale = scale_of(temperature)
    for r in range(start, stop):
        row = logits[r]
        top = maximum(row)
        if top == _ALL:
            share = _share(row)
            out[r, 0], out[r, 1], out[r, 2] = np.inf, -math.log(share), 1 / share
        elif top == _NOTHING:
            out[r, 0], out[r, 1], out[r, 2] = -np.inf, 0.0, 0.0
        elif top != top:
            out[r, :] = top
        else:
            offset, anchor, floor = anchor_of(top, scale)
            peak = top - offset
            total, weighted, squares = 0.0, 0.0, 0.0
            for first in range(0, row.size, _BLOCK):
                block = row[first : first + _BLOCK]
                a, b, c = _block_moments(block, peak, scale, offset, anchor, floor)
                total, weighted, squares = total + np.float64(a), weighted + np.float64(b), squares + np.float64(c)
            above = math.log(total) + (np.float64(anchor) * _LN_2 - np.float64(peak) / temperature)
            out[r, 0] = above + np.float64(top) / temperature
            out[r, 1] = max(0.0, above - weighted / total / temperature)
            out[r, 2] = total * total / squares


@inline(flags=_SUMS)
def _block_product(first, second):
    total = _ZERO
    for i in range(first.size):
        total += widen(first[i]) * widen(second[i])
    return total


@inline
def _write_softmax_slopes(weights, slopes, out, mean, inverse):
    for i in range(weights.size):
        out[i] = narrow(widen(weights[i]) * (widen(slopes[i]) - mean) * inverse, out)


@spread
def _softmax_backward(start, stop, weights, slopes, out, temperature):
    for r in range(start, stop):
        mean = 0.0
        for first in range(0, weights.shape[1], _BLOCK):
            last = first + _BLOCK
            mean += np.float64(_block_product(weights[r, first:last], slopes[r, first:last]))
        _write_softmax_slopes(weights[r], slopes[r], out[r], _F(mean), _F(1 / temperature))


@inline(flags=_SUMS)
def total_of(row, shift):
    """Σ (x − shift) over a row, in float64."""
    total = 0.0
    for i in range(row.size):
        total += np.float64(widen(row[i])) - shift
    return total


@inline
def _write_log_softmax_slopes(logs, slopes, out, total, inverse, scale, floor):
    for i in range(logs.size):
        weight = power(widen(logs[i]), scale, _ZERO, -_HEADROOM, floor)
        out[i] = narrow((widen(slopes[i]) - weight * total) * inverse, out)


@spread
def _log_softmax_backward(start, stop, logs, slopes, out, temperature):
    scale = scale_of(1.0)
    floor = -(_HEADROOM + _DEPTH) * scale[2]
    for r in range(start, stop):
        scaled = _F(total_of(slopes[r], 0.0) * 2.0**-48)
        _write_log_softmax_slopes(logs[r], slopes[r], out[r], scaled, _F(1 / temperature), scale, floor)


def softmax(logits: Tensor, out: Tensor, temperature: float) -> None:
    """e^(x/T) / Σ e^(x/T)."""
    in_place, target = out.dtype == torch.float32, as_array(out)
    powers = target if in_place else np.empty((0, 0), np.float32)
    _softmax(divided_rows(logits), logits, target, powers, temperature, in_place)


def log_softmax(logits: Tensor, out: Tensor, temperature: float) -> None:
    """x/T − log Σ e^(x/T)."""
    _log_softmax(divided_rows(logits), logits, out, temperature)


def logsumexp(logits: Tensor, out: Tensor, temperature: float) -> None:
    """log Σ e^(x/T); out: (rows,)."""
    _logsumexp(divided_rows(logits), logits, out, temperature)


def statistics(logits: Tensor, out: Tensor, temperature: float) -> None:
    """Log-sum-exp, entropy and participation; out: (rows, 3), float32."""
    _statistics(divided_rows(logits), logits, out, temperature)


def softmax_backward(weights: Tensor, slopes: Tensor, out: Tensor, temperature: float) -> None:
    """p·(g − Σpg)/T."""
    _softmax_backward(divided_rows(weights), weights, slopes, out, temperature)


def log_softmax_backward(logs: Tensor, slopes: Tensor, out: Tensor, temperature: float) -> None:
    """(g − e^y·Σg)/T."""
    _log_softmax_backward(divided_rows(logs), logs, slopes, out, temperature)
