"""The sums that instruments' readings are made of, in numba: each in one pass over memory, in float64.

A block of each tensor comes into cache once, and short vectorised loops over it take one or two sums each. A float32's
square is finite in float64, so that a block's sum of squares also tells whether all of its elements are finite.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ._compile import inline, larger, magnitude, widen
from ._spread import spread
from ._threads import divided

_BLOCK = 4096
_LEAST = 2**16  # elements worth a thread
_ZERO = np.float32(0)
_SUMS = {"reassoc", "nsz", "contract"}


@inline(flags=_SUMS)
def _square_sum(block):
    total = 0.0
    for i in range(block.size):
        x = np.float64(widen(block[i]))
        total += x * x
    return total


@inline
def _largest(block):
    """The largest |x|, NaN if there is one."""
    top = _ZERO
    for i in range(block.size):
        top = larger(top, magnitude(widen(block[i])))
    return top


@inline
def _count_not_finite(block):
    count = 0
    for i in range(block.size):
        count += 0 if magnitude(widen(block[i])) < np.inf else 1
    return count


@spread
def _sizes(start, stop, values, size, parts):
    """Into the row of `parts` that belongs to this part, each `size` elements."""
    total, top, count = 0.0, _ZERO, 0
    for first in range(start, stop, _BLOCK):
        block = values[first : min(stop, first + _BLOCK)]
        squares = _square_sum(block)
        total += squares
        top = larger(top, _largest(block))
        if not math.isfinite(squares):
            count += _count_not_finite(block)
    out = parts[start // size]
    out[0], out[1], out[2] = total, top, count


def sizes(x: Tensor, out: Tensor) -> None:
    """Σ x², the largest |x| and how many are NaN or infinite, of contiguous x."""
    division = divided(x.numel(), _LEAST)
    if division.parts == 1:
        _sizes(division, x.view(-1), division.size, out.view(1, 3))
        return
    parts = np.zeros((division.parts, 3))
    _sizes(division, x.view(-1), division.size, parts)
    _combine(parts, out.numpy(), largest=(1,))


def _combine(parts: np.ndarray, out: np.ndarray, largest: tuple[int, ...]) -> None:
    """Add up the parts in their order; of the rows named, the maximum instead."""
    out[:] = parts.sum(0)
    for row in largest:
        out[row] = parts[:, row].max(0, initial=0)


@inline(flags=_SUMS)
def _slope_sums(slope, bound):
    """Σ s², and how many |s| are 0 and how many below the bound."""
    squares, zero, small = 0.0, 0, 0
    for i in range(slope.size):
        s = magnitude(widen(slope[i]))
        squares += np.float64(s) * np.float64(s)
        zero += 1 if s == _ZERO else 0
        small += 1 if s < bound else 0
    return squares, zero, small


@inline(flags=_SUMS)
def _sum(block):
    total = 0.0
    for i in range(block.size):
        total += np.float64(widen(block[i]))
    return total


@inline
def _add_to_channels(y, slope, channels, width):
    """Σ y and, `width` further on, the largest |slope| of each channel."""
    for j in range(width):
        channels[j] += np.float64(widen(y[j]))
    for j in range(width):
        channels[width + j] = larger(channels[width + j], np.float64(magnitude(widen(slope[j]))))


@spread
def _activation_sums(start, stop, x, y, slope, bound, size, wholes, sides):
    """Of rows (flat) as wide as those of `sides`, into the tables of this part, which start at 0."""
    width = sides.shape[2]
    whole, channels = wholes[start // size], sides[start // size].reshape(-1)
    step, stop = max(1, _BLOCK // width) * width, stop * width
    for first in range(start * width, stop, step):
        last = min(stop, first + step)
        block_x, block_y, block_s = x[first:last], y[first:last], slope[first:last]
        whole[0] += _sum(block_x)
        whole[1] += _square_sum(block_x)
        whole[2] = larger(whole[2], np.float64(_largest(block_x)))
        whole[3] += _square_sum(block_y)
        whole[4] = larger(whole[4], np.float64(_largest(block_y)))
        squares, zero, small = _slope_sums(block_s, bound)
        whole[5] += squares
        whole[6] += zero
        whole[7] += small
        for row in range(0, block_x.size, width):
            _add_to_channels(block_y[row : row + width], block_s[row : row + width], channels, width)


def activation_sums(x: Tensor, y: Tensor, slope: Tensor, bound: Tensor, whole: Tensor, channels: Tensor) -> None:
    """As in functional/_sums.py; x, y and slope (rows, channels) are contiguous."""
    rows, width = x.shape
    division = divided(rows, max(1, _LEAST // width))
    wholes, sides = np.zeros((division.parts, 8)), np.zeros((division.parts, 2, width))
    flat = (item.view(-1) for item in (x, y, slope))
    _activation_sums(division, *flat, np.float32(bound.item()), division.size, wholes, sides)
    _combine(wholes, whole.numpy(), largest=(2, 4))
    _combine(sides, channels.numpy(), largest=(1,))
