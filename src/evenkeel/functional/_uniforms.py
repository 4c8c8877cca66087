"""Uniform random numbers that belong to a (seed, position): the same in every batch, on every device and thread.

Philox 4×32 with ten rounds (Salmon, Moraes, Dror and Shaw 2011): the seed is its key, the position its counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words, as int64, for each 64-bit seed and position."""
    a, b = positions & _LOW, positions >> 32 & _LOW
    c, d = torch.zeros_like(a), torch.zeros_like(a)
    first, second = seeds & _LOW, seeds >> 32 & _LOW
    for _ in range(_ROUNDS):
        one, two = a * _FACTORS[0], c * _FACTORS[1]  # wrapped to 64 bits, of which all are wanted
        a, b = (two >> 32 & _LOW) ^ b ^ first, two & _LOW
        c, d = (one >> 32 & _LOW) ^ d ^ second, one & _LOW
        first, second = first + _STEPS[0] & _LOW, second + _STEPS[1] & _LOW
    return a, b, c, d


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """float64 numbers strictly between 0 and 1, odd multiples of 2^-53; seeds and positions: int64 of one shape."""
    a, b, _, _ = philox(seeds, positions)
    return ((a >> 6) * 2.0**26 + (b >> 6).double() + 0.5) * 2.0**-52
