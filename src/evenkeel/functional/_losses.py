"""Losses over logits that exist: cross-entropy and independent sigmoids, fused forward and backward."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import UsageError
from ..kernels import cpu
from ._dtypes import computing_dtype, summing_dtype, widened
from ._operators import batch_first, is_differentiated, operator
from ._softmax import COLDEST, HOTTEST, check_temperature, logsumexp, softmax

Reduction = Literal["mean", "sum", "none"]


def check_target(target: Tensor, vocabulary: int, ignored: int) -> None:
    """Raises UsageError for a class that does not exist; only where looking is free."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    wrong = ((target < 0) | (target >= vocabulary)) & (target != ignored)
    if wrong.any():
        raise UsageError(
            f"target holds {target[wrong][0].item()}, but logits have {vocabulary} classes; "
            f"give classes from 0 to {vocabulary - 1}, or ignore_index={ignored} for a token that does not count"
        )


def check_call(
    logits_shape: torch.Size, target: Tensor, temperature: float, softcap: float | None, reduction: Reduction
) -> None:
    """Raises UsageError for a call that cannot be meant; `logits_shape` is (..., V)."""
    check_temperature(temperature)
    if not COLDEST <= temperature <= HOTTEST:
        raise UsageError(f"temperature is {temperature}; losses take one from {COLDEST:g} to {HOTTEST:g}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise UsageError(f"target has dtype {target.dtype}; give class numbers, as target.long()")
    if target.shape != logits_shape[:-1]:
        raise UsageError(
            f"logits have shape {tuple(logits_shape)} and target {tuple(target.shape)}; "
            f"target must have the logits' shape without the classes, which come last: {tuple(logits_shape[:-1])}"
        )
    if softcap is not None and not 0 < softcap < math.inf:
        raise UsageError(f"softcap is {softcap}; it must be positive and finite, or None")
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f'reduction is {reduction!r}; give "mean", "sum" or "none"')


def check_smoothing(label_smoothing: float, z_loss: float) -> None:
    """Raises UsageError for shares outside [0, 1] and for a weight below 0."""
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing is {label_smoothing}; it must lie from 0 to 1")
    if not 0 <= z_loss < math.inf:
        raise UsageError(f"z_loss is {z_loss}; it must be finite and not negative")


def shares(target: Tensor, ignored: int, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """What each token's loss counts for: 0 where ignored, else 1, or 1 over the number that counts for the mean."""
    counted = (target != ignored).to(dtype)
    return counted / counted.sum().clamp(min=1) if reduction == "mean" else counted


def token_losses(
    maxima: Tensor,
    log_totals: Tensor,
    picked: Tensor,
    below: Tensor,
    vocabulary: int,
    options: tuple[float, float, float],
) -> Tensor:
    """A token's loss from what was gathered of its row; where smoothing is 0, `below`, Σ(x − max), is not looked at."""
    temperature, smoothing, z_loss = options
    above = maxima - picked
    if smoothing:
        above = (1 - smoothing) * above - smoothing / vocabulary * below
    losses = above / temperature + log_totals
    return losses + z_loss * (maxima / temperature + log_totals).square() if z_loss else losses


def reduced(losses: Tensor, target: Tensor, ignored: int, reduction: Reduction) -> Tensor:
    """All losses in one, where that is wanted; those of ignored tokens are 0 already."""
    if reduction == "none":
        return losses
    return losses.sum() / (target != ignored).sum().clamp(min=1) if reduction == "mean" else losses.sum()


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap·tanh(logits/softcap), in the dtype to compute in."""
    return logits if softcap is None else softcap * torch.tanh(widened(logits) / softcap)


def _losses_in_torch(
    logits: Tensor, target: Tensor, temperature: float, smoothing: float, z_loss: float, ignored: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_target(target, logits.shape[-1], ignored)
    x, counted = widened(logits), target != ignored
    maxima = x.amax(-1) if x.shape[-1] else x.new_full(target.shape, -torch.inf)
    shift = torch.where(maxima.isfinite(), maxima, 0)
    shifted, maxima = x - shift.unsqueeze(-1), maxima.to(summing_dtype(x))
    log_totals = logsumexp(shifted, temperature=temperature).to(maxima.dtype)
    log_totals = torch.where(maxima.isfinite(), log_totals, 0)
    picked = x.gather(-1, torch.where(counted, target, 0).long().unsqueeze(-1)).squeeze(-1)
    options = (temperature, smoothing, z_loss)
    below = shifted.sum(-1, dtype=maxima.dtype)
    losses = token_losses(maxima, log_totals, picked, below, x.shape[-1], options)
    return torch.where(counted, losses, 0).to(x.dtype), maxima, log_totals


def _losses_on_cpu(
    logits: Tensor, target: Tensor, temperature: float, smoothing: float, z_loss: float, ignored: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not cpu.serves(logits) or not logits.shape[-1]:
        return _losses_in_torch(logits, target, temperature, smoothing, z_loss, ignored)
    from ..kernels.cpu import losses as kernels

    vocabulary = logits.shape[-1]
    check_target(target, vocabulary, ignored)
    maxima, log_totals, below, picked = (logits.new_zeros(target.shape, dtype=torch.float64) for _ in range(4))
    kernels.gather(
        logits.contiguous().view(-1, vocabulary),
        target.long().reshape(-1),
        *(item.view(-1) for item in (maxima, log_totals, below, picked)),
        first=0,
        temperature=temperature,
        smooth=smoothing > 0,
    )
    losses = token_losses(maxima, log_totals, picked, below, vocabulary, (temperature, smoothing, z_loss))
    return torch.where(target != ignored, losses, 0).float(), maxima, log_totals


def _shaped_losses(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    maxima, log_totals = (logits.new_empty(target.shape, dtype=summing_dtype(logits)) for _ in range(2))
    return logits.new_empty(target.shape, dtype=computing_dtype(logits)), maxima, log_totals


def _slopes_by_definition(
    gradient: Tensor, logits: Tensor, target: Tensor, temperature: float, smoothing: float, z_loss: float, ignored: int
) -> Tensor:
    """g·((1 + 2·z_loss·logsumexp)·p − (1 − smoothing)·[target] − smoothing/V)/T, differentiable to any order.

    0 where no class is possible, NaN where a logit is +inf: there the loss is not a number either.
    """
    x, counted = widened(logits), (target != ignored) & ~(logits == -torch.inf).all(-1)
    p = softmax(x, temperature=temperature)
    if z_loss:
        p = p * (1 + 2 * z_loss * logsumexp(x, temperature=temperature)).unsqueeze(-1)
    place = torch.where(counted, target, 0).long().unsqueeze(-1)
    wanted = torch.zeros_like(x).scatter(-1, place, 1 - smoothing) + smoothing / x.shape[-1]
    weights = torch.where(counted, gradient, 0).unsqueeze(-1) / temperature
    weights = torch.where((x == torch.inf).any(-1, keepdim=True) & (weights != 0), torch.nan, weights)
    return torch.where(weights == 0, 0, weights * (p - wanted)).to(logits.dtype)


def _slopes_in_torch(
    gradient: Tensor, logits: Tensor, target: Tensor, maxima: Tensor, log_totals: Tensor, *options: Any
) -> Tensor:
    return _slopes_by_definition(gradient, logits, target, *options).contiguous()


def _slopes_on_cpu(
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
    temperature: float,
    smoothing: float,
    z_loss: float,
    ignored: int,
) -> Tensor:
    if not cpu.serves(logits) or not logits.shape[-1]:
        options = (temperature, smoothing, z_loss, ignored)
        return _slopes_in_torch(gradient, logits, target, maxima, log_totals, *options)
    from ..kernels.cpu import losses as kernels

    out = _shaped_slopes(gradient, logits)
    weights = torch.where(target != ignored, gradient, 0).double()
    kernels.differentiate(
        logits.contiguous().view(-1, logits.shape[-1]),
        target.long().reshape(-1),
        maxima.reshape(-1),
        log_totals.reshape(-1),
        weights.reshape(-1),
        out.view(-1, logits.shape[-1]),
        temperature=temperature,
        smoothing=smoothing,
        z_loss=z_loss,
    )
    return out


def _shaped_slopes(gradient: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_OPTIONS = "float temperature, float label_smoothing, float z_loss, int ignore_index"
_losses = operator(
    f"cross_entropy(Tensor logits, Tensor target, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    cpu=_losses_on_cpu,
    composite=_losses_in_torch,
    fake=_shaped_losses,
    vmap=batch_first("cross_entropy"),
)
_slopes = operator(
    "cross_entropy_backward(Tensor gradient, Tensor logits, Tensor target, Tensor maxima, Tensor log_totals, "
    f"{_OPTIONS}) -> Tensor",
    cpu=_slopes_on_cpu,
    composite=_slopes_in_torch,
    fake=_shaped_slopes,
    vmap=batch_first("cross_entropy_backward"),
)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, temperature: float, smoothing: float, z_loss: float, ignored: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _losses(logits, target, temperature, smoothing, z_loss, ignored)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:2], *output[1:])
        ctx.options = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _CrossEntropyBackward.apply(gradients[0], *ctx.saved_tensors, *ctx.options), *(None,) * 5


class _CrossEntropyBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        logits: Tensor,
        target: Tensor,
        maxima: Tensor,
        log_totals: Tensor,
        temperature: float,
        smoothing: float,
        z_loss: float,
        ignored: int,
    ) -> Tensor:
        return _slopes(gradient, logits, target, maxima, log_totals, temperature, smoothing, z_loss, ignored)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, logits, target = ctx.saved_tensors

        def slopes(gradient: Tensor, logits: Tensor) -> Tensor:
            return _slopes_by_definition(gradient, logits, target, *ctx.options)

        return *torch.func.vjp(slopes, gradient, logits)[1](gradients[0]), *(None,) * 7


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The negative log-likelihood of the target under a softmax, in nats per token.

    With s = softcap·tanh(logits/softcap) (or the logits), z = s/T and L = log Σ_j e^(z_j):
    loss = L − (1 − label_smoothing)·z_target − label_smoothing·mean(z) + z_loss·L².
    logits: float tensor (..., V), −inf where a class is impossible. target: class numbers (...); a token whose target
    is ignore_index counts for nothing. reduction: "mean" over the tokens that count, "sum", or "none" for (...).
    The result is float32 (float64 for float64 logits), the gradient has the logits' dtype. Where no token counts, the
    mean is 0 (torch returns NaN). Differentiable to any order.
    Raises UsageError for shapes, classes and options that do not fit. Source: Szegedy et al. 2016 for the smoothing,
    Chowdhery et al. 2022 (PaLM) for the z-loss, Gemma Team 2024 for the softcap.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(
            cross_entropy,
            (logits,),
            logits,
            target,
            temperature=temperature,
            softcap=softcap,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    check_call(logits.shape, target, temperature, softcap, reduction)
    check_smoothing(label_smoothing, z_loss)
    scores = capped(logits, softcap)
    run = _CrossEntropy.apply if is_differentiated(scores) else _losses
    losses = run(scores, target, temperature, label_smoothing, z_loss, ignore_index)[0]
    return reduced(losses, target, ignore_index, reduction)
