"""Pointwise functions by definition, in float64: the oracle, and what tracing compares a model's own functions with.

Every function takes a float64 tensor of any shape and returns one of the same shape. Formulas are written as in their
sources; where the formula as written cancels (the tails), the equivalent stable form is used and said.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..catalogue import Catalogue

Pointwise = Callable[[Tensor], Tensor]

REFERENCES: Catalogue[Pointwise] = Catalogue("pointwise function")


def _reference(function: Pointwise) -> Pointwise:
    return REFERENCES.add(function.__name__, function)


@_reference
def identity(x: Tensor) -> Tensor:
    """x."""
    return x.clone()


@_reference
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), from whichever side does not overflow."""
    small = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + small), small / (1 + small))


@_reference
def tanh(x: Tensor) -> Tensor:
    """(e^x − e^-x) / (e^x + e^-x)."""
    return torch.tanh(x)


@_reference
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, torch.zeros_like(x))


@_reference
def relu2(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    return relu(x) ** 2


@_reference
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return relu(x).clamp(max=6)


@_reference
def leaky_relu(x: Tensor) -> Tensor:
    """x where x > 0, else 0.01·x."""
    return torch.where(x > 0, x, 0.01 * x)


@_reference
def elu(x: Tensor) -> Tensor:
    """x where x > 0, else e^x − 1 (Clevert et al. 2016)."""
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


@_reference
def selu(x: Tensor) -> Tensor:
    """λ·(x where x > 0, else α(e^x − 1)) (Klambauer et al. 2017)."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@_reference
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), as max(x, 0) + log1p(e^-|x|)."""
    return relu(x) + torch.log1p(torch.exp(-x.abs()))


@_reference
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


@_reference
def mish(x: Tensor) -> Tensor:
    """x·tanh(softplus(x)) (Misra 2019)."""
    return x * torch.tanh(softplus(x))


@_reference
def gelu(x: Tensor) -> Tensor:
    """x·P(Z ≤ x), as x/2·erfc(−x/√2) (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))


@_reference
def gelu_tanh(x: Tensor) -> Tensor:
    """x/2·(1 + tanh(√(2/π)(x + 0.044715 x³))), as x·σ(2·that argument) (Hendrycks and Gimpel 2016)."""
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@_reference
def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x) (Hendrycks and Gimpel 2016)."""
    return x * sigmoid(1.702 * x)


@_reference
def silu(x: Tensor) -> Tensor:
    """x·σ(x) (Elfwing et al. 2017)."""
    return x * sigmoid(x)


@_reference
def hardsigmoid(x: Tensor) -> Tensor:
    """clamp(x/6 + 1/2, 0, 1)."""
    return (x / 6 + 0.5).clamp(0, 1)


@_reference
def hardswish(x: Tensor) -> Tensor:
    """x·hardsigmoid(x) (Howard et al. 2019)."""
    return x * hardsigmoid(x)


@_reference
def logsigmoid(x: Tensor) -> Tensor:
    """log σ(x) = −softplus(−x)."""
    return -softplus(-x)
