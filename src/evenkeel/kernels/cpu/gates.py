"""An activation's output times an ungated tensor, in one pass each way; only the two inputs are read again.

A tensor here is flat memory and the distance between its rows, so that the halves of a packed tensor need no copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from ._arithmetic import at_least, at_most
from ._compile import inline, narrow, widen
from ._spread import spread
from ._threads import divided
from .activations import FORMULAS, formula, identity, identity_slope, vectors_for
from .fast32 import FINE, Formula

_LIMIT, _ONE, _ZERO = np.float32(7), np.float32(1), np.float32(0)


class Gate(NamedTuple):
    """f of the gate, and what the other factor is made of `up`."""

    formula: Formula
    up: Callable[..., Any] = identity
    up_slope: Callable[..., Any] = identity_slope


@inline
def _clamped_up(x):
    """1 + x, x clamped to [−7, 7]."""
    return _ONE + at_least(at_most(x, _LIMIT), -_LIMIT)


@inline
def _clamped_up_slope(x):
    return _ZERO if x > _LIMIT or x < -_LIMIT else _ONE


def _clamped(dtype: torch.dtype) -> Gate:
    """quick_gelu of min(x, 7), with slope 0 beyond, times 1 + up."""
    inner_value, inner_slope, inner_both = formula("quick_gelu", dtype)

    @inline
    def value(x):
        return inner_value(at_most(x, _LIMIT))

    @inline
    def slope(x):
        return _ZERO if x > _LIMIT else np.float32(inner_slope(x))

    @inline
    def both(x):
        value, slope = inner_both(at_most(x, _LIMIT))
        return value, _ZERO if x > _LIMIT else np.float32(slope)

    return Gate(Formula(value, slope, both), _clamped_up, _clamped_up_slope)


def _plain(name: str) -> Callable[[torch.dtype], Gate]:
    return lambda dtype: Gate(formula(name, dtype))


def _gelu(dtype: torch.dtype) -> Gate:
    """In float32 throughout, off by less than 2^-21: its exact value takes float64, and three times the time."""
    return Gate(FINE["gelu"] if dtype == torch.float32 else formula("gelu", dtype))


GATES = {name: _plain(name) for name in FORMULAS} | {"gelu": _gelu, "clamped_swiglu": _clamped}
"""Every gate that has a kernel, for results of a format: all pointwise functions, and gpt-oss's clamped SwiGLU."""


@cache
def forward(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The kernel (division, gate, up, out, strides, columns): out = f(gate)·up."""
    (value, _, _), factor, _ = GATES[name](dtype)
    choose_vectors = vectors_for(name)

    @spread(name=f"{name}-{dtype}")
    def gated(start, stop, gate, up, out, strides, columns):
        choose_vectors()
        width, rows = (columns, stop - start) if columns else (stop - start, 1)
        for row in range(start, start + rows):
            x = gate[row * strides[0] : row * strides[0] + width]
            u = up[row * strides[1] : row * strides[1] + width]
            y = out[row * strides[2] : row * strides[2] + width]
            for i in range(y.size):
                y[i] = narrow(value(widen(x[i])) * factor(widen(u[i])), out)

    return gated


@cache
def backward(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The kernel (division, gradient, gate, up, gate_gradient, up_gradient, strides, columns).

    gate_gradient = gradient·up·f′(gate), up_gradient = gradient·f(gate).
    """
    (_, _, both), factor, factor_slope = GATES[name](dtype)
    choose_vectors = vectors_for(name)

    @spread(name=f"{name}-{dtype}")
    def gated_backward(start, stop, gradient, gate, up, gate_gradient, up_gradient, strides, columns):
        choose_vectors()
        width, rows = (columns, stop - start) if columns else (stop - start, 1)
        for row in range(start, start + rows):
            g = gradient[row * strides[0] : row * strides[0] + width]
            x = gate[row * strides[1] : row * strides[1] + width]
            u = up[row * strides[2] : row * strides[2] + width]
            to_gate = gate_gradient[row * strides[3] : row * strides[3] + width]
            to_up = up_gradient[row * strides[4] : row * strides[4] + width]
            for i in range(g.size):
                value, slope = both(widen(x[i]))
                d, other = widen(g[i]), widen(u[i])
                to_gate[i] = narrow(d * factor(other) * np.float32(slope), gate_gradient)
                to_up[i] = narrow(d * factor_slope(other) * np.float32(value), up_gradient)

    return gated_backward


def over_rows(run: Callable[..., None], least: int, *tensors: torch.Tensor) -> None:
    """Call a kernel above over tensors of one shape; those that are written must have contiguous rows.

    All as one row where every tensor is contiguous, else row by row.
    """
    count = tensors[0].numel()
    if all(tensor.is_contiguous() for tensor in tensors):
        run(divided(count, least), *(tensor.view(-1) for tensor in tensors), (1,) * len(tensors), 0)
    elif count:
        columns = tensors[0].shape[-1]
        lines = [_in_lines(tensor) for tensor in tensors]
        memory = [line.as_strided((_span(line),), (1,)) for line in lines]
        strides = tuple(line.stride(0) for line in lines)
        run(divided(count // columns, max(1, least // columns)), *memory, strides, columns)


def _in_lines(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, columns) with contiguous rows at one distance: a view where the strides allow it."""
    columns = tensor.shape[-1]
    if tensor.stride(-1) == 1:
        try:
            return tensor.view(-1, columns)
        except RuntimeError:
            pass
    return tensor.contiguous().view(-1, columns)


def _span(lines: torch.Tensor) -> int:
    return (lines.shape[0] - 1) * lines.stride(0) + lines.shape[1]
