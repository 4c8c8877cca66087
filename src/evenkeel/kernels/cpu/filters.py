"""Weights of a row of logits, and the filters that zero the weights of what they drop.

Weights are float32 and off by less than SLACK of their value, or float64 within 1 ulp; sums of them are float64. Where
a filter's boundary lies so near that float32 could decide otherwise than float64, it is in doubt, and says so.
"""

from __future__ import annotations

import math

import numpy as np

from ._arithmetic import precise_exp64
from ._compile import inline, larger, out_of_line, part, rounded_as, widen, woven
from ._masks import key_of, midway, number_of
from .prefixes import BLOCK, drop, first_place, prefix
from .softmax import anchor_of, power, scale_of

SLACK = 2.0**-23
HEAT, _TOP_K, _TOP_P, _MIN_P, _TYPICAL_P, _TOP_N_SIGMA, _EPSILON, REPETITION, PRESENCE, FREQUENCY = range(10)
"""Where a row of options holds what; in the order of functional/_sampler.py, from which the rows come."""

_F = np.float32
_ZERO, _ONE, _NOTHING, _ALL = _F(0), _F(1), _F(-np.inf), _F(np.inf)
_SUMS = {"reassoc", "nsz"}
_FLOOR = -700.0  # of an exponent in float64: what lies below weighs as much
NOTHING_BESIDE_ONE = 1e-304  # more than that, and nothing in float64
_HUGE, _SHRINKING = 1e150, 2.0**-600  # what has no square in float64, and what brings it there
_COUNTED, _WEIGHED = 1.0, 0.0
_COLDEST = 1e-30  # temperature for float32


@inline
def ends(row):
    """The smallest and the largest element; both NaN where one is."""
    low = high = rounded_as(-np.inf, row)
    for i in range(row.size):
        x = widen(row[i])
        low, high = larger(low, -x), larger(high, x)
    return -low, high


@inline(flags=_SUMS)
def _fast_block(row, weights, scale, offset, anchor, floor):
    mass = 0.0
    for i in range(row.size):
        weight = power(widen(row[i]), scale, offset, anchor, floor)
        weights[i] = weight
        mass += np.float64(weight)
    return mass


@inline(flags=_SUMS)
def _fast_block_of_some(row, weights, again, scale, offset, anchor, floor):
    mass, count = 0.0, _ZERO
    for i in range(row.size):
        x = widen(row[i])
        weight = power(x, scale, offset, anchor, floor)
        weight = weight if x > _NOTHING else _ZERO
        if again:
            weight = weight if weights[i] > _ZERO else _ZERO
        weights[i] = weight
        mass += np.float64(weight)
        count += _ONE if weight > _ZERO else _ZERO
    return mass, int(count)


@part
def fast(row, weights, sums, top, temperature, some, again):
    """float32 weights e^((x − top)/T), times a constant; (their mass, how many are not 0, that of the top).

    some: there are −inf among the numbers, or weights that are to stay 0: those that are, if again.
    """
    out_of_line()
    scale = scale_of(temperature)
    offset, anchor, floor = anchor_of(top, scale)
    total, count = 0.0, 0
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        left = stop - start
        if some:
            block, places = row[start:stop], weights[start:stop]
            mass, left = _fast_block_of_some(block, places, again, scale, offset, anchor, floor)
        else:
            mass = _fast_block(row[start:stop], weights[start:stop], scale, offset, anchor, floor)
        sums[start // BLOCK] = mass
        total += mass
        count += left
    return total, count, np.float64(power(top, scale, offset, anchor, floor))


@inline(flags=_SUMS)
def _precise_block(row, weights, again, top, temperature):
    mass, count = 0.0, 0.0
    for i in range(row.size):
        x = np.float64(widen(row[i]))
        z = (x - top) / temperature
        weight = precise_exp64(_FLOOR if z < _FLOOR else z)
        weight = weight if x > -np.inf else 0.0
        if again:
            weight = weight if weights[i] > 0.0 else 0.0
        weights[i] = weight
        mass += weight
        count += 1.0 if weight > 0.0 else 0.0
    return mass, int(count)


@part
def precise(row, weights, sums, top, temperature, some, again):
    """`fast` in float64."""
    out_of_line()
    total, count = 0.0, 0
    for start in range(0, row.size, BLOCK):
        stop = min(start + BLOCK, row.size)
        mass, left = _precise_block(row[start:stop], weights[start:stop], again, np.float64(top), temperature)
        sums[start // BLOCK] = mass
        total += mass
        count += left
    return total, count, 1.0


@woven
def _only(weights, sums, place):
    """Keep one element."""
    weights[:] = _ZERO
    sums[:] = 0.0
    weights[place] = _ONE
    sums[place // BLOCK] = 1.0
    return 1.0, 1


@part
def _deviation(row, weights, count, top):
    """The standard deviation of what is in, and what numbers were scaled by so that they have squares."""
    out_of_line()
    lowest, total, squares = np.float64(top), 0.0, 0.0
    for i in range(row.size):
        x = np.float64(widen(row[i]))
        lowest = x if weights[i] > _ZERO and x < lowest else lowest
    scale = _SHRINKING if lowest < -_HUGE or top > _HUGE else 1.0
    for i in range(row.size):
        total += np.float64(widen(row[i])) * scale - top * scale if weights[i] > _ZERO else 0.0
    mean = total / count
    for i in range(row.size):
        below = np.float64(widen(row[i])) * scale - top * scale - mean if weights[i] > _ZERO else 0.0
        squares += below * below
    return math.sqrt(squares / count), scale


@woven
def _at_least(bound, row):
    """The smallest number of the row's kind that is not less than a float64."""
    number = rounded_as(bound, row)
    return np.nextafter(number, _ALL) if number < bound else number


@part
def _lowest(top, holds, first, second, third):
    """The smallest float64 up to a top, and above −inf, of which something holds as of all above it; or infinity."""
    out_of_line()
    if not holds(top, top, first, second, third):
        return np.inf
    low, high = key_of(-np.inf), key_of(top)
    while True:
        trial = midway(low, high)
        if trial == low:
            return number_of(high)
        if holds(number_of(trial), top, first, second, third):
            high = trial
        else:
            low = trial


@inline
def _reaches(x, top, share, total, temperature):
    return math.exp((x - top) / temperature) / total >= share


@inline
def _within(x, top, reach, scale, unused):
    return top * scale - x * scale <= reach


@inline
def _kept_maximum(row, weights):
    top = rounded_as(-np.inf, row)
    for i in range(row.size):
        x = widen(row[i])
        top = x if weights[i] > _ZERO and x > top else top
    return top


@part
def typical(row, weights, sums, top, mass, p, apart, space):
    """Keep the shortest prefix whose mass reaches p, of elements by |−log p − entropy|, then by rank; float64 weights.

    That is by |x − mean|, with the mean of x under p. apart: takes these distances, negative.
    """
    out_of_line()
    mean, top = 0.0, np.float64(top)
    for i in range(row.size):
        apart[i] = np.float64(widen(row[i])) - top
        mean += weights[i] / mass * apart[i] if weights[i] > NOTHING_BESIDE_ONE else 0.0
    for i in range(row.size):
        apart[i] = -abs(apart[i] - mean) if weights[i] > 0.0 else -np.inf
    number, place, _, _, _ = prefix(apart, weights, _WEIGHED, p * mass, mass, row.size, 0.0, sums, space)
    needed = 0
    for i in range(place + 1):
        needed += 1 if apart[i] == number else 0
    level = np.inf
    while needed > 0:  # of those that are equally far the larger come first
        below = -np.inf
        for i in range(row.size):
            if apart[i] == number and below < np.float64(widen(row[i])) < level:
                below = np.float64(widen(row[i]))
        level = below
        for i in range(row.size):
            if needed > 0 and apart[i] == number and np.float64(widen(row[i])) == level:
                apart[i] = 1.0
                needed -= 1
    mass, count = drop(apart, weights, sums, np.nextafter(number, np.inf), row.size)
    return mass, count, False


@inline
def undecided(row, weights, sums, top, mass, p, apart, space):
    """`typical` with float32 weights: left to float64."""
    return mass, 1, True


@woven
def _first(row, weights, sums, k, count, space):
    """Keep the first k."""
    number, place, _, _, _ = prefix(row, weights, _COUNTED, k, np.float64(count), count, 0.0, sums, space)
    return drop(row, weights, sums, number, place)


@woven
def _top_p(row, weights, sums, p, mass, count, unit, alike, slack, space, to_drop):
    """(mass, count, number, place, doubt) of the prefix; what lies behind it is zeroed if it is to be dropped."""
    if alike and mass == count * unit:  # all weigh the same, and are counted
        mass, count = _first(row, weights, sums, p * count, count, space)
        return mass, count, rounded_as(-np.inf, row), row.size, False
    doubt = slack * 2 * p * (1 - p) * mass
    number, place, mass, count, doubtful = prefix(row, weights, _WEIGHED, p * mass, mass, count, doubt, sums, space)
    if to_drop and not doubtful:
        mass, count = drop(row, weights, sums, number, place)
    return mass, count, number, place, doubtful


@woven
def _from_bound(row, weights, sums, bound):
    return drop(row, weights, sums, _at_least(bound, row), row.size)


@woven
def _epsilon(row, weights, sums, epsilon, top, temperature, mass, slack):
    """Keep probabilities of at least epsilon, or the largest."""
    first = first_place(row, top)
    total = mass / np.float64(weights[first])
    low = _lowest(np.float64(top), _reaches, epsilon, total * (1 - 2 * slack), temperature)
    high = _lowest(np.float64(top), _reaches, epsilon, total * (1 + 2 * slack), temperature)
    if low == np.inf:
        mass, count = drop(row, weights, sums, top, first)
        return mass, count, False
    mass, count = _from_bound(row, weights, sums, low)
    if high == low:
        return mass, count, False
    mass, fewer = _from_bound(row, weights, sums, high)
    return mass, fewer, fewer != count


@part
def filtered(row, lowest, top, weights, sums, options, last, whole, weigh, slack, find_typical, work):
    """Weigh a row of finite maximum and filter it; (mass and count of what is left, its end, whether that is in doubt).

    Its end is (number, place): below the one, and at it behind the other, elements are out even if they have a weight.
    last: the temperature comes last, as in llama.cpp, and not first. whole: what is out is to weigh 0. weigh, slack,
    find_typical: fast, SLACK and undecided, or precise, 0 and typical. work: typical's distances, the space of
    prefixes, and that of typical's prefix.
    """
    out_of_line()
    apart, space, typical_space = work
    heat = 1.0 if last else options[HEAT]
    number, place = rounded_as(-np.inf, row), row.size
    if heat == 0:
        mass, count = _only(weights, sums, first_place(row, top))
        return mass, count, number, place, False
    if slack > 0 and 0 < options[HEAT] < _COLDEST:
        return 1.0, 1, number, place, True
    mass, count, unit = weigh(row, weights, sums, top, heat, lowest == _NOTHING, False)
    doubt = False
    again = last and options[HEAT] != 1
    if options[_TOP_N_SIGMA] < np.inf:
        deviation, scale = _deviation(row, weights, count, np.float64(top))
        reach = options[_TOP_N_SIGMA] * deviation
        mass, count = _from_bound(row, weights, sums, _lowest(np.float64(top), _within, reach, scale, 0.0))
    if 0 < options[_TOP_K] < count:
        mass, count = _first(row, weights, sums, options[_TOP_K], count, space)
    if last and options[_TYPICAL_P] < 1:
        mass, count, doubt = find_typical(row, weights, sums, top, mass, options[_TYPICAL_P], apart, typical_space)
        top = _kept_maximum(row, weights)
    if options[_TOP_P] < 1 and not doubt:
        alike = slack == 0 or lowest == top  # where float32 tells nothing apart, float64 might
        more = again or options[_MIN_P] > 0 or options[_EPSILON] > 0 or (not last and options[_TYPICAL_P] < 1)
        mass, count, number, place, doubt = _top_p(
            row, weights, sums, options[_TOP_P], mass, count, unit, alike, slack, space, whole or more
        )
    if options[_MIN_P] > 0:
        mass, count = _from_bound(row, weights, sums, _lowest(np.float64(top), _reaches, options[_MIN_P], 1.0, heat))
    if not last and options[_TYPICAL_P] < 1 and not doubt:
        mass, count, doubt = find_typical(row, weights, sums, top, mass, options[_TYPICAL_P], apart, typical_space)
        top = _kept_maximum(row, weights)
    if options[_EPSILON] > 0 and not doubt:
        mass, count, doubt = _epsilon(row, weights, sums, options[_EPSILON], top, heat, mass, slack)
    if again and not doubt:
        mass, count = _heated(row, weights, sums, top, options[HEAT], weigh)
    return mass, count, number, place, doubt


@woven
def _heated(row, weights, sums, top, temperature, weigh):
    """Weigh what is left once more, at a temperature."""
    if temperature == 0:
        return _only(weights, sums, first_place(row, top))
    mass, count, _ = weigh(row, weights, sums, top, temperature, True, True)
    return mass, count


@inline(flags=_SUMS)
def _precise_mass(row, weights, base, temperature):
    mass = 0.0
    for i in range(row.size):
        z = (np.float64(widen(row[i])) - base) / temperature
        z = _FLOOR if z < _FLOOR else z
        mass += precise_exp64(-_FLOOR if z > -_FLOOR else z) if weights[i] > _ZERO else 0.0
    return mass


@part
def log_share(row, weights, place, temperature):
    """The log-probability of an element among those that are left, in float64 whatever the weights are."""
    out_of_line()
    return -math.log(_precise_mass(row, weights, np.float64(widen(row[place])), temperature))
