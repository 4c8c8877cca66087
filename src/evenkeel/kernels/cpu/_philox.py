"""Random words that belong to a (key, counter): Philox 4×32 with ten rounds.

Written for uint64 numbers and for arrays of them alike, so that NumPy and compiled kernels run the same lines.
Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from typing import Any

import numpy as np

_LOW, _HALF, _UNUSED = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(6)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_FIRST_STEP, _SECOND_STEP = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10


def philox(key: Any, counter: Any) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words for each 64-bit key and counter, all uint64; the upper half of the counter's 128 bits is 0."""
    a, b = counter & _LOW, counter >> _HALF
    c, d = a ^ a, a ^ a
    first, second = key & _LOW, key >> _HALF
    for _ in range(_ROUNDS):
        one, two = a * _FIRST_FACTOR, c * _SECOND_FACTOR
        a, b, c, d = (two >> _HALF) ^ b ^ first, two & _LOW, (one >> _HALF) ^ d ^ second, one & _LOW
        first, second = (first + _FIRST_STEP) & _LOW, (second + _SECOND_STEP) & _LOW
    return a, b, c, d


def unit(first: Any, second: Any) -> Any:
    """A float64 strictly between 0 and 1, an odd multiple of 2^-53, from the upper 26 bits of two words."""
    return ((first >> _UNUSED) * 2.0**26 + (second >> _UNUSED) + 0.5) * 2.0**-52
