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
from ._masks import LANES, between, bits_set, equal, key_of, lowest_bit, midway, moved, number_of, past, up_one

BLOCK = 1024
_F = np.float32
_ZERO, _ONE, _NOTHING, _ALL = _F(0), _F(1), _F(-np.inf), _F(np.inf)
_SUMS = {"reassoc", "nsz"}
_STRETCH = 16  # neighbours in a sample
_LARGEST = 4096  # sample, of one element in _FEWEST or fewer
_FEWEST = 32
_JITTER, _MASK = 40503, 511  # so that stretches share no period with a row
_FEW = 64  # one element in so many is gathered sooner than added up
_SMALL = 1024  # a row of so few is gathered whole
_SURE, _SURER, _SUREST = 2.7, 5.0, 1e5  # standard deviations of the sampled mass; times so much; at most
_HALF, _BY_NUMBER = _F(0.5), 16  # steps: as many as tell 65,536 evenly spread numbers apart
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
def _above_and_at(keys, weights, key):
    """(The mass above a key, how many are above it, the mass at it, how many are at it)."""
    above, more, at, count = 0.0, 0, 0.0, 0
    for i in range(keys.size):
        above += np.float64(weights[i] if keys[i] > key else _ZERO)
        more += 1 if keys[i] > key else 0
        at += np.float64(weights[i] if keys[i] == key else _ZERO)
        count += 1 if keys[i] == key else 0
    return above, more, at, count


@inline
def _ends(keys):
    lowest = highest = keys[0]
    for i in range(keys.size):
        lowest = keys[i] if keys[i] < lowest else lowest
        highest = keys[i] if keys[i] > highest else highest
    return lowest, highest


@inline
def _before(keys, key):
    """The last key before one, of which there is one."""
    last = past(keys[0], key)
    for i in range(keys.size):
        distance = past(keys[i], key)
        last = distance if distance > last else last
    return moved(key, last)


@inline
def _onward(keys, key):
    """The first key from one on; one that lies before it where there is none."""
    first = past(keys[0], key)
    for i in range(keys.size):
        distance = past(keys[i], key)
        first = distance if distance < first else first
    return moved(key, first)


@inline
def _between(low, high, steps):
    """A key above low and up to high: that of the mean number at first, the mean key where that has not led far."""
    trial = midway(low, high)
    first = number_of(low)
    if steps < _BY_NUMBER and first > _NOTHING:
        trial = key_of(first * _HALF + number_of(high) * _HALF)
    return trial if low < trial <= high else high


@part
def _halved(keys, weights, budget, sureness, counted):
    """The largest key below which the mass, and so many of its standard deviations, stay within a budget."""
    out_of_line()
    low, upper = _ends(keys)
    total, steps = _sum(weights), 0
    while low < upper:
        trial = _between(low, upper, steps)
        steps += 1
        mass, squares = _below(keys, weights, trial)
        if counted > 0:
            squares *= 1 - mass / total
        if mass + sureness * math.sqrt(squares) <= budget:
            low = _onward(keys, trial)
        else:
            upper = _before(keys, trial)
    return low


@part
def _number_past(keys, key):
    """The next number to that of a key; infinity where few or none are left from there on."""
    out_of_line()
    following = _onward(keys, up_one(key))
    left = 0
    for i in range(keys.size):
        left += 1 if keys[i] >= following else 0
    return number_of(following) if following > key and left > keys.size // _FEW else _ALL


@inline
def _copy_stretch(row, weights, counted, keys, masses):
    for i in range(_STRETCH):
        keys[i] = key_of(widen(row[i]))
        masses[i] = _mass(weights[i], counted)


@woven
def _sampled(row, weights, counted, keys, masses):
    """Copy stretches of the row; how many elements that makes."""
    size = 0
    apart = max(_STRETCH * _FEWEST, _STRETCH * -(-row.size // _LARGEST))
    for number in range(row.size // apart):
        start = number * apart + min(number * _JITTER & _MASK, apart - _STRETCH)
        _copy_stretch(
            row[start : start + _STRETCH], weights[start : start + _STRETCH], counted, keys[size:], masses[size:]
        )
        size += _STRETCH
    return size


@inline(flags=_SUMS)
def _from(row, weights, number):
    """(The mass, how many) of what lies at a number or above, in a block."""
    mass, count = 0.0, _ZERO
    for i in range(row.size):
        weight = weights[i] if widen(row[i]) >= number else _ZERO
        mass += np.float64(weight)
        count += _ONE if weight > _ZERO else _ZERO
    return mass, int(count)


@woven
def _kept(row, weights, counted, i, size, keys, masses):
    """Add an element to what is gathered, unless it is out."""
    if weights[i] > _ZERO:
        keys[size] = key_of(widen(row[i]))
        masses[size] = _mass(weights[i], counted)
        return size + 1
    return size


@part
def _gathered(row, weights, counted, low, high, sums, space):
    """(The mass from high on, how many are there, the mass of one at low, how many are there, how many lie between).

    Those between are gathered. sums: takes the mass from high on of each BLOCK, and the space's marks how many are
    gathered up to its end.
    """
    out_of_line()
    keys, masses, marks = space
    above, more, each, count, size = 0.0, 0, _ZERO, 0, 0
    everything = low == _NOTHING and high == _ALL
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        mass, some = 0.0, 0
        if high < _ALL:
            mass, some = _from(row[start:stop], weights[start:stop], high)
            mass = some if counted > 0 else mass
        sums[start // BLOCK] = mass
        above, more = above + mass, more + some
        whole = stop - (stop - start) % LANES
        for first in range(start, whole, LANES):
            bits, ties = between(row, first, low, high), equal(row, first, low)
            if everything or ties != 0:
                inside = between(weights, first, _ZERO, _ALL)
                bits, ties = inside if everything else bits, 0 if everything else ties & inside
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
            elif x == low and weights[i] > _ZERO:
                each = _mass(weights[i], counted) if count == 0 else each
                count += 1
        marks[start // BLOCK] = size
    return above, more, np.float64(each), count, size


@woven
def _bracketed(row, weights, counted, target, total, length, sums, space, few, few_masses):
    """(low, and what `_gathered` found above and at it): the prefix ends among these."""
    low, high = _NOTHING, _ALL
    many = row.size > _SMALL and length > row.size // _FEWEST
    sample = _sampled(row, weights, counted, few, few_masses) if many else 0
    few, few_masses = few[:sample], few_masses[:sample]
    budget = (total - target) * sample / row.size
    down = up = _SURE
    if sample > 0:
        low = number_of(_halved(few, few_masses, budget, down, counted))
        high = _number_past(few, _halved(few, few_masses, budget, -up, counted))
    while True:
        above, more, each, count, size = _gathered(row, weights, counted, low, high, sums, space)
        inside = _sum(space[1][:size])
        if above >= target and high < _ALL:
            low = high
            while high <= low and up < _SUREST:
                up *= _SURER
                high = _number_past(few, _halved(few, few_masses, budget, -up, counted))
            high = high if high > low else _ALL
        elif above + inside + each * count < target and low > _NOTHING:
            high = low
            while low >= high and down < _SUREST:
                down *= _SURER
                low = number_of(_halved(few, few_masses, budget, down, counted))
            low = low if low < high else _NOTHING
        else:
            return low, above, more, inside, each, count, size
        if min(up, down) >= _SUREST:  # the whole row, whatever rounding says
            low, high = _NOTHING, _ALL


@woven
def _add_gathered(key, sums, space):
    """Add to sums what is gathered above a key; (its mass, how many it is, the mass at the key, how many are there)."""
    keys, masses, marks = space
    above, more, at, count = 0.0, 0, 0.0, 0
    start = 0
    for block in range(sums.size):
        stop = marks[block]
        a, b, c, d = _above_and_at(keys[start:stop], masses[start:stop], key)
        sums[block] += a
        above, more, at, count = above + a, more + b, at + c, count + d
        start = stop
    return above, more, at, count


@part
def _add_ties(row, number, each, needed, sums):
    """Add to sums so many of the elements that equal a number, from the first on; the place of the last of them."""
    out_of_line()
    for first in range(0, row.size - LANES + 1, LANES):
        bits = equal(row, first, number)
        found = bits_set(bits)
        sums[first // BLOCK] += each * min(found, needed)
        if found >= needed:
            while needed > 1:
                bits &= bits - 1
                needed -= 1
            return first + lowest_bit(bits)
        needed -= found
    for i in range(row.size - row.size % LANES, row.size):
        if widen(row[i]) == number:
            sums[i // BLOCK] += each
            needed -= 1
            if needed == 0:
                return i
    return row.size - 1


@part
def prefix(row, weights, counted, target, total, length, doubt, sums, space):
    """(The number at which the prefix ends, the last place there, its mass, its length, whether these are in doubt).

    counted: 1.0 where each element is to weigh 1, else 0.0 (no bool: numba compiles each constant one apart). total:
    the whole mass. length: how many elements are in, or more. doubt: how far the mass of a prefix may be off. sums:
    takes the mass of each BLOCK in the prefix. space: keys, masses and marks of what is gathered, keys and masses of a
    sample.
    """
    out_of_line()
    target = max(target, _LEAST)
    keys, masses, marks, few, few_masses = space
    space = keys, masses, marks
    found = _bracketed(row, weights, counted, target, total, length, sums, space, few, few_masses)
    number, above, more, inside, each, count, size = found
    key = key_of(number)
    if size > 0 and above + inside >= target:
        key = _halved(keys[:size], masses[:size], above + inside - target, 0.0, counted)
        number = number_of(key)
    if size > 0:
        mass, some, at, ties = _add_gathered(key, sums, space)
        above, more = above + mass, more + some
        if ties > 0:
            each, count = at / ties, ties
    if count == 0:  # rounding left the whole row's mass below the target
        return number, row.size - 1, above, more, False
    needed = min(max(math.ceil((target - above) / each), 1), count)
    while needed > 1 and above + (needed - 1) * each >= target:
        needed -= 1
    while needed < count and above + needed * each < target:
        needed += 1
    place = _add_ties(row, number, each, needed, sums)
    reached = above + needed * each
    in_doubt = abs(reached - target) <= doubt or abs(reached - each - target) <= doubt
    return number, place, reached, more + needed, in_doubt and doubt > 0


@part
def first_place(row, number):
    """Where a number stands first; what is out comes after what is in."""
    out_of_line()
    for first in range(0, row.size - LANES + 1, LANES):
        bits = equal(row, first, number)
        if bits != 0:
            return first + lowest_bit(bits)
    for i in range(row.size - row.size % LANES, row.size):
        if widen(row[i]) == number:
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
