"""Pointwise functions, exact to the last bits of the result, with slopes that are as exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..catalogue import Catalogue
from ..errors import UsageError
from ..facts import FACTS, Facts
from ..kernels import cpu
from ..kernels.cpu._threads import divided
from ..reference.activations import REFERENCES, SLOPES
from ._dtypes import widened_through
from ._operators import batch_first, is_differentiated, operator

Pointwise = Callable[[Tensor], Tensor]

_LEAST = 2**14  # elements worth a thread


@dataclass(frozen=True, slots=True)
class Activation:
    """A pointwise function by name: what layers apply, what instruments recognise, and what is known of it."""

    name: str
    function: Pointwise
    facts: Facts | None = None


ACTIVATIONS: Catalogue[Activation] = Catalogue("activation", entry_point_group="evenkeel.activations")


def register_activation(name: str, function: Pointwise, facts: Facts | None = None) -> Activation:
    """Make a pointwise function of one's own known by name, to layers, gates, instruments and studies.

    function: maps a float tensor of any shape to one of the same shape and dtype, differentiably, each element by
    itself. facts: what is known of it; rules that need Facts leave a function without them alone.
    Raises UsageError if the name is taken.
    """
    known = FACTS[name] if name in FACTS else None  # noqa: SIM401 - a catalogue's get raises
    entry = ACTIVATIONS.add(name, Activation(name, function, facts or known))
    if facts is not None and known is None:
        FACTS.add(name, facts)
    return entry


def _value_in_torch(x: Tensor, name: str) -> Tensor:
    return widened_through(REFERENCES[name], x).contiguous()


def _value_on_cpu(x: Tensor, name: str) -> Tensor:
    if not cpu.serves(x):
        return _value_in_torch(x, name)
    from ..kernels.cpu import activations

    out = _shaped_value(x, name)
    activations.forward(name, x.dtype)(divided(x.numel(), _LEAST), x.contiguous().view(-1), out.view(-1))
    return out


def _shaped_value(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _slope_in_torch(gradient: Tensor, x: Tensor, name: str) -> Tensor:
    return widened_through(lambda gradient, x: gradient * SLOPES[name](x), gradient, x).contiguous()


def _slope_on_cpu(gradient: Tensor, x: Tensor, name: str) -> Tensor:
    if not cpu.serves(gradient, x):
        return _slope_in_torch(gradient, x, name)
    from ..kernels.cpu import activations

    out = _shaped_slope(gradient, x, name)
    flat = (item.contiguous().view(-1) for item in (gradient, x, out))
    activations.backward(name, x.dtype)(divided(x.numel(), _LEAST), *flat)
    return out


def _shaped_slope(gradient: Tensor, x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_value = operator(
    "pointwise(Tensor x, str name) -> Tensor",
    cpu=_value_on_cpu,
    composite=_value_in_torch,
    fake=_shaped_value,
    vmap=batch_first("pointwise"),
)
_times_slope = operator(
    "pointwise_backward(Tensor gradient, Tensor x, str name) -> Tensor",
    cpu=_slope_on_cpu,
    composite=_slope_in_torch,
    fake=_shaped_slope,
    vmap=batch_first("pointwise_backward"),
)


class _Pointwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, name: str) -> Tensor:
        return _value(x, name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _PointwiseBackward.apply(gradients[0], ctx.saved_tensors[0], ctx.name), None


class _PointwiseBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, name: str) -> Tensor:
        return _times_slope(gradient, x, name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.name = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient, x = ctx.saved_tensors
        to_x = _curved(gradients[0] * gradient, x, ctx.name)
        return _PointwiseBackward.apply(gradients[0], x, ctx.name), to_x, None


def _curved(gradient: Tensor, x: Tensor, name: str) -> Tensor:
    """gradient·f″(x), by torch, to any further order."""
    return torch.func.vjp(SLOPES[name], x)[1](gradient)[0]


def _apply(function: Pointwise, x: Tensor) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(function, (x,), x)
    if not x.is_floating_point():
        raise UsageError(f"{function.__name__} takes floating-point tensors, not {x.dtype}; convert with x.float()")
    run = _Pointwise.apply if is_differentiated(x) else _value
    return run(x, function.__name__)


def _activation(function: Pointwise) -> Pointwise:
    ACTIVATIONS.add(function.__name__, Activation(function.__name__, function, FACTS[function.__name__]))
    return function


@_activation
def identity(x: Tensor) -> Tensor:
    """x, unchanged. f(x) = x.

    x: float tensor of any shape; the result has its shape and dtype. Source: by definition.
    """
    return _apply(identity, x)


@_activation
def sigmoid(x: Tensor) -> Tensor:
    """The logistic function. f(x) = 1 / (1 + e^-x); f′ = f(x)·f(−x).

    x: float tensor of any shape; the result has its shape and dtype. Source: Cox 1958.
    """
    return _apply(sigmoid, x)


@_activation
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent. f(x) = (e^x − e^-x) / (e^x + e^-x); f′ = 1 − f².

    x: float tensor of any shape; the result has its shape and dtype. Source: LeCun, Bottou, Orr and Mueller 1998.
    """
    return _apply(tanh, x)


@_activation
def relu(x: Tensor) -> Tensor:
    """The rectifier. f(x) = max(x, 0); f′ = 1 for x > 0, else 0.

    x: float tensor of any shape; the result has its shape and dtype. Source: Nair and Hinton 2010.
    """
    return _apply(relu, x)


@_activation
def relu2(x: Tensor) -> Tensor:
    """The squared rectifier. f(x) = max(x, 0)²; f′ = 2·max(x, 0).

    x: float tensor of any shape; the result has its shape and dtype. Source: So et al. 2021, Primer.
    """
    return _apply(relu2, x)


@_activation
def leaky_relu(x: Tensor) -> Tensor:
    """The rectifier with a slope of 0.01 on the left. f(x) = x for x > 0, else 0.01·x.

    x: float tensor of any shape; the result has its shape and dtype. Source: Maas, Hannun and Ng 2013.
    """
    return _apply(leaky_relu, x)


@_activation
def elu(x: Tensor) -> Tensor:
    """The exponential linear unit with α = 1. f(x) = x for x > 0, else e^x − 1; f′ = 1, else e^x.

    x: float tensor of any shape; the result has its shape and dtype. Source: Clevert, Unterthiner and Hochreiter 2016.
    """
    return _apply(elu, x)


@_activation
def softplus(x: Tensor) -> Tensor:
    """The smooth rectifier. f(x) = log(1 + e^x); f′ = σ(x).

    x: float tensor of any shape; the result has its shape and dtype. Source: Dugas et al. 2001.
    """
    return _apply(softplus, x)


@_activation
def mish(x: Tensor) -> Tensor:
    """x times the tanh of its softplus. f(x) = x·tanh(log(1 + e^x)).

    x: float tensor of any shape; the result has its shape and dtype. Source: Misra 2019.
    """
    return _apply(mish, x)


@_activation
def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit, exact. f(x) = x·P(Z ≤ x), Z ~ N(0, 1); f′ = P(Z ≤ x) + x·e^(−x²/2)/√(2π).

    x: float tensor of any shape; the result has its shape and dtype. Source: Hendrycks and Gimpel 2016.
    """
    return _apply(gelu, x)


@_activation
def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, as GPT-2 and Gemma use it. f(x) = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).

    x: float tensor of any shape; the result has its shape and dtype. Source: Hendrycks and Gimpel 2016.
    """
    return _apply(gelu_tanh, x)


@_activation
def quick_gelu(x: Tensor) -> Tensor:
    """GELU's sigmoid approximation, as CLIP uses it. f(x) = x·σ(1.702·x).

    x: float tensor of any shape; the result has its shape and dtype. Source: Hendrycks and Gimpel 2016.
    """
    return _apply(quick_gelu, x)


@_activation
def silu(x: Tensor) -> Tensor:
    """The sigmoid-weighted linear unit, also called Swish. f(x) = x·σ(x); f′ = σ(x)·(1 + x·σ(−x)).

    x: float tensor of any shape; the result has its shape and dtype. Source: Elfwing, Uchibe and Doya 2017.
    """
    return _apply(silu, x)
