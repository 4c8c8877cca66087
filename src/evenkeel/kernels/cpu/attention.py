"""Attention's row passes in numba: over tiles of scores that a matrix product has just left in cache.

Each does what the function of its name in `kernels/attention.py` does. Numerics: every exponential is of a number
z ≤ 0; z·log2 e = k + f with |f| ≤ 1/2 (the product in two parts), 2^f is a polynomial (off by at most 1.6e-8 of its
value), 2^k goes into the exponent. Sums run in float32 lanes over the keys of one tile, and from there in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from ..attention import Tile
from ._compile import add_exponent, fma, inline, intrinsic, kernel, magnitude, with_sign

# The score of a hidden key: neither a product nor a mask gives just this number (masks do have the one below it, the
# least of all), and unlike −inf it costs an exponential nothing.
_HIDDEN = np.nextafter(np.finfo(np.float32).min, np.float32(0))
_NOTHING = np.float32(-np.inf)
_LEAST = np.float32(-87.0)  # e^−87 is the last normal float32; beside the maximum's e^0 it is nothing
_ZERO, _ONE, _TWO, _FOUR = (np.float32(number) for number in (0, 1, 2, 4))
_ROUNDING = np.float32(1.5 * 2**23)
_LOG2_E, _LOG2_E_REST = np.float32(1.4426950216293335), np.float32(1.9259629911266175e-08)
_C1, _C2, _C3 = np.float32(0.6931471824645996), np.float32(0.24022647738456726), np.float32(0.055503323674201965)
_C4, _C5, _C6 = np.float32(0.00961843691766262), np.float32(0.0013398875016719103), np.float32(0.00015353361959569156)
_SUMS = {"reassoc", "contract", "nsz"}

# the rows of a result while its sums run
_COUNT, _MAXIMUM, _TOTAL, _WEIGHTED, _SQUARES, _FIRST, _SHIFT, _DEVIATION = range(8)


def gather_statistics(tile: Tile, result: Tensor, head: int) -> None:
    """As in torch."""
    _gather_statistics(tile.scores.numpy(), _rules(tile), result.numpy(), head)


def finish_statistics(rows: Tensor) -> None:
    """As in torch."""
    _finish_statistics(rows.numpy())


def weigh(tile: Tile, maximum: Tensor, total: Tensor, gathered: Tensor) -> None:
    """As in torch."""
    _weigh(tile.scores.numpy(), _rules(tile), maximum.numpy(), total.numpy(), gathered.numpy())


def squash(tile: Tile, offset: float) -> None:
    """As in torch."""
    _squash(tile.scores.numpy(), _rules(tile), offset)


def differentiate(tile: Tile, slopes: Tensor, logsumexp: Tensor, mean_slope: Tensor) -> None:
    """As in torch."""
    _differentiate(tile.scores.numpy(), _rules(tile), slopes.numpy(), logsumexp.numpy(), mean_slope.numpy())


def differentiate_squashed(tile: Tile, slopes: Tensor, offset: float) -> None:
    """As in torch."""
    _differentiate_squashed(tile.scores.numpy(), _rules(tile), slopes.numpy(), offset)


_NO_MASK = np.empty(0, np.bool_)


def _rules(tile: Tile) -> tuple[Any, ...]:
    """A tile without its scores; the mask as flat memory and the strides of its four dimensions."""
    mask, memory, strides = tile.mask, _NO_MASK, (0, 0, 0, 0)
    if mask is not None:
        if mask.dtype not in (torch.bool, torch.float32):
            mask = mask.float()
        if mask.stride(3) > 1:
            mask = mask.contiguous()
        strides = mask.stride()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(mask.shape, strides, strict=True))
        memory = mask.as_strided((extent,), (1,)).numpy()
    return memory, strides, tile.softcap or 0.0, *tile[3:]


@intrinsic
def _bias(typing: Any, x: Any) -> Any:
    """What an element of a mask adds to its score: 0 or −inf for True or False, else its own value."""

    def from_bool(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = ir.FloatType()
        return builder.select(values[0], ir.Constant(number, 0.0), ir.Constant(number, float("-inf")))

    def from_float(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return values[0]

    return types.float32(x), from_bool if x == types.boolean else from_float


@intrinsic
def _larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger number; the other one beside a NaN. Unlike a comparison, its reduction vectorises."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = builder.module.declare_intrinsic("llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, values)

    return a(a, b), generate


@inline
def _power(z):
    """k and 2^f − 1 with e^z = 2^k·2^f, for −87 ≤ z ≤ 0 or NaN; k as 1.5·2^23 + k."""
    t = fma(z, _LOG2_E, _ROUNDING)
    f = fma(z, _LOG2_E_REST, fma(z, _LOG2_E, _ROUNDING - t))
    return t, f * fma(fma(fma(fma(fma(_C6, f, _C5), f, _C4), f, _C3), f, _C2), f, _C1)


@inline
def _exp(z):
    """e^z for z ≤ 0; e^−87 below −87; NaN for NaN."""
    t, rest = _power(_LEAST if z < _LEAST else z)
    power = add_exponent(_ONE, t)
    return fma(power, rest, power)


@inline
def _tanh(x):
    """tanh x and its derivative, by e = e^(−2|x|): (1 − e)/(1 + e), where 1 − e comes without cancellation."""
    z = -_TWO * magnitude(x)
    t, rest = _power(_LEAST if z < _LEAST else z)
    power = add_exponent(_ONE, t)
    less = fma(-power, rest, _ONE - power)
    e = fma(power, rest, power)
    return with_sign(less / (_ONE + e), x), _FOUR * e / ((_ONE + e) * (_ONE + e))


@inline
def _sigmoid(x):
    """σ(x), by e^−|x|."""
    e = _exp(-magnitude(x))
    return (e if x < _ZERO else _ONE) / (_ONE + e)


@inline
def _reached(scores, rules, index):
    """The place of a row and, of its scores, those of keys within reach, from `start` on; the others become 0."""
    _, _, _, position, first, before, after, _, _ = rules
    _, group, rows, keys = scores.shape
    h, g, r = index // (group * rows), index // rows % group, index % rows
    start = min(max(position + r - before - first, 0), keys)
    stop = max(start, min(position + r + after + 1 - first, keys))
    row = scores[h, g, r]
    row[:start] = _ZERO
    row[stop:] = _ZERO
    return h, g, r, start, row[start:stop]


@inline
def _cap(row, softcap):
    inverse = _ONE / softcap
    for j in range(row.size):
        row[j] = softcap * _tanh(row[j] * inverse)[0]


@inline
def _cap_and_bend(row, slopes, shift, softcap):
    """Scores become capped ones, slopes (slope − shift)·∂capped/∂score."""
    inverse = _ONE / softcap
    for j in range(row.size):
        capped, bend = _tanh(row[j] * inverse)
        row[j] = softcap * capped
        slopes[j] = (slopes[j] - shift) * bend


@inline
def _mask(row, rules, h, g, r, start):
    """Add a row of the mask; what it hides gets the score _HIDDEN."""
    memory, strides, lowest, also = rules[0], rules[1], np.float32(rules[7]), np.float32(rules[8])
    if memory.size == 0:
        return
    offset = h * strides[0] + g * strides[1] + r * strides[2] + start * strides[3]
    if strides[3] == 0:
        bias = _bias(memory[offset])
        hides = (bias <= lowest) | (bias == also)
        for j in range(row.size):
            row[j] = _HIDDEN if hides else row[j] + bias
    else:
        mask = memory[offset : offset + row.size]
        for j in range(row.size):
            bias = _bias(mask[j])
            row[j] = _HIDDEN if (bias <= lowest) | (bias == also) else row[j] + bias


@inline
def _show(row, rules, h, g, r, start):
    softcap = np.float32(rules[2])
    if softcap > _ZERO:
        _cap(row, softcap)
    _mask(row, rules, h, g, r, start)


@inline
def _maximum(row):
    found = _NOTHING
    for j in range(row.size):
        found = _larger(found, row[j])
    return found


@inline(flags=_SUMS)
def _row_sums(row, maximum):
    """Over the visible scores, with z = s − maximum: how many, Σe^z, Σz·e^z, Σe^2z, Σz, Σz²."""
    count, total, weighted, squares, shift, deviation = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for j in range(row.size):
        visible = row[j] != _HIDDEN
        z = row[j] - maximum if visible else _ZERO
        weight = _exp(z) if visible else _ZERO
        count += _ONE if visible else _ZERO
        total += weight
        weighted += weight * z
        squares += weight * weight
        shift += z
        deviation += z * z
    return count, total, weighted, squares, shift, deviation


@inline
def _rescale(sums, lower):
    """Running sums about a maximum that lies −lower higher."""
    count, factor = sums[_COUNT], math.exp(lower)
    sums[_DEVIATION] += lower * (2 * sums[_SHIFT] + count * lower)
    sums[_SHIFT] += count * lower
    sums[_WEIGHTED] = factor * (sums[_WEIGHTED] + lower * sums[_TOTAL])
    sums[_TOTAL] *= factor
    sums[_SQUARES] *= factor * factor
    sums[_FIRST] *= factor


@kernel
def _gather_statistics(scores, rules, result, head):
    heads, group, rows, _ = scores.shape
    for index in range(heads * group * rows):
        h, g, r, start, row = _reached(scores, rules, index)
        _show(row, rules, h, g, r, start)
        highest = _maximum(row)
        if highest <= _HIDDEN and np.all(row == _HIDDEN):  # a NaN shows in no maximum
            continue
        sums = result[:, head + h * group + g, rules[3] + r]
        if sums[_COUNT] == 0:
            sums[_MAXIMUM] = highest
        elif highest > sums[_MAXIMUM]:
            _rescale(sums, sums[_MAXIMUM] - highest)
            sums[_MAXIMUM] = highest
        maximum = np.float32(sums[_MAXIMUM])
        count, total, weighted, squares, shift, deviation = _row_sums(row, maximum)
        sums[_COUNT] += count
        sums[_TOTAL] += total
        sums[_WEIGHTED] += weighted
        sums[_SQUARES] += squares
        sums[_SHIFT] += shift
        sums[_DEVIATION] += deviation
        if rules[4] + start == 0 and row[0] != _HIDDEN:
            sums[_FIRST] = math.exp(row[0] - maximum)


@kernel
def _finish_statistics(rows):
    for h in range(rows.shape[1]):
        for r in range(rows.shape[2]):
            row = rows[:, h, r]
            count, maximum, total, weighted, squares, first, shift, deviation, _ = row
            if count == 0:
                continue
            mean, log_total, concentration = shift / count, math.log(total), squares / (total * total)
            row[1] = maximum if total == total else total
            row[2] = maximum + log_total
            row[3] = max(log_total - weighted / total, 0.0)
            row[4] = 1 / concentration
            row[5] = 1 - concentration
            row[6] = first / total
            row[7] = maximum + mean
            row[8] = max(deviation - count * mean * mean, 0.0)


@inline(flags=_SUMS)
def _exponentials(row, maximum):
    """Scores become e^(s − maximum), 0 where hidden; returns their sum."""
    total = _ZERO
    for j in range(row.size):
        weight = _exp(row[j] - maximum) if row[j] != _HIDDEN else _ZERO
        row[j] = weight
        total += weight
    return total


@kernel
def _weigh(scores, rules, maxima, totals, gathered):
    heads, group, rows, _ = scores.shape
    for index in range(heads * group * rows):
        h, g, r, start, row = _reached(scores, rules, index)
        if row.size == 0:
            continue
        _show(row, rules, h, g, r, start)
        stacked = g * rows + r
        old = maxima[h, stacked]
        maximum = max(old, _maximum(row))
        if maximum > old:
            maxima[h, stacked] = maximum
            factor = np.float32(math.exp(old - maximum))
            totals[h, stacked] *= factor
            sums = gathered[h, stacked]
            for d in range(sums.size):
                sums[d] *= factor
        totals[h, stacked] += _exponentials(row, maximum)


@kernel
def _squash(scores, rules, offset):
    heads, group, rows, _ = scores.shape
    for index in range(heads * group * rows):
        h, g, r, start, row = _reached(scores, rules, index)
        _show(row, rules, h, g, r, start)
        _sigmoids(row, np.float32(offset))


@inline
def _sigmoids(row, offset):
    for j in range(row.size):
        row[j] = _sigmoid(row[j] + offset) if row[j] != _HIDDEN else _ZERO


@kernel
def _differentiate(scores, rules, slopes, logsumexp, mean_slope):
    heads, group, rows, _ = scores.shape
    softcap = np.float32(rules[2])
    for index in range(heads * group * rows):
        h, g, r, start, row = _reached(scores, rules, index)
        slope = slopes[h, g, r]
        slope[:start] = _ZERO
        slope[start + row.size :] = _ZERO
        slope = slope[start : start + row.size]
        shift = mean_slope[h, g * rows + r]
        if softcap > _ZERO:
            _cap_and_bend(row, slope, shift, softcap)
            shift = _ZERO
        _mask(row, rules, h, g, r, start)
        _softmax_slopes(row, slope, logsumexp[h, g * rows + r], shift)


@inline
def _softmax_slopes(row, slopes, logsumexp, shift):
    upper = np.float32(logsumexp)
    lower = np.float32(logsumexp - upper)  # beside a large score, a float32 alone would lose digits of the weight
    for j in range(row.size):
        weight = _exp((row[j] - upper) - lower) if row[j] != _HIDDEN else _ZERO
        row[j] = weight
        slopes[j] = weight * (slopes[j] - shift)


@kernel
def _differentiate_squashed(scores, rules, slopes, offset):
    heads, group, rows, _ = scores.shape
    softcap = np.float32(rules[2])
    for index in range(heads * group * rows):
        h, g, r, start, row = _reached(scores, rules, index)
        slope = slopes[h, g, r]
        slope[:start] = _ZERO
        slope[start + row.size :] = _ZERO
        slope = slope[start : start + row.size]
        if softcap > _ZERO:
            _cap_and_bend(row, slope, _ZERO, softcap)
        _mask(row, rules, h, g, r, start)
        _sigmoid_slopes(row, slope, np.float32(offset))


@inline
def _sigmoid_slopes(row, slopes, offset):
    for j in range(row.size):
        weight = _sigmoid(row[j] + offset) if row[j] != _HIDDEN else _ZERO
        row[j] = weight
        slopes[j] *= weight * (_ONE - weight)
