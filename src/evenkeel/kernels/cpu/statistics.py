"""Statistics of tensors in one pass over memory, in numba.

A block of rows is read from memory once and stays in cache for all that needs it. Sums run in float64, where no float32
overflows, even to the fourth power. A block's moments are taken about the mean of the rows above it, or about its own
first row where there are none, and merged with theirs by Pébay's formulas. Where that point lies at a distance d from
the block's own mean, cancellation costs some 10^-16·200·d^4 of its fourth moment; but then values d apart have been
seen, and the merged moment is no smaller than (d/2)^4. So neither a mean far from zero nor a drift costs digits.
Loops run across channels, which are adjacent in memory; where there are few, several rows are laid side by side as one.
Four rows are taken at a time, a quarter of a block apart: each is then a stream that the processor sees coming.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ._compile import as_array, fma, inline, kernel, widen
from ._spread import spread
from ._threads import divided

_ROWS, _WIDTH = 192, 512  # of a block: in float32 384 KiB, which a level-two cache holds
_LEAST = 2**16  # elements worth a thread
_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)

# The rows of a table of moments; below and above each bound follow.
COUNT, MEAN, SECOND, THIRD, FOURTH, MINIMUM, MAXIMUM, NAN, INFINITE, FIXED = range(10)


@inline
def _add_powers(values, first, stride, sums, width):
    """Of four rows: sums of x − shift to the first four powers; the shifts are the first row of `sums`."""
    a, b, c, d = first, first + stride, first + 2 * stride, first + 3 * stride
    a, b, c, d = values[a : a + width], values[b : b + width], values[c : c + width], values[d : d + width]
    for j in range(width):
        shift, one = sums[j], sums[_WIDTH + j]
        two, three, four = sums[2 * _WIDTH + j], sums[3 * _WIDTH + j], sums[4 * _WIDTH + j]
        p, q = np.float64(widen(a[j])) - shift, np.float64(widen(b[j])) - shift
        r, s = np.float64(widen(c[j])) - shift, np.float64(widen(d[j])) - shift
        one += (p + q) + (r + s)
        square = p * p
        two, three, four = two + square, fma(square, p, three), fma(square, square, four)
        square = q * q
        two, three, four = two + square, fma(square, q, three), fma(square, square, four)
        square = r * r
        two, three, four = two + square, fma(square, r, three), fma(square, square, four)
        square = s * s
        two, three, four = two + square, fma(square, s, three), fma(square, square, four)
        sums[_WIDTH + j] = one
        sums[2 * _WIDTH + j], sums[3 * _WIDTH + j], sums[4 * _WIDTH + j] = two, three, four


@inline
def _add_powers_of_row(values, first, sums, width):
    row = values[first : first + width]
    for j in range(width):
        p = np.float64(widen(row[j])) - sums[j]
        square = p * p
        sums[_WIDTH + j] += p
        sums[2 * _WIDTH + j] += square
        sums[3 * _WIDTH + j] += square * p
        sums[4 * _WIDTH + j] += square * square


@inline
def _add_extremes(values, first, stride, extremes, width):
    """Of four rows: minima, and `_WIDTH` further maxima."""
    a, b, c, d = first, first + stride, first + 2 * stride, first + 3 * stride
    a, b, c, d = values[a : a + width], values[b : b + width], values[c : c + width], values[d : d + width]
    for j in range(width):
        p, q, r, s = widen(a[j]), widen(b[j]), widen(c[j]), widen(d[j])
        extremes[j] = min(extremes[j], min(min(p, q), min(r, s)))
        extremes[_WIDTH + j] = max(extremes[_WIDTH + j], max(max(p, q), max(r, s)))


@inline
def _add_extremes_of_row(values, first, extremes, width):
    row = values[first : first + width]
    for j in range(width):
        x = widen(row[j])
        extremes[j] = min(extremes[j], x)
        extremes[_WIDTH + j] = max(extremes[_WIDTH + j], x)


@inline
def _add_block(values, first, columns, rows, sums, width):
    quarter = rows // 4
    sums[_WIDTH:] = 0.0
    for r in range(quarter):
        _add_powers(values, first + r * columns, quarter * columns, sums, width)
    for r in range(4 * quarter, rows):
        _add_powers_of_row(values, first + r * columns, sums, width)


@inline
def _find_extremes(values, first, columns, rows, extremes, width):
    quarter = rows // 4
    extremes[:_WIDTH], extremes[_WIDTH:] = np.inf, -np.inf
    for r in range(quarter):
        _add_extremes(values, first + r * columns, quarter * columns, extremes, width)
    for r in range(4 * quarter, rows):
        _add_extremes_of_row(values, first + r * columns, extremes, width)


@inline
def _choose_shifts(row, counts, means, sums):
    """The means so far, rounded to float32 so that equal values lie exactly at their shift; else the first row."""
    for j in range(row.size):
        sums[j] = np.float64(np.float32(means[j])) if counts[j] > 0 else np.float64(widen(row[j]))


@inline
def _any_not_finite(sums, width):
    doubtful = 0.0
    for j in range(width):
        doubtful += sums[_WIDTH + j] * 0.0
    return doubtful != 0.0


@inline
def _recentred(n, d, second, third, fourth):
    """Central moments of n values from those about a point d below their mean."""
    fourth = fourth - 4 * d * third + 6 * d * d * second - 3 * n * d * d * d * d
    third = third - 3 * d * second + 2 * n * d * d * d
    return second - n * d * d, third, fourth


@inline
def _merged(n, mean, second, third, fourth, m, other_mean, other_second, other_third, other_fourth):
    """The moments of n and m values together; those of none are 0."""
    total = max(n + m, 1.0)
    d = other_mean - mean
    share = d / total
    product = n * m
    fourth += other_fourth + d * share * share * share * product * (n * n - product + m * m)
    fourth += 6 * share * share * (n * n * other_second + m * m * second) + 4 * share * (n * other_third - m * third)
    third += other_third + d * share * share * product * (n - m) + 3 * share * (n * other_second - m * second)
    second += other_second + d * share * product
    return mean + d * (m / total), second, third, fourth


@inline
def _take_in(sums, extremes, rows, table, left, columns, width):
    """Merge a block's moments into columns of the table (flat, `columns` to a row)."""
    n, inverse = np.float64(rows), 1 / np.float64(rows)
    for j in range(width):
        at = left + j
        d = sums[_WIDTH + j] * inverse
        second, third, fourth = _recentred(n, d, sums[2 * _WIDTH + j], sums[3 * _WIDTH + j], sums[4 * _WIDTH + j])
        mean, second, third, fourth = _merged(
            table[at],
            table[columns + at],
            table[2 * columns + at],
            table[3 * columns + at],
            table[4 * columns + at],
            n,
            sums[j] + d,
            second,
            third,
            fourth,
        )
        table[at] += n
        table[columns + at] = mean
        table[2 * columns + at] = second
        table[3 * columns + at] = third
        table[4 * columns + at] = fourth
    for j in range(width):
        at = 5 * columns + left + j
        table[at] = min(table[at], np.float64(extremes[j]))
        table[columns + at] = max(table[columns + at], np.float64(extremes[_WIDTH + j]))


@inline
def _merge_column(table, at, count, moments, low, high):
    """Merge one group of values into one column of a table."""
    if count == 0:
        return
    old = table[:, at]
    old[MEAN], old[SECOND], old[THIRD], old[FOURTH] = _merged(
        old[COUNT],
        old[MEAN],
        old[SECOND],
        old[THIRD],
        old[FOURTH],
        count,
        moments[0],
        moments[1],
        moments[2],
        moments[3],
    )
    old[COUNT] += count
    old[MINIMUM], old[MAXIMUM] = min(old[MINIMUM], low), max(old[MAXIMUM], high)


@inline
def _take_in_column(values, first, stride, rows, table, at):
    """Take in one channel of a block that holds something not finite, value by value."""
    column = values[first : first + (rows - 1) * stride + 1 : stride]
    count, total, low, high = 0.0, 0.0, np.inf, -np.inf
    for i in range(column.size):
        x = np.float64(widen(column[i]))
        if math.isfinite(x):
            count, total, low, high = count + 1, total + x, min(low, x), max(high, x)
        elif x != x:
            table[NAN, at] += 1
        else:
            table[INFINITE, at] += 1
    if count == 0:
        return
    mean, d, second, third, fourth = total / count, 0.0, 0.0, 0.0, 0.0
    for i in range(column.size):
        p = np.float64(widen(column[i])) - mean
        if math.isfinite(p):
            d, second, third, fourth = d + p, second + p * p, third + p * p * p, fourth + p * p * p * p
    d /= count
    second, third, fourth = _recentred(count, d, second, third, fourth)
    _merge_column(table, at, count, (mean + d, second, third, fourth), low, high)


@inline
def _less(x, bound):
    return _ONE if (x < bound) & (x > -_INFINITY) else _ZERO


@inline
def _more(x, bound):
    return _ONE if (x > bound) & (x < _INFINITY) else _ZERO


@inline
def _add_counts(values, first, stride, least, most, counts, width):
    """Of four rows: how many numbers lie below `least`, and `_WIDTH` further above `most`; infinities do neither."""
    a, b, c, d = first, first + stride, first + 2 * stride, first + 3 * stride
    a, b, c, d = values[a : a + width], values[b : b + width], values[c : c + width], values[d : d + width]
    for j in range(width):
        p, q, r, s = widen(a[j]), widen(b[j]), widen(c[j]), widen(d[j])
        counts[j] += (_less(p, least) + _less(q, least)) + (_less(r, least) + _less(s, least))
        counts[_WIDTH + j] += (_more(p, most) + _more(q, most)) + (_more(r, most) + _more(s, most))


@inline
def _add_counts_of_row(values, first, least, most, counts, width):
    row = values[first : first + width]
    for j in range(width):
        x = widen(row[j])
        counts[j] += _less(x, least)
        counts[_WIDTH + j] += _more(x, most)


@kernel
def _count_past(values, first, columns, rows, least, most, counts, table, width):
    quarter = rows // 4
    counts[:] = _ZERO
    for r in range(quarter):
        _add_counts(values, first + r * columns, quarter * columns, least, most, counts, width)
    for r in range(4 * quarter, rows):
        _add_counts_of_row(values, first + r * columns, least, most, counts, width)
    for j in range(width):
        table[j] += np.float64(counts[j])
        table[columns + j] += np.float64(counts[_WIDTH + j])


@spread
def _gather(start, stop, values, size, tables, bounds):
    """Moments of each column of a matrix (flat, rows beside each other) into the table of this part of its rows."""
    table = tables[start // size]
    columns = table.shape[1]
    flat = table.reshape(-1)
    sums, extremes = np.empty(5 * _WIDTH), np.empty(2 * _WIDTH, np.float32)
    for top in range(start, stop, _ROWS):
        rows = min(_ROWS, stop - top)
        for left in range(0, columns, _WIDTH):
            width = min(_WIDTH, columns - left)
            first = top * columns + left
            counts, means = flat[left : left + width], flat[columns + left : columns + left + width]
            _choose_shifts(values[first : first + width], counts, means, sums)
            _add_block(values, first, columns, rows, sums, width)
            if _any_not_finite(sums, width):
                for j in range(width):
                    _take_in_column(values, first + j, columns, rows, table, left + j)
            else:
                _find_extremes(values, first, columns, rows, extremes, width)
                _take_in(sums, extremes, rows, flat, left, columns, width)
            for b in range(bounds.shape[0]):
                past = flat[(FIXED + 2 * b) * columns + left :]
                _count_past(values, first, columns, rows, bounds[b, 0], bounds[b, 1], extremes, past, width)


@inline
def _join_columns(table, other, left, columns, wide):
    """Merge columns [left, left + columns) of a table `wide` columns wide into another; both are flat."""
    for j in range(columns):
        at = left + j
        mean, second, third, fourth = _merged(
            table[j],
            table[columns + j],
            table[2 * columns + j],
            table[3 * columns + j],
            table[4 * columns + j],
            other[at],
            other[wide + at],
            other[2 * wide + at],
            other[3 * wide + at],
            other[4 * wide + at],
        )
        table[j] += other[at]
        table[columns + j] = mean
        table[2 * columns + j] = second
        table[3 * columns + j] = third
        table[4 * columns + j] = fourth
    for j in range(columns):
        low, high = 5 * columns + j, 6 * columns + j
        table[low] = min(table[low], other[5 * wide + left + j])
        table[high] = max(table[high], other[6 * wide + left + j])


@kernel
def _join(table, other):
    """Merge another table into this one; its columns go around where it has more."""
    columns, wide = table.shape[1], other.shape[1]
    for left in range(0, wide, columns):
        _join_columns(table.reshape(-1), other.reshape(-1), left, columns, wide)
        for k in range(NAN, table.shape[0]):
            for j in range(columns):
                table[k, j] += other[k, left + j]


def _in_float32(bounds: tuple[float, ...]) -> np.ndarray:
    """For each bound the smallest float32 that is not below it, and the largest that is not above."""
    with np.errstate(over="ignore"):
        nearest = np.array(bounds, np.float32)
    upper = np.where(nearest < bounds, np.nextafter(nearest, np.float32(np.inf)), nearest)
    lower = np.where(nearest > bounds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return np.stack([upper, lower], 1).astype(np.float32)


def _gathered(values: np.ndarray, columns: int, height: int, bounds: np.ndarray) -> np.ndarray:
    """The table of each part of the rows of a matrix (flat)."""
    division = divided(values.size // columns, max(1, _LEAST // columns))
    tables = np.zeros((division.parts, height, columns))
    tables[:, MINIMUM], tables[:, MAXIMUM] = np.inf, -np.inf
    _gather(division, values, division.size, tables, bounds)
    return tables


def tensor_statistics(x: Tensor, bounds: tuple[float, ...], out: Tensor) -> None:
    """Moments of each column of x (rows, columns), contiguous, into the table `out`."""
    rows, columns = x.shape
    values, limits = as_array(x).reshape(-1), _in_float32(bounds)
    table = out.numpy()
    table[:] = 0
    table[MINIMUM], table[MAXIMUM] = np.inf, -np.inf
    if not columns:
        return
    beside = max(1, _WIDTH // columns)
    together = rows // beside * beside
    for width, part in ((beside * columns, values[: together * columns]), (columns, values[together * columns :])):
        for found in _gathered(part, width, table.shape[0], limits):
            _join(table, found)


@kernel
def _selected(bits, rank):
    """The value of a rank, from 0, of non-negative float32 numbers given by their bits, which sort as they do."""
    counts = np.zeros(2**16, np.int64)
    for i in range(bits.size):
        counts[bits[i] >> 16] += 1
    upper = 0
    while rank >= counts[upper]:
        rank -= counts[upper]
        upper += 1
    counts[:] = 0
    for i in range(bits.size):
        if bits[i] >> 16 == upper:
            counts[bits[i] & 0xFFFF] += 1
    lower = 0
    while rank >= counts[lower]:
        rank -= counts[lower]
        lower += 1
    return (upper << 16) + lower


def median(sizes: Tensor) -> float:
    """The median of non-negative float32 numbers, the mean of the middle two for an even count; NaN of any NaN."""
    bits = as_array(sizes).view(np.uint32)
    count = bits.size
    ranks = (count - 1) // 2, count // 2, count - 1
    low, high, last = np.array([_selected(bits, rank) for rank in ranks], np.uint32).view(np.float32).astype(np.float64)
    return math.nan if math.isnan(last) else (low + high) / 2
