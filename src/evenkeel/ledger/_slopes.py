"""Derivatives of pointwise functions by autograd: their size, their averages, and where they are exactly 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pointwise = Callable[[Tensor], Tensor]

_FINENESS, _FARTHEST = 256, 128


def slope(function: Pointwise, x: Tensor) -> Tensor:
    """f'(x), in the dtype of x, as backpropagation computes it."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def slope_at(function: Pointwise, x: float) -> float:
    """f'(x) in float64."""
    return slope(function, torch.tensor(x, dtype=torch.float64)).item()


def zero_slope_from(function: Pointwise, dtype: torch.dtype, *, sign: int = 1) -> float:
    """The smallest size |x| from which on the slope is exactly 0, to 1/256; infinite where it is not 0 at 128.

    sign: 1 for positive x, −1 for negative.
    """
    sizes = (torch.arange(1, _FARTHEST * _FINENESS + 1, dtype=torch.float64) / _FINENESS).to(dtype)
    alive = slope(function, sign * sizes).nonzero()
    first = 0 if alive.numel() == 0 else int(alive.max()) + 1
    return math.inf if first == sizes.numel() else sizes[first].item()


def normal_mean(function: Pointwise) -> float:
    """E f(Z) for Z ~ N(0, 1), by the midpoint rule on [−12, 12] in float64; a kink at 0 lies between two points."""
    points, farthest = 2**14, 12.0
    x = (torch.arange(points, dtype=torch.float64) + 0.5) * (2 * farthest / points) - farthest
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return (function(x) * density).sum().item() * 2 * farthest / points


def slope_second_moment(function: Pointwise) -> float:
    """E f'(Z)²: by how much a layer of this function scales the energy of a gradient that passes it."""
    return normal_mean(lambda x: slope(function, x) ** 2)


def mean_energy(function: Pointwise) -> float:
    """(E f(Z))² / E f(Z)²: the share of the output's energy that is its constant mean."""
    return normal_mean(function) ** 2 / normal_mean(lambda x: function(x) ** 2)
