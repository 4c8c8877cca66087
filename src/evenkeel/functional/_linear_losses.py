"""Cross-entropy of an output head without its logits: a chunk of them is made, used and overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..errors import UsageError
from ._dtypes import computing_dtype, summing_dtype
from ._logit_chunks import Head, walk
from ._losses import Reduction, check_call, check_smoothing, shares
from ._operators import is_differentiated, operator


def _losses_alone(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float,
    softcap: float,
    smoothing: float,
    z_loss: float,
    ignored: int,
) -> Tensor:
    options = (temperature, softcap, smoothing, z_loss, ignored)
    return walk(x, Head(weight, bias, options), target, None, [False] * 3)[0]


def _losses_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor,
    needed: list[bool],
    temperature: float,
    softcap: float,
    smoothing: float,
    z_loss: float,
    ignored: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = (temperature, softcap, smoothing, z_loss, ignored)
    losses, gradients = walk(x, Head(weight, bias, options), target, share, needed)
    dtype = _kept_dtype(x)
    to_x, to_weight, to_bias = (x.new_empty(0, dtype=dtype) if item is None else item.to(dtype) for item in gradients)
    return losses, to_x, to_weight, to_bias


def _kept_dtype(x: Tensor) -> torch.dtype:
    """Of gradients that wait for a loss scale: float16 would have rounded away what it is there to save."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def _shaped_losses(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=computing_dtype(x))


def _shaped_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor, needed: Any, *rest: Any
) -> tuple[Tensor, ...]:
    shapes = (
        item.shape if wanted and item is not None else (0,)
        for item, wanted in zip((x, weight, bias), needed, strict=True)
    )
    return _shaped_losses(x), *(x.new_empty(shape, dtype=_kept_dtype(x)) for shape in shapes)


def _slice_by_slice(name: str) -> Callable[..., Any]:
    """The batching rule of an operator that shares nothing between the elements of a batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        found = []
        for number in range(info.batch_size):
            chosen = (
                item.select(dim, number) if isinstance(item, Tensor) and dim is not None else item
                for item, dim in zip(arguments, in_dims, strict=True)
            )
            found.append(getattr(torch.ops.evenkeel, name).default(*chosen))
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(torch.stack(items) for items in zip(*found, strict=True)), (0,) * len(found[0])

    return rule


_OPTIONS = "float temperature, float softcap, float label_smoothing, float z_loss, int ignore_index"
_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor target"
_losses = operator(
    f"linear_cross_entropy({_INPUTS}, {_OPTIONS}) -> Tensor",
    cpu=_losses_alone,
    composite=_losses_alone,
    fake=_shaped_losses,
    vmap=_slice_by_slice("linear_cross_entropy"),
)
_gradients = operator(
    f"linear_cross_entropy_gradients({_INPUTS}, Tensor share, bool[] needed, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_losses_and_gradients,
    composite=_losses_and_gradients,
    fake=_shaped_gradients,
    vmap=_slice_by_slice("linear_cross_entropy_gradients"),
)


def _no_second_order() -> UsageError:
    return UsageError(
        "linear_cross_entropy has first derivatives only; for higher ones use "
        "cross_entropy(torch.nn.functional.linear(x, weight, bias), target)"
    )


class _Reduced(torch.autograd.Function):
    """Σ share·losses, with its gradients computed on the way forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        share: Tensor,
        needed: list[bool],
        temperature: float,
        softcap: float,
        smoothing: float,
        z_loss: float,
        ignored: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        options = (temperature, softcap, smoothing, z_loss, ignored)
        losses, *gradients = _gradients(x, weight, bias, target, share, needed, *options)
        return (losses * share).sum().to(losses.dtype), *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # else backward is given zeros of the weight's size
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.needed, ctx.options = inputs[5], inputs[6:]
        ctx.handed_over = False

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        if factor is None:
            return (None,) * 11
        x, weight, bias, target, share, *ready = ctx.saved_tensors
        if torch.is_grad_enabled() or is_differentiated():
            ready = _Scaled.apply(x, weight, bias, factor, *ready)
        elif ctx.handed_over:
            ready = _Gradients.apply(x, weight, bias, target, share * factor, ctx.needed, *ctx.options)
        else:
            ctx.handed_over = True
            _scale(ready, factor)
            ready = [item.data.to(x.dtype) for item in ready]  # whoever gets them may write to them
        return *_where_needed(ready, ctx.needed), *(None,) * 8


def _scale(gradients: list[Tensor], factor: Tensor) -> None:
    """In place and behind autograd's back: a copy of the weight's gradient would cost as much memory as the weight."""
    if factor.device.type != "cpu" or factor.item() != 1:
        for gradient in gradients:
            gradient.data.mul_(factor)


def _where_needed(gradients: Any, needed: list[bool]) -> Iterator[Tensor | None]:
    return (gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True))


class _Scaled(torch.autograd.Function):
    """Gradients times what comes back; of x, weight and bias too, as autograd must know to refuse a second order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, to_x: Tensor, to_weight: Tensor, to_bias: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple((item * factor).to(x.dtype) for item in (to_x, to_weight, to_bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise _no_second_order()


class _Gradients(torch.autograd.Function):
    """Gradients of Σ share·losses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        share: Tensor,
        needed: list[bool],
        temperature: float,
        softcap: float,
        smoothing: float,
        z_loss: float,
        ignored: int,
    ) -> tuple[Tensor, ...]:
        options = (temperature, softcap, smoothing, z_loss, ignored)
        found = _gradients(x, weight, bias, target, share, needed, *options)[1:]
        return tuple(item.to(x.dtype) for item in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise _no_second_order()


class _PerToken(torch.autograd.Function):
    """The losses; their gradients have to wait for what each token's counts for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        needed: list[bool],
        temperature: float,
        softcap: float,
        smoothing: float,
        z_loss: float,
        ignored: int,
    ) -> Tensor:
        return _losses(x, weight, bias, target, temperature, softcap, smoothing, z_loss, ignored)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.needed, ctx.options = inputs[4], inputs[5:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, target = ctx.saved_tensors
        share = torch.where(target != ctx.options[4], gradients[0], 0)
        found = _Gradients.apply(x, weight, bias, target, share, ctx.needed, *ctx.options)
        return *_where_needed(found, ctx.needed), *(None,) * 7


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """cross_entropy(x Wᵀ + b, target) of an output head, holding 48 MiB of its logits at a time.

    x: float tensor (..., D). weight: (V, D) of x's dtype, or of another under autocast. bias: (V,).
    target: class numbers (...). The other options, the result's dtype and what is ignored as in `cross_entropy`.
    Products and sums are float32 (float64 for float64).
    "mean" and "sum" compute the gradients on the way forward, from the same logits; "none" makes them again on the way
    back, and so does a second backward through a retained graph. First derivatives only.
    Raises UsageError for shapes, classes and options that do not fit, and for a second derivative.
    Source: Wijmans et al. 2024 (Cut Your Losses); Hsu et al. 2024 (Liger) for gradients on the way forward.
    """
    given = tuple(item for item in (x, weight, bias) if item is not None)
    if has_torch_function(given):
        return handle_torch_function(
            linear_cross_entropy,
            given,
            x,
            weight,
            target,
            bias=bias,
            temperature=temperature,
            softcap=softcap,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    x, weight, bias = _as_autocast(x, weight, bias)
    _check_head(x, weight, bias)
    check_call(torch.Size((*x.shape[:-1], weight.shape[0])), target, temperature, softcap, reduction)
    check_smoothing(label_smoothing, z_loss)
    options = (float(temperature), float(softcap or 0), float(label_smoothing), float(z_loss), ignore_index)
    rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    hidden = torch._C._are_functorch_transforms_active()  # a tensor in there does not say what is wanted of it
    needed = [
        item is not None and (hidden or (item.requires_grad and torch.is_grad_enabled())) for item in (x, weight, bias)
    ]
    if reduction == "none":
        return _PerToken.apply(rows, weight, bias, classes, needed, *options).view(target.shape)
    share = shares(classes, ignore_index, reduction, summing_dtype(x))
    if any(needed):
        return _Reduced.apply(rows, weight, bias, classes, share, needed, *options)[0]
    losses = _losses(rows, weight, bias, classes, *options)
    return (losses * share).sum().to(losses.dtype)


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, hidden states and a weight of two formats in the one that a linear layer would take them in."""
    kind = x.device.type
    if x.dtype == weight.dtype or not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check_head(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not x.is_floating_point() or weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise UsageError(f"x has dtype {x.dtype} and weight {weight.dtype}; both (and bias) must be one float dtype")
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise UsageError(f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; give (..., D) and (V, D)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias has shape {tuple(bias.shape)} and weight {tuple(weight.shape)}; give (V,)")
