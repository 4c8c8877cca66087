"""Pointwise functions and their slopes by definition: the oracle, and what tracing compares a model's functions with.

Every function takes a tensor of any shape and returns one of the same shape; as an oracle it is called with float64,
in narrower formats and on other devices it is what runs where no kernel does. Formulas are written as in their sources;
where the formula as written cancels (the tails), the equivalent stable form is used and said. In float64 each is then
a product or sum of like signs of functions that torch computes to 4 ulp or better (exp, expm1, log1p, tanh, erfc), of
arguments off by 3 roundings at most, which e^z multiplies by |z|: relative error below 2^-52·(16 + 3·|z|), z the
exponent's argument, |z| < 120 in float32's range; slopes, near their zeros, have that error relative to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..catalogue import Catalogue

Pointwise = Callable[[Tensor], Tensor]

REFERENCES: Catalogue[Pointwise] = Catalogue("pointwise function")
SLOPES: Catalogue[Pointwise] = Catalogue("slope of a pointwise function")
"""f′ of those functions of REFERENCES that evenkeel.functional has; 0 where a kink has no slope, as torch does."""


def _reference(function: Pointwise) -> Pointwise:
    return REFERENCES.add(function.__name__, function)


def _slope(function: Pointwise) -> Pointwise:
    return SLOPES.add(function.__name__.removeprefix("_").removesuffix("_slope"), function)


def _within(x: Tensor) -> Tensor:
    """x within ±750, beyond which e^−|x| is 0 in float64: an infinity then meets no 0."""
    return x.clamp(-750, 750)


@_reference
def identity(x: Tensor) -> Tensor:
    """x."""
    return x.clone()


@_slope
def _identity_slope(x: Tensor) -> Tensor:
    """1; NaN stays NaN."""
    return torch.where(x.isnan(), x, torch.ones_like(x))


@_reference
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), from whichever side does not overflow."""
    small = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + small), small / (1 + small))


@_slope
def _sigmoid_slope(x: Tensor) -> Tensor:
    """σ(x)·σ(−x), which does not cancel as σ(1 − σ) does."""
    return sigmoid(x) * sigmoid(-x)


@_reference
def tanh(x: Tensor) -> Tensor:
    """(e^x − e^-x) / (e^x + e^-x)."""
    return torch.tanh(x)


@_slope
def _tanh_slope(x: Tensor) -> Tensor:
    """1 / cosh², as 4·σ(2x)·σ(−2x)."""
    return 4 * _sigmoid_slope(2 * x)


@_reference
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x <= 0, torch.zeros_like(x), x)


@_slope
def _relu_slope(x: Tensor) -> Tensor:
    """1 where x > 0, else 0."""
    return torch.where(x.isnan(), x, (x > 0).to(x.dtype))


@_reference
def relu2(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    return relu(x) ** 2


@_slope
def _relu2_slope(x: Tensor) -> Tensor:
    """2·max(x, 0)."""
    return 2 * relu(x)


@_reference
def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return relu(x).clamp(max=6)


@_reference
def leaky_relu(x: Tensor) -> Tensor:
    """x where x > 0, else 0.01·x."""
    return torch.where(x > 0, x, 0.01 * x)


@_slope
def _leaky_relu_slope(x: Tensor) -> Tensor:
    """1 where x > 0, else 0.01."""
    return torch.where(x.isnan(), x, torch.where(x > 0, torch.ones_like(x), torch.full_like(x, 0.01)))


@_reference
def elu(x: Tensor) -> Tensor:
    """x where x > 0, else e^x − 1 (Clevert et al. 2016)."""
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


@_slope
def _elu_slope(x: Tensor) -> Tensor:
    """1 where x > 0, else e^x."""
    return torch.where(x > 0, torch.ones_like(x), torch.exp(x.clamp(max=0)))


@_reference
def selu(x: Tensor) -> Tensor:
    """λ·(x where x > 0, else α(e^x − 1)) (Klambauer et al. 2017)."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@_reference
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), as max(x, 0) + log1p(e^-|x|)."""
    return relu(x) + torch.log1p(torch.exp(-x.abs()))


@_slope
def _softplus_slope(x: Tensor) -> Tensor:
    """σ(x)."""
    return sigmoid(x)


@_reference
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


@_reference
def mish(x: Tensor) -> Tensor:
    """x·tanh(softplus(x)) (Misra 2019)."""
    return x.clamp(min=-750) * torch.tanh(softplus(x))


@_slope
def _mish_slope(x: Tensor) -> Tensor:
    """tanh(p) + x·σ(x)·(1 − tanh²(p)), p = softplus(x)."""
    x = _within(x)
    p = softplus(x)
    return torch.tanh(p) + x * sigmoid(x) * _tanh_slope(p)


@_reference
def gelu(x: Tensor) -> Tensor:
    """x·P(Z ≤ x), as x/2·erfc(−x/√2) (Hendrycks and Gimpel 2016)."""
    return 0.5 * x.clamp(min=-750) * torch.special.erfc(-x / math.sqrt(2))


@_slope
def _gelu_slope(x: Tensor) -> Tensor:
    """P(Z ≤ x) + x·e^(−x²/2)/√(2π)."""
    x = _within(x)
    return 0.5 * torch.special.erfc(-x / math.sqrt(2)) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@_reference
def gelu_tanh(x: Tensor) -> Tensor:
    """x/2·(1 + tanh(√(2/π)(x + 0.044715 x³))), as x·σ(2·that argument) (Hendrycks and Gimpel 2016)."""
    return x.clamp(min=-750) * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@_slope
def _gelu_tanh_slope(x: Tensor) -> Tensor:
    """σ(z) + x·z′·σ(z)·σ(−z), z = 2√(2/π)(x + 0.044715 x³)."""
    x = _within(x)
    factor = 2 * math.sqrt(2 / math.pi)
    z = factor * (x + 0.044715 * x**3)
    return sigmoid(z) + x * factor * (1 + 3 * 0.044715 * x**2) * _sigmoid_slope(z)


@_reference
def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702 x) (Hendrycks and Gimpel 2016)."""
    return x.clamp(min=-750) * sigmoid(1.702 * x)


@_slope
def _quick_gelu_slope(x: Tensor) -> Tensor:
    """σ(z)(1 + z·σ(−z)), z = 1.702 x."""
    return _silu_slope(1.702 * x)


@_reference
def silu(x: Tensor) -> Tensor:
    """x·σ(x) (Elfwing et al. 2017)."""
    return x.clamp(min=-750) * sigmoid(x)


@_slope
def _silu_slope(x: Tensor) -> Tensor:
    """σ(x)(1 + x·σ(−x))."""
    x = _within(x)
    return sigmoid(x) * (1 + x * sigmoid(-x))


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
