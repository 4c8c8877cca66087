"""An activation's output times an ungated tensor, in one pass each way; only the two inputs are read again.

A tensor here is flat memory and the distance between its rows, so that the halves of a packed tensor need no copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ._compile import inline, kernel, narrow, widen
from .activations import FORMULAS, Formula, identity, identity_slope, quick_gelu_both

_LIMIT, _ONE, _ZERO = np.float32(7), np.float32(1), np.float32(0)


@inline
def _clamped_both(x):
    """quick_gelu of min(x, 7); the slope is 0 beyond."""
    value, slope = quick_gelu_both(_LIMIT if x > _LIMIT else x)
    return value, 0.0 if x > _LIMIT else slope


@inline
def _clamped(x):
    return _clamped_both(x)[0]


@inline
def _clamped_slope(x):
    return _clamped_both(x)[1]


@inline
def _clamped_up(x):
    """1 + x, x clamped to [−7, 7]."""
    return _ONE + (_LIMIT if x > _LIMIT else (-_LIMIT if x < -_LIMIT else x))


@inline
def _clamped_up_slope(x):
    return _ZERO if x > _LIMIT or x < -_LIMIT else _ONE


class Gate(NamedTuple):
    """f of the gate, and what the other factor is made of `up`."""

    formula: Formula
    up: Callable[..., Any] = identity
    up_slope: Callable[..., Any] = identity_slope


GATES = {name: Gate(formula) for name, formula in FORMULAS.items()} | {
    "clamped_swiglu": Gate(Formula(_clamped, _clamped_slope, _clamped_both), _clamped_up, _clamped_up_slope)
}
"""Every gate that has a kernel: all pointwise functions, and gpt-oss's clamped SwiGLU."""


@cache
def forward(name: str) -> Callable[..., None]:
    """The kernel (gate, gate_stride, up, up_stride, out, columns): out = f(gate)·up, out contiguous."""
    (value, _, _), factor, _ = GATES[name]

    @kernel(name=name)
    def gated(gate, gate_stride, up, up_stride, out, columns):
        for row in range(out.size // columns):
            x = gate[row * gate_stride : row * gate_stride + columns]
            u = up[row * up_stride : row * up_stride + columns]
            y = out[row * columns : row * columns + columns]
            for i in range(y.size):
                y[i] = narrow(value(widen(x[i])) * factor(widen(u[i])), out)

    return gated


@cache
def backward(name: str) -> Callable[..., None]:
    """The kernel (gradient, gate, gate_stride, up, up_stride, gate_gradient, up_gradient, gradient_stride, columns).

    gate_gradient = gradient·up·f′(gate), up_gradient = gradient·f(gate); the given gradient is contiguous.
    """
    (_, _, both), factor, factor_slope = GATES[name]

    @kernel(name=name)
    def gated_backward(
        gradient, gate, gate_stride, up, up_stride, gate_gradient, up_gradient, gradient_stride, columns
    ):
        for row in range(gradient.size // columns):
            g = gradient[row * columns : row * columns + columns]
            x = gate[row * gate_stride : row * gate_stride + columns]
            u = up[row * up_stride : row * up_stride + columns]
            to_gate = gate_gradient[row * gradient_stride : row * gradient_stride + columns]
            to_up = up_gradient[row * gradient_stride : row * gradient_stride + columns]
            for i in range(g.size):
                value, slope = both(widen(x[i]))
                d, other = widen(g[i]), widen(u[i])
                to_gate[i] = narrow(d * factor(other) * np.float32(slope), gate_gradient)
                to_up[i] = narrow(d * factor_slope(other) * np.float32(value), up_gradient)

    return gated_backward
