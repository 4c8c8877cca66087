"""A uniform number for each (seed, position), without NumPy's cost per operation."""

from __future__ import annotations

import numpy as np

from ._compile import inline, kernel
from ._philox import philox, unit

_philox, _unit = inline(philox), inline(unit)


@kernel
def _one(seed, position):
    first, second, _, _ = _philox(np.uint64(seed), np.uint64(position))
    return _unit(first, second)


@kernel
def _fill(seeds, positions, out):
    for i in range(out.size):
        out[i] = _one(seeds[i % seeds.size], positions[i % positions.size])


def uniform(seed: int, position: int) -> float:
    """A uniform number strictly between 0 and 1."""
    return _one(seed, position)


def uniforms(seeds: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """So many of them for int64 (1,) or (count,)."""
    out = np.empty(count)
    _fill(seeds, positions, out)
    return out
