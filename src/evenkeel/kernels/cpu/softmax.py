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
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._compile import add_exponent, as_array, fma, inline, kernel, larger, magnitude, narrow, widen
from ._threads import in_parallel

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
_PART = 2**15  # elements worth a thread
_SUMS = {"reassoc", "nsz"}


@inline
def maximum(row):
    """The largest element, −inf of none, NaN of any NaN."""
    top = _NOTHING
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
    z = x - offset
    z = floor if z < floor else z
    t = fma(z, high, _ROUND)
    f = fma(z, low, fma(z, high, -(t - _ROUND)))
    p = fma(f, _C6, _C5)
    p = fma(f, p, _C4)
    p = fma(f, p, _C3)
    p = fma(f, p, _C2)
    p = fma(f, p, _C1)
    return add_exponent(fma(f, p, _ONE), t - anchor)


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
def logsumexp_of(row, top, temperature):
    """log Σ e^(x/T) of a row whose maximum is known, in float64; −inf for an empty sum."""
    if top == _NOTHING or not math.isfinite(top):
        return np.float64(top)
    scale = scale_of(temperature)
    offset, anchor, floor = anchor_of(top, scale)
    total = sum_of_powers(row, scale, offset, anchor, floor)
    return math.log(total) + (np.float64(anchor) * _LN_2 + np.float64(offset) / temperature)


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


@kernel
def _softmax(logits, out, powers, temperature, in_place):
    """powers: float32, (rows, V); `out` itself if in_place, else one row that is used again, while it lies in cache."""
    scale = scale_of(temperature)
    for r in range(logits.shape[0]):
        row, target, power_row = logits[r], out[r], powers[r if in_place else 0]
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
            for start in range(0, row.size, _BLOCK):
                stop = start + _BLOCK
                total += np.float64(_block_powers(row[start:stop], power_row[start:stop], scale, offset, anchor, floor))
            first = _F(1 / total)  # in two parts, so that no error is common to a row
            second = _F(1 / total - np.float64(first))
            if in_place:
                _multiply(power_row, first, second)
            else:
                _write_multiples(power_row, target, first, second)


@inline
def _write_differences(row, out, temperature, logsumexp):
    inverse = 1 / temperature
    for i in range(row.size):
        out[i] = narrow(_F(fma(np.float64(widen(row[i])), inverse, -logsumexp)), out)


@kernel
def _log_softmax(logits, out, temperature):
    for r in range(logits.shape[0]):
        row, target = logits[r], out[r]
        top = maximum(row)
        if top == _ALL:
            _write_constants(row, target, math.log(_share(row)), -np.inf)
        elif top == _NOTHING:
            _write_constants(row, target, 0.0, -np.inf)
        else:
            _write_differences(row, target, temperature, logsumexp_of(row, top, temperature))


@kernel
def _logsumexp(logits, out, temperature):
    for r in range(logits.shape[0]):
        row = logits[r]
        out[r] = narrow(_F(logsumexp_of(row, maximum(row), temperature)), out)


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


@kernel
def _statistics(logits, out, temperature):
    """Columns of out: log Σe^(x/T), entropy, participation."""
    scale = scale_of(temperature)
    for r in range(logits.shape[0]):
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
            for start in range(0, row.size, _BLOCK):
                block = row[start : start + _BLOCK]
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


@kernel
def _softmax_backward(weights, slopes, out, temperature):
    for r in range(weights.shape[0]):
        mean = 0.0
        for start in range(0, weights.shape[1], _BLOCK):
            stop = start + _BLOCK
            mean += np.float64(_block_product(weights[r, start:stop], slopes[r, start:stop]))
        _write_softmax_slopes(weights[r], slopes[r], out[r], _F(mean), _F(1 / temperature))


@inline(flags=_SUMS)
def _block_total(row):
    total = _ZERO
    for i in range(row.size):
        total += widen(row[i])
    return total


@inline
def _write_log_softmax_slopes(logs, slopes, out, total, inverse, scale, floor):
    for i in range(logs.size):
        weight = power(widen(logs[i]), scale, _ZERO, -_HEADROOM, floor)
        out[i] = narrow((widen(slopes[i]) - weight * total) * inverse, out)


@kernel
def _log_softmax_backward(logs, slopes, out, temperature):
    scale = scale_of(1.0)
    floor = -(_HEADROOM + _DEPTH) * scale[2]
    for r in range(logs.shape[0]):
        total = 0.0
        for start in range(0, logs.shape[1], _BLOCK):
            total += np.float64(_block_total(slopes[r, start : start + _BLOCK]))
        scaled = _F(total * 2.0**-48)
        _write_log_softmax_slopes(logs[r], slopes[r], out[r], scaled, _F(1 / temperature), scale, floor)


def _over_rows(rows: Callable[..., None], tensors: tuple[Tensor, ...], temperature: float) -> None:
    """Call a kernel on contiguous (rows, V) tensors, a share of the rows on each thread."""
    arrays = tuple(as_array(tensor) for tensor in tensors)

    def part(start: int, stop: int) -> None:
        rows(*(array[start:stop] for array in arrays), temperature)

    in_parallel(part, arrays[0].shape[0], max(1, _PART // max(1, arrays[0].shape[1])))


def softmax(logits: Tensor, out: Tensor, temperature: float) -> None:
    """e^(x/T) / Σ e^(x/T)."""
    source, target, in_place = as_array(logits), as_array(out), out.dtype == torch.float32
    rows, length = source.shape

    def part(start: int, stop: int) -> None:
        powers = target[start:stop] if in_place else np.empty((1, length), np.float32)
        _softmax(source[start:stop], target[start:stop], powers, temperature, in_place)

    in_parallel(part, rows, max(1, _PART // max(1, length)))


def log_softmax(logits: Tensor, out: Tensor, temperature: float) -> None:
    """x/T − log Σ e^(x/T)."""
    _over_rows(_log_softmax, (logits, out), temperature)


def logsumexp(logits: Tensor, out: Tensor, temperature: float) -> None:
    """log Σ e^(x/T); out: (rows,)."""
    _over_rows(_logsumexp, (logits, out), temperature)


def statistics(logits: Tensor, out: Tensor, temperature: float) -> None:
    """Log-sum-exp, entropy and participation; out: (rows, 3), float32."""
    _over_rows(_statistics, (logits, out), temperature)


def softmax_backward(weights: Tensor, slopes: Tensor, out: Tensor, temperature: float) -> None:
    """p·(g − Σpg)/T."""
    _over_rows(_softmax_backward, (weights, slopes, out), temperature)


def log_softmax_backward(logs: Tensor, slopes: Tensor, out: Tensor, temperature: float) -> None:
    """(g − e^y·Σg)/T."""
    _over_rows(_log_softmax_backward, (logs, slopes, out), temperature)
