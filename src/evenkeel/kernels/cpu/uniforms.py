"""A uniform number for each (seed, position), without NumPy's cost per operation."""

from __future__ import annotations

import numpy as np

from ._compile import inline, kernel
from ._philox import philox, unit

_philox, _unit = inline(philox), inline(unit)


@kernel
def _fill(seeds, positions, out):
    for i in range(out.size):
        seed, position = np.uint64(seeds[i % seeds.size]), np.uint64(positions[i % positions.size])
        first, second, _, _ = _philox(seed, position)
        out[i] = _unit(first, second)


def uniforms(seeds: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """So many float64 numbers strictly between 0 and 1 for int64 (1,) or (count,)."""
    out = np.empty(count)
    _fill(seeds, positions, out)
    return out
