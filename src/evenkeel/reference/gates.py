"""Gated products by definition: what is made of the gate, what of the other factor, and the slopes of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import REFERENCES, SLOPES

CLAMPED_AT = 7.0
"""Where clamped_swiglu's gate ends above, and its other factor on both sides."""


class Gate(NamedTuple):
    """value(gate)·factor(up)."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]
    factor_slope: Callable[[Tensor], Tensor]

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """The gated product."""
        return self.value(gate) * self.factor(up)

    def gradients(self, gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Its gradients to gate and up."""
        return gradient * self.factor(up) * self.slope(gate), gradient * self.factor_slope(up) * self.value(gate)


def _clamped_value(gate: Tensor) -> Tensor:
    return REFERENCES["quick_gelu"](gate.clamp(max=CLAMPED_AT))


def _clamped_slope(gate: Tensor) -> Tensor:
    return torch.where(gate > CLAMPED_AT, 0, SLOPES["quick_gelu"](gate.clamp(max=CLAMPED_AT)))


def _clamped_factor(up: Tensor) -> Tensor:
    return up.clamp(-CLAMPED_AT, CLAMPED_AT) + 1


def _clamped_factor_slope(up: Tensor) -> Tensor:
    return (up.abs() <= CLAMPED_AT).to(up.dtype)


GATES = {name: Gate(REFERENCES[name], SLOPES[name], lambda up: up, torch.ones_like) for name in SLOPES} | {
    "clamped_swiglu": Gate(_clamped_value, _clamped_slope, _clamped_factor, _clamped_factor_slope)
}
"""Every gate: one of each pointwise function, and gpt-oss's clamped SwiGLU."""
