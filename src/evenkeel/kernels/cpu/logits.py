"""What a head's readings need of each row of logits, while the row is in cache.

e^x for x ≤ 0 in float32, off by about an ulp; e^−87 stands for all below, beside the e^0 of the maximum nothing. Sums
run in float32 over _BLOCK elements and in float64 from there. Temperatures a factor of two apart share one exponential:
e^(x/T) = (e^(x/2T))².
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ._arithmetic import reduced32
from ._compile import add_exponent, fma, inline, larger, widen
from ._spread import spread
from ._threads import divided_rows

_F = np.float32
_ZERO, _ONE, _LEAST_EXPONENT, _LOWEST = _F(0), _F(1), _F(-87), _F(-np.inf)
_SQUARABLE = _F(1e-18)  # the square of anything smaller is nothing beside the maximum's 1, and subnormals are slow
_BLOCK = 2048
_SUMS = {"reassoc", "nsz"}


@inline
def _exp(x):
    """e^x for x <= 0; NaN stays NaN."""
    t, p = reduced32(_LEAST_EXPONENT if x < _LEAST_EXPONENT else x, _ZERO)
    power = add_exponent(_ONE, t)
    return fma(power, p, power)


@inline
def _extremes(block):
    low, high = _LOWEST, _LOWEST
    for i in range(block.size):
        x = widen(block[i])
        low, high = larger(low, -x), larger(high, x)
    return -low, high


@inline
def _first(row, wanted):
    """Where a number is found first; 0 where it is not, as for NaN."""
    for i in range(row.size):
        if widen(row[i]) == wanted:
            return i
    return 0


@inline(flags=_SUMS)
def _sums(block, top):
    """Σ e^z and Σ z·e^z with z = max(x − top, −87)."""
    total, weighted = _ZERO, _ZERO
    for i in range(block.size):
        z = widen(block[i]) - top
        z = _LEAST_EXPONENT if z < _LEAST_EXPONENT else z
        e = _exp(z)
        total += e
        weighted += e * z
    return total, weighted


@inline
def _square(e):
    e = _ZERO if e < _SQUARABLE else e
    return e * e


@inline(flags=_SUMS)
def _octaves(block, top, inverse):
    """Σ e^(z·inverse·k) for k = 1, 2, 4, 8, 16."""
    a, b, c, d, f = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for i in range(block.size):
        e = _exp((widen(block[i]) - top) * inverse)
        a += e
        e = _square(e)
        b += e
        e = _square(e)
        c += e
        e = _square(e)
        d += e
        e = _square(e)
        f += e
    return a, b, c, d, f


@inline
def _describe(row, out):
    choice, low, high = 0, _F(np.inf), _LOWEST
    for start in range(0, row.size, _BLOCK):
        small, large = _extremes(row[start : start + _BLOCK])
        if large > high:
            choice = start
        low, high = -larger(-low, -small), larger(high, large)
    choice += _first(row[choice : choice + _BLOCK], high)
    total, weighted = 0.0, 0.0
    for start in range(0, row.size, _BLOCK):
        one, two = _sums(row[start : start + _BLOCK], high)
        total, weighted = total + np.float64(one), weighted + np.float64(two)
    out[0], out[1], out[2], out[3], out[4] = choice, low, high, total, weighted


@inline
def _heat(row, top, out):
    for j in range(6):
        inverse = _F(0.25 * 2.0 ** (j / 6))
        for start in range(0, row.size, _BLOCK):
            sums = _octaves(row[start : start + _BLOCK], top, inverse)
            out[24 - j] += np.float64(sums[0])
            out[18 - j] += np.float64(sums[1])
            out[12 - j] += np.float64(sums[2])
            out[6 - j] += np.float64(sums[3])
            if j == 0:
                out[0] += np.float64(sums[4])


@spread
def _read_rows(start, stop, memory, stride, classes, every, described, heated):
    for r in range(start, stop):
        row = memory[r * stride : r * stride + classes]
        _describe(row, described[r])
        if every > 0 and r % every == 0:
            _heat(row, _F(described[r, 2]), heated[r // every])


def logit_statistics(logits: Tensor, every: int, described: Tensor, heated: Tensor) -> None:
    """As in functional/_sums.py; rows of logits are contiguous, and described and heated start at 0."""
    rows, classes = logits.shape
    stride = logits.stride(0)
    memory = logits.as_strided(((rows - 1) * stride + classes,), (1,))
    _read_rows(divided_rows(logits), memory, stride, classes, every, described, heated)
