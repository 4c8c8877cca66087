"""The shortest prefix of a row, by (number descending, place ascending), whose mass reaches a target.

A row comes with its weights; what weighs 0 is out. Nothing is sorted: a sample of the row brackets the number at which
the prefix ends; one pass over the row adds up what lies above the bracket and gathers what lies within; halving the
gathered few finds the number, and how many of its places belong to the prefix. A bracket that proves wrong is widened:
the sample decides how long it takes, and never what comes out. Sums are float64.
"""

from __future__ import annotations

import math

import numpy as np

from ._compile import inline, out_of_line, part, widen, woven
from ._masks import LANES, between, bits_set, equal, key_of, lowest_bit, midway, moved, number_of, past

BLOCK = 1024
_F = np.float32
_ZERO, _ONE, _NOTHING, _ALL = _F(0), _F(1), _F(-np.inf), _F(np.inf)
_SUMS = {"reassoc", "nsz"}
_STRETCH = 16  # neighbours in a sample
_LARGEST = 4096  # sample, of one element in _FEWEST or fewer
_FEWEST = 32
_SMALL = 1024  # a row of so few is gathered whole
_SURE, _SURER, _SUREST = 3.0, 5.0, 100.0  # standard deviations of the sampled mass; times so much; no further
_LEAST = 5e-324  # a prefix holds one element


@inline
def room(elements):
    """How many elements of a row of so many are sampled at most; all of them may be gathered."""
    return min(elements // _FEWEST, _LARGEST) + 2 * _STRETCH


@inline
def _mass(weight, counted):
    """A weight, or 1 for each that is in if they are counted."""
    if counted > _ZERO:
        return _ONE if weight > _ZERO else _ZERO
    return weight


@inline(flags=_SUMS)
def _sum(weights):
    total = 0.0
    for i in range(weights.size):
        total += np.float64(weights[i])
    return total


@inline(flags=_SUMS)
def _below(keys, weights, key):
    """(The mass, the sum of squared weights) of what lies below a key."""
    mass, squares = 0.0, 0.0
    for i in range(keys.size):
        weight = np.float64(weights[i] if keys[i] < key else _ZERO)
        mass += weight
        squares += weight * weight
    return mass, squares


@inline(flags=_SUMS)
def _from(keys, weights, key):
    """(The mass above a key, the mass at it, how many are at it)."""
    above, at, count = 0.0, 0.0, 0
    for i in range(keys.size):
        above += np.float64(weights[i] if keys[i] > key else _ZERO)
        at += np.float64(weights[i] if keys[i] == key else _ZERO)
        count += 1 if keys[i] == key else 0
    return above, at, count


@inline
def _ends(keys):
    lowest = highest = keys[0]
    for i in range(keys.size):
        lowest = keys[i] if keys[i] < lowest else lowest
        highest = keys[i] if keys[i] > highest else highest
    return lowest, highest


@inline
def _neighbours(keys, key):
    """(The last key before one, the first from it on), of which both exist."""
    first = last = past(keys[0], key)
    for i in range(keys.size):
        distance = past(keys[i], key)
        first = distance if distance < first else first
        last = distance if distance > last else last
    return moved(key, last), moved(key, first)


@part
def _halved(keys, weights, budget, sureness, counted):
    """(The largest key below which the mass, and so many of its deviations, stay within a budget; the next key).

    The next one equals it where it is the largest of all.
    """
    out_of_line()
    low, after = _ends(keys)
    upper = trial = after
    total = _sum(weights)
    while low < upper:
        mass, squares = _below(keys, weights, trial)
        if counted > 0:
            squares *= 1 - mass / total
        before, here = _neighbours(keys, trial)
        if mass + sureness * math.sqrt(squares) <= budget:
            low = here
        else:
            after, upper = here, before
        trial = midway(low, upper)
        if trial == low:
            trial = upper
    return low, after


@woven
def _sampled(row, weights, counted, keys, masses):
    """Copy stretches of the row; how many elements that makes."""
    size = 0
    apart = max(_STRETCH * _FEWEST, _STRETCH * -(-row.size // _LARGEST))
    for start in range(0, row.size - _STRETCH + 1, apart):
        for i in range(start, start + _STRETCH):
            keys[size] = key_of(widen(row[i]))
            masses[size] = _mass(weights[i], counted)
            size += 1
    return size


@inline(flags=_SUMS)
def _mass_from(row, weights, counted, number):
    mass = 0.0
    for i in range(row.size):
        weight = _mass(weights[i], counted) if widen(row[i]) >= number else _ZERO
        mass += np.float64(weight)
    return mass


@woven
def _kept(row, weights, counted, i, size, keys, masses):
    """Add an element to what is gathered, unless it is out."""
    if weights[i] > _ZERO:
        keys[size] = key_of(widen(row[i]))
        masses[size] = _mass(weights[i], counted)
        return size + 1
    return size


@part
def _gathered(row, weights, counted, low, high, keys, masses):
    """(The mass from high on, that of one element at low, how many are at low, how many lie between: the gathered)."""
    out_of_line()
    above, each, count, size = 0.0, _ZERO, 0, 0
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        if high < _ALL:
            above += _mass_from(row[start:stop], weights[start:stop], counted, high)
        whole = stop - (stop - start) % LANES
        for first in range(start, whole, LANES):
            bits, ties = between(row, first, low, high), equal(row, first, low)
            while bits != 0:
                size = _kept(row, weights, counted, first + lowest_bit(bits), size, keys, masses)
                bits &= bits - 1
            if ties != 0:
                each = _mass(weights[first + lowest_bit(ties)], counted) if count == 0 else each
                count += bits_set(ties)
        for i in range(whole, stop):
            x = widen(row[i])
            if low < x < high:
                size = _kept(row, weights, counted, i, size, keys, masses)
            elif x == low:
                each = _mass(weights[i], counted) if count == 0 else each
                count += 1
    return above, np.float64(each), count, size


@woven
def _bracketed(row, weights, counted, target, total, space):
    """(low, and what is gathered above it as of `_gathered`, with the mass of that): the prefix ends among these."""
    keys, masses, sample_keys, sample_masses = space
    low, high = _NOTHING, _ALL
    sample = _sampled(row, weights, counted, sample_keys, sample_masses) if row.size > _SMALL else 0
    budget = (total - target) * sample / row.size
    down = up = _SURE
    if sample > 0:
        few, few_masses = sample_keys[:sample], sample_masses[:sample]
        low = number_of(_halved(few, few_masses, budget, down, counted)[0])
        high = _next(_halved(few, few_masses, budget, -up, counted))
    while True:
        above, each, count, size = _gathered(row, weights, counted, low, high, keys, masses)
        inside = _sum(masses[:size])
        if above >= target and high < _ALL:
            low = high
            up *= _SURER
            high = _next(_halved(sample_keys[:sample], sample_masses[:sample], budget, -up, counted))
            if up > _SUREST or high <= low:
                high = _ALL
        elif above + inside + each * count < target and low > _NOTHING:
            high = low
            down *= _SURER
            low = number_of(_halved(sample_keys[:sample], sample_masses[:sample], budget, down, counted)[0])
            if down > _SUREST or low >= high:
                low = _NOTHING
        else:
            return low, above, inside, each, count, size


@woven
def _next(keys):
    """The second key's number, or infinity where it equals the first."""
    return _ALL if keys[0] == keys[1] else number_of(keys[1])


@part
def prefix(row, weights, counted, target, total, doubt, space):
    """(The number at which the prefix ends, the last place at it that is in, whether float32 leaves that in doubt).

    counted: 1.0 where each element is to weigh 1, else 0.0 (no bool: numba compiles each constant one apart). total:
    the whole mass. doubt: how far the mass of a prefix may be off.
    """
    out_of_line()
    target = max(target, _LEAST)
    number, above, inside, each, count, size = _bracketed(row, weights, counted, target, total, space)
    if size > 0 and above + inside >= target:
        keys, masses = space[0][:size], space[1][:size]
        key = _halved(keys, masses, above + inside - target, 0.0, counted)[0]
        number = number_of(key)
        more, at, count = _from(keys, masses, key)
        above, each = above + more, at / count
    else:
        above += inside
    if count == 0:  # rounding left the whole row's mass below the target
        return number, row.size - 1, False
    needed = min(max(math.ceil((target - above) / each), 1), count)
    while needed > 1 and above + (needed - 1) * each >= target:
        needed -= 1
    while needed < count and above + needed * each < target:
        needed += 1
    reached = above + needed * each
    in_doubt = abs(reached - target) <= doubt or abs(reached - each - target) <= doubt
    place = row.size - 1 if needed == count else place_of(row, number, needed)
    return number, place, in_doubt and doubt > 0


@part
def place_of(row, number, count):
    """Where the count-th element that equals a number stands; what is out comes after what is in."""
    out_of_line()
    for first in range(0, row.size - LANES + 1, LANES):
        bits = equal(row, first, number)
        found = bits_set(bits)
        if found >= count:
            while count > 1:
                bits &= bits - 1
                count -= 1
            return first + lowest_bit(bits)
        count -= found
    for i in range(row.size - row.size % LANES, row.size):
        if widen(row[i]) == number:
            count -= 1
            if count == 0:
                return i
    return row.size - 1


@inline(flags=_SUMS)
def _drop_below(row, weights, number):
    """Zero the weights of what lies below a number, in a block; (the mass, how many elements) that are left."""
    mass, count = 0.0, _ZERO
    for i in range(row.size):
        weight = weights[i] if widen(row[i]) >= number else _ZERO
        weights[i] = weight
        mass += np.float64(weight)
        count += _ONE if weight > _ZERO else _ZERO
    return mass, int(count)


@part
def drop(row, weights, sums, number, place):
    """Zero the weights of what lies below a number, or at it behind a place; (the mass, how many) that are left.

    sums: takes the mass of each BLOCK.
    """
    out_of_line()
    higher = np.nextafter(number, _ALL)
    mass, count = 0.0, 0
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        middle = min(max(start, place + 1), stop)
        first, some = _drop_below(row[start:middle], weights[start:middle], number)
        second, others = _drop_below(row[middle:stop], weights[middle:stop], higher)
        sums[start // BLOCK] = first + second
        mass += first + second
        count += some + others
    return mass, count
