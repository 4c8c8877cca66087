"""The loss of an output head of independent sigmoids: each class is a yes or a no of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..kernels import cpu
from ._dtypes import computing_dtype, widened
from ._losses import Reduction, capped, check_call, check_target, reduced
from ._operators import batch_first, operator


def _losses_in_torch(logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
    check_target(target, logits.shape[-1], ignored)
    x, counted = widened(logits) / temperature, target != ignored
    picked = x.gather(-1, torch.where(counted, target, 0).long().unsqueeze(-1)).squeeze(-1)
    return torch.where(counted, -torch_functional.logsigmoid(-x).sum(-1) - picked, 0)


def _losses_on_cpu(logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
    if not cpu.serves(logits) or not logits.shape[-1]:
        return _losses_in_torch(logits, target, temperature, ignored)
    from ..kernels.cpu import sigmoid_losses

    check_target(target, logits.shape[-1], ignored)
    out = _shaped_losses(logits, target)
    rows = logits.contiguous().view(-1, logits.shape[-1])
    sigmoid_losses.losses(rows, _places(target, ignored), out.view(-1), temperature=temperature)
    return torch.where(target != ignored, out, 0)


def _places(target: Tensor, ignored: int) -> Tensor:
    return torch.where(target != ignored, target, 0).long().reshape(-1)


def _shaped_losses(logits: Tensor, target: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(target.shape, dtype=computing_dtype(logits))


def _slopes_by_definition(gradient: Tensor, logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
    """g·(σ(x/T) − [target])/T, differentiable to any order."""
    x, counted = widened(logits), target != ignored
    wanted = torch.zeros_like(x).scatter(-1, torch.where(counted, target, 0).long().unsqueeze(-1), 1.0)
    weights = torch.where(counted, gradient, 0).unsqueeze(-1) / temperature
    return torch.where(weights == 0, 0, weights * ((x / temperature).sigmoid() - wanted)).to(logits.dtype)


def _slopes_in_torch(gradient: Tensor, logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
    return _slopes_by_definition(gradient, logits, target, temperature, ignored).contiguous()


def _slopes_on_cpu(gradient: Tensor, logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
    if not cpu.serves(logits) or not logits.shape[-1]:
        return _slopes_in_torch(gradient, logits, target, temperature, ignored)
    from ..kernels.cpu import sigmoid_losses

    out = _shaped_slopes(gradient, logits)
    rows = logits.contiguous().view(-1, logits.shape[-1])
    weights = torch.where(target != ignored, gradient, 0).double().reshape(-1)
    sigmoid_losses.differentiate(rows, _places(target, ignored), weights, out.view(rows.shape), temperature=temperature)
    return out


def _shaped_slopes(gradient: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_losses = operator(
    "sigmoid_cross_entropy(Tensor logits, Tensor target, float temperature, int ignore_index) -> Tensor",
    cpu=_losses_on_cpu,
    composite=_losses_in_torch,
    fake=_shaped_losses,
    vmap=batch_first("sigmoid_cross_entropy"),
)
_slopes = operator(
    "sigmoid_cross_entropy_backward(Tensor gradient, Tensor logits, Tensor target, float temperature, int ignore_index)"
    " -> Tensor",
    cpu=_slopes_on_cpu,
    composite=_slopes_in_torch,
    fake=_shaped_slopes,
    vmap=batch_first("sigmoid_cross_entropy_backward"),
)


class _SigmoidCrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
        return _losses(logits, target, temperature, ignored)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _SigmoidCrossEntropyBackward.apply(gradients[0], *ctx.saved_tensors, *ctx.options), None, None, None


class _SigmoidCrossEntropyBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, logits: Tensor, target: Tensor, temperature: float, ignored: int) -> Tensor:
        return _slopes(gradient, logits, target, temperature, ignored)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, logits, target = ctx.saved_tensors

        def slopes(gradient: Tensor, logits: Tensor) -> Tensor:
            return _slopes_by_definition(gradient, logits, target, *ctx.options)

        return *torch.func.vjp(slopes, gradient, logits)[1](gradients[0]), None, None, None


def sigmoid_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The negative log-likelihood of "the target and nothing else" under independent sigmoids, in nats per token.

    With s = softcap·tanh(logits/softcap) (or the logits) and z = s/T: loss = Σ_j log(1 + e^(z_j)) − z_target, which is
    the sum over classes of binary cross-entropies.
    logits: float tensor (..., V). target: class numbers (...); a token whose target is ignore_index counts for nothing.
    reduction: "mean" over the tokens that count, "sum", or "none" for (...). The result is float32 (float64 for float64
    logits), the gradient has the logits' dtype. Where no token counts, the mean is 0. Differentiable to any order.
    Raises UsageError for shapes, classes and options that do not fit. Source: Wightman, Touvron and
    Jégou 2021, for classes.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(
            sigmoid_cross_entropy,
            (logits,),
            logits,
            target,
            temperature=temperature,
            softcap=softcap,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    check_call(logits.shape, target, temperature, softcap, reduction)
    losses = _SigmoidCrossEntropy.apply(capped(logits, softcap), target, temperature, ignore_index)
    return reduced(losses, target, ignore_index, reduction)
