"""Errors in units in the last place, and the assertion that they stay below a bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..precision import FORMATS

_BLOCK = 2048  # elements that stay in cache between two loops over them


@dataclass(frozen=True, slots=True)
class UlpError:
    """How far results are from exact values: the largest error in ulp, its place, and how many are nearest.

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
    form = FORMATS[str(result.dtype).removeprefix("torch.")]
    lowest = round(np.log2(form.smallest_normal))
    overflow = form.maximum * (1 + form.epsilon / 4)
    given = exact if floor is None else torch.maximum(exact.abs(), floor)
    arrays = (item.detach().reshape(-1).contiguous().numpy() for item in (result.float(), exact, given))
    worst, place, correct = _compared()(*arrays, lowest, form.mantissa_bits, overflow)
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
    def wrong(y, v, error, overflow):
        """The error where a plain difference does not tell it: at NaN, infinities and zeros."""
        if np.isnan(v) or np.isnan(y):
            return 0.0 if np.isnan(v) and np.isnan(y) else np.inf
        if abs(v) >= overflow or np.isinf(y):
            return 0.0 if abs(v) >= overflow and np.isinf(y) and (y > 0) == (v > 0) else np.inf
        return np.inf if y == 0 and v != 0 and np.signbit(y) != np.signbit(v) else error

    @numba.njit(nogil=True, error_model="numpy")
    def compared(result, exact, given, lowest, digits, overflow):
        worst, place, correct = -1.0, 0, 0
        block = np.empty(_BLOCK, np.int64)
        for start in range(0, result.size, _BLOCK):
            y = result[start : start + _BLOCK]
            v = exact[start : start + _BLOCK]
            bits = given[start : start + _BLOCK].view(np.int64)
            for i in range(bits.size):  # the inverse of the ulp: 2^(digits − exponent), as bits
                exponent = max(((bits[i] >> 52) & 0x7FF) - 1023, lowest)
                block[i] = (digits - exponent + 1023) << 52
            inverse = block.view(np.float64)
            for i in range(y.size):
                error = abs(y[i] - v[i]) * inverse[i]
                if not error < 1e30 or y[i] == 0:
                    error = wrong(y[i], v[i], error, overflow)
                correct += error <= 0.5
                if error > worst:
                    worst, place = error, start + i
        return worst, place, correct

    return compared
