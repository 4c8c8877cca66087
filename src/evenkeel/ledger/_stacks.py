"""Untrained stacks of layers, plain and residual, and what depth does to signals and gradients in them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._slopes import Pointwise

DEPTH, WIDTH = 24, 128

_TOKENS = 256


def plain_gradient_ratio(function: Pointwise) -> float:
    """‖gradient at the input‖ / ‖gradient at the output‖ of h ← f(h W), Xavier weights, in float64."""
    stream = torch.Generator().manual_seed(0)
    source = normal(stream, _TOKENS, WIDTH).requires_grad_()
    hidden = source
    for _ in range(DEPTH):
        hidden = function(hidden @ weight(stream, WIDTH, WIDTH))
    return _gradient_ratio(source, hidden, stream)


class Residual(NamedTuple):
    """What a residual stack did: the gradient that passed it, and the stream's constant part after each block."""

    gradient_ratio: float
    mean_shares: list[float]


def residual_stack(function: Pointwise) -> Residual:
    """h ← h + f(norm(h) W) V with a hidden size of 4 widths, an RMS norm and Xavier weights, in float64.

    mean_shares: ‖E h‖² / E‖h‖² over the tokens, before the first block and after each.
    """
    stream = torch.Generator().manual_seed(0)
    source = normal(stream, _TOKENS, WIDTH).requires_grad_()
    hidden = source
    shares = [_mean_share(hidden)]
    for _ in range(DEPTH):
        first, second = weight(stream, WIDTH, 4 * WIDTH), weight(stream, 4 * WIDTH, WIDTH)
        hidden = hidden + function(rms_norm(hidden) @ first) @ second
        shares.append(_mean_share(hidden))
    return Residual(_gradient_ratio(source, hidden, stream), shares)


def normal(stream: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=stream, dtype=torch.float64)


def weight(stream: torch.Generator, fan_in: int, fan_out: int) -> Tensor:
    """A matrix whose product keeps its input's variance: N(0, 1/fan_in), Xavier's where both sizes are equal."""
    return normal(stream, fan_in, fan_out) / math.sqrt(fan_in)


def rms_norm(hidden: Tensor) -> Tensor:
    """h / √(mean h²) per token."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)


def _mean_share(hidden: Tensor) -> float:
    return (hidden.mean(0).square().sum() / hidden.square().sum(-1).mean()).item()


def _gradient_ratio(source: Tensor, hidden: Tensor, stream: torch.Generator) -> float:
    upstream = normal(stream, *hidden.shape)
    (gradient,) = torch.autograd.grad((hidden * upstream).sum(), source)
    return (gradient.norm() / upstream.norm()).item()
