"""Uniform random numbers that belong to a (seed, position): the same in every batch and on every thread."""

from __future__ import annotations

import numpy as np

from ..kernels import cpu
from ..kernels.cpu._philox import philox, unit


def uniforms(seeds: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """So many float64 numbers strictly between 0 and 1, odd multiples of 2^-53, for int64 (1,) or (count,).

    The seed is Philox's key and the position its counter.
    """
    if cpu.unavailable_because() is None:
        from ..kernels.cpu import uniforms as kernels

        return kernels.uniforms(seeds, positions, count)
    first, second, _, _ = philox(seeds.astype(np.uint64), positions.astype(np.uint64))
    return np.resize(unit(first, second), count)
