"""Assertions in the words of the field, for evenkeel's own tests and for those of packages that add to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .precision import FORMATS

_BLOCK = 2048  # elements that stay in cache between two loops over them


@dataclass(frozen=True, slots=True)
class UlpError:
    """How far results are from exact values: the largest error in ulp, its place, and how many are the nearest number.

    worst is infinite where a NaN, an infinity or a sign of zero is wrong; place is the index of the worst.
    """

    worst: float
    place: int
    correctly_rounded: int
    count: int


def ulp_error(result: Tensor, exact: Tensor, *, floor: Tensor | None = None) -> UlpError:
    """|result − exact| in units in the last place (ulp) of the result's format at the exact value.

    result: any shape, float32, bfloat16 or float16. exact: float64, of that shape. The ulp of v is the distance between
    neighbouring numbers at |v|; below the smallest normal number it is that of the subnormals. floor: float64, of that
    shape: where given, the ulp is at least the ulp of the floor. A NaN wants a NaN; a value that rounds beyond the
    largest number wants infinity; a zero wants the sign of an exact value that is not 0.
    """
    name = str(result.dtype).removeprefix("torch.")
    digits = FORMATS[name].mantissa_bits
    lowest = round(np.log2(FORMATS[name].smallest_normal))
    given = exact if floor is None else torch.maximum(exact.abs(), floor)
    arrays = (item.detach().reshape(-1).contiguous() for item in (result.double(), exact, given))
    nearest = exact.detach().to(result.dtype).double().reshape(-1).contiguous()
    worst, place, correct = _compared()(*(item.numpy() for item in arrays), nearest.numpy(), lowest, digits)
    return UlpError(float(worst), place, correct, result.numel())


def assert_ulp(result: Tensor, exact: Tensor, bound: float, *, floor: Tensor | None = None) -> None:
    """Assert that no result is off by more than `bound` ulp; see ulp_error. The message names the worst element."""
    error = ulp_error(result, exact, floor=floor)
    if not error.worst <= bound:
        got, wanted = (float(item.detach().reshape(-1)[error.place]) for item in (result, exact))
        raise AssertionError(
            f"off by {error.worst:.4g} ulp, bound {bound:g}, at element {error.place}: {got!r} instead of {wanted!r}"
        )


@cache
def _compared() -> Any:
    import numba

    @numba.njit(nogil=True, error_model="numpy")
    def wrong(y, v, nearest):
        """What a plain difference does not show: infinity for a wrong NaN, infinity or zero, else 0."""
        if np.isnan(v) or np.isnan(y):
            return 0.0 if np.isnan(v) and np.isnan(y) else np.inf
        if np.isinf(nearest) or np.isinf(y):
            return 0.0 if y == nearest else np.inf
        return np.inf if y == 0 and v != 0 and np.signbit(y) != np.signbit(v) else 0.0

    @numba.njit(nogil=True, error_model="numpy")
    def compared(result, exact, given, nearest, lowest, digits):
        worst, place, correct = -1.0, 0, 0
        block = np.empty(_BLOCK, np.int64)
        for start in range(0, result.size, _BLOCK):
            y = result[start : start + _BLOCK]
            v = exact[start : start + _BLOCK]
            n = nearest[start : start + _BLOCK]
            bits = given[start : start + _BLOCK].view(np.int64)
            for i in range(bits.size):  # the inverse of the ulp: 2^(digits − exponent), as bits
                exponent = max(((bits[i] >> 52) & 0x7FF) - 1023, lowest)
                block[i] = (digits - exponent + 1023) << 52
            inverse = block.view(np.float64)
            for i in range(y.size):
                error = abs(y[i] - v[i]) * inverse[i]
                if not 0 < error < np.inf or y[i] == 0:
                    error = max(error, wrong(y[i], v[i], n[i])) if error < np.inf else wrong(y[i], v[i], n[i])
                correct += error <= 0.5 and (error < 0.5 or y[i] == n[i])
                if error > worst:
                    worst, place = error, start + i
        return worst, place, correct

    return compared
