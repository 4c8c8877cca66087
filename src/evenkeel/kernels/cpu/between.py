"""What stands between the nonlinear parts, for tensors that are not differentiated: few rows times a matrix, RMS norms,
rotary positions.

Decoding makes hundreds of small calls for each token, so addresses go in, not arrays: to make four of these takes as
long as a small product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ._compile import inline, memory, narrow, widen
from ._spread import spread
from ._threads import divided

_LEAST = 2**19  # elements worth a thread: some 40 µs
_KEPT_AS = {torch.float32: np.float32, torch.bfloat16: np.uint16}


@inline(flags={"reassoc", "nsz", "contract"})
def _dot(first, second):
    total = np.float32(0)
    for i in range(first.size):
        total += widen(first[i]) * widen(second[i])
    return total


@cache
def _products(dtype: torch.dtype) -> Callable[..., None]:
    kept_as = _KEPT_AS[dtype]

    @spread(name=str(dtype))
    def products(start, stop, x_at, matrix_at, bias_at, out_at, rows, width, columns):
        x = memory(x_at, rows * columns, kept_as)
        matrix = memory(matrix_at, width * columns, kept_as)
        bias = memory(bias_at, width, kept_as)
        out = memory(out_at, rows * width, kept_as)
        for place in range(start, stop):
            weights = matrix[place * columns : (place + 1) * columns]
            added = widen(bias[place]) if bias_at else np.float32(0)
            for row in range(rows):
                total = _dot(x[row * columns : (row + 1) * columns], weights)
                out[row * width + place] = narrow(total + added, out)

    return products.on_arrays


def products(x: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x (rows, columns) times the transpose of a matrix (width, columns), plus bias, into out; all contiguous.

    Each row of the matrix is read once.
    """
    width, columns = matrix.shape
    division = divided(width, max(1, _LEAST // columns))
    rows, bias_at = x.numel() // columns, 0 if bias is None else bias.data_ptr()
    run = _products(x.dtype)
    run(division, x.data_ptr(), matrix.data_ptr(), bias_at, out.data_ptr(), rows, width, columns)


@cache
def _rms_norms(dtype: torch.dtype) -> Callable[..., None]:
    kept_as = _KEPT_AS[dtype]

    @spread(name=str(dtype))
    def rms_norms(start, stop, x_at, weight_at, out_at, rows, width, epsilon, offset):
        values = memory(x_at, rows * width, kept_as)
        weight = memory(weight_at, width, kept_as)
        written = memory(out_at, rows * width, kept_as)
        for row in range(start, stop):
            x, out = values[row * width : (row + 1) * width], written[row * width : (row + 1) * width]
            factor = np.float32(1) / np.sqrt(_dot(x, x) / np.float32(width) + epsilon)
            for i in range(width):
                out[i] = narrow(widen(x[i]) * factor * (widen(weight[i]) + offset), written)

    return rms_norms.on_arrays


def rms_norms(x: Tensor, weight: Tensor, epsilon: float, offset: bool, out: Tensor) -> None:
    """x / √(mean x² + ε) · w of each row (..., width), into out; all contiguous. offset: w is the weight plus 1."""
    width = weight.numel()
    rows = x.numel() // width
    run = _rms_norms(x.dtype)
    division = divided(rows, max(1, _LEAST // width))
    run(division, x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, np.float32(epsilon), np.float32(offset))


@cache
def _rotations(dtype: torch.dtype) -> Callable[..., None]:
    kept_as = _KEPT_AS[dtype]

    @spread(name=str(dtype))
    def rotations(start, stop, x_at, cosine_at, sine_at, out_at, places, angles, heads, width, half):
        """Of places (batch · length) with so many angles, one batch of them or all; each has heads of a width."""
        values = memory(x_at, places * heads * width, kept_as)
        written = memory(out_at, places * heads * width, kept_as)
        cosines = memory(cosine_at, angles * half, kept_as)
        sines = memory(sine_at, angles * half, kept_as)
        for place in range(start, stop):
            angle = place % angles
            cosine = cosines[angle * half : (angle + 1) * half]
            sine = sines[angle * half : (angle + 1) * half]
            for head in range(place * heads, (place + 1) * heads):
                x, out = values[head * width : (head + 1) * width], written[head * width : (head + 1) * width]
                for i in range(half):
                    first, second = widen(x[i]), widen(x[half + i])
                    c, s = widen(cosine[i]), widen(sine[i])
                    out[i] = narrow(first * c - second * s, written)
                    out[half + i] = narrow(second * c + first * s, written)
                for i in range(2 * half, width):
                    out[i] = x[i]

    return rotations.on_arrays


def rotations(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor) -> None:
    """Turn pairs of channels of x (batch, length, heads, width) by angles (batch or 1, length, half), into out."""
    batch, length, heads, width = x.shape
    angles, half = cosine.shape[0] * length, cosine.shape[-1]
    run = _rotations(x.dtype)
    division = divided(batch * length, max(1, _LEAST // (heads * width)))
    at = x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), out.data_ptr()
    run(division, *at, batch * length, angles, heads, width, half)
