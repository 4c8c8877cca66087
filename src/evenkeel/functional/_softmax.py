"""The softmax family: exact to a few units in the last place of float32 at any length, in one or two passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import UsageError
from ..kernels import cpu
from ._dtypes import computing_dtype, widened
from ._operators import batch_first, is_differentiated, operator

COLDEST, HOTTEST = 1e-30, 1e30  # within these float32 holds log2(e)/T
_LEAST_LOG = -1e30  # stands for log 0 beside a weight of 0


class SoftmaxStatistics(NamedTuple):
    """What a softmax is like; every field has the logits' shape without `dim`."""

    logsumexp: Tensor
    """log Σ e^(x/T), in nats."""
    entropy: Tensor
    """−Σ p log p, in nats."""
    participation: Tensor
    """1 / Σ p²: how many elements share the weight, from 1 to their number."""


def _shifted(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """((x − max)/T, max), in the dtype to compute in; 0 for the maximum itself, +inf included."""
    x = widened(logits)
    if x.shape[-1] == 0:
        return x, x.new_full((*x.shape[:-1], 1), -torch.inf)
    top = x.amax(-1, keepdim=True)
    above = torch.where(top == -torch.inf, 0, top)
    return torch.where(x == above, 0, x - above) / temperature, top


def _softmax_in_torch(logits: Tensor, temperature: float) -> Tensor:
    weights = _shifted(logits, temperature)[0].exp()
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1)).to(logits.dtype).contiguous()


def _log_softmax_in_torch(logits: Tensor, temperature: float) -> Tensor:
    shifted, _ = _shifted(logits, temperature)
    total = shifted.exp().sum(-1, keepdim=True).clamp(min=1)  # below 1 only where nothing is visible
    return (shifted - total.log()).to(logits.dtype).contiguous()


def _logsumexp_in_torch(logits: Tensor, temperature: float) -> Tensor:
    shifted, top = _shifted(logits, temperature)
    return (top.squeeze(-1) / temperature + shifted.exp().sum(-1).clamp(min=1).log()).to(logits.dtype)


def _statistics_in_torch(logits: Tensor, temperature: float) -> Tensor:
    shifted, top = _shifted(logits, temperature)
    weights = shifted.exp()
    total = weights.sum(-1)
    some = total.clamp(min=1)
    weighted = torch.where(weights > 0, weights * shifted, 0).sum(-1)
    entropy = (some.log() - weighted / some).clamp(min=0)
    participation = total.square() / weights.square().sum(-1).clamp(min=1)
    return torch.stack((top.squeeze(-1) / temperature + some.log(), entropy, participation), -1)


def _softmax_backward_in_torch(weights: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    p, g = widened(weights), widened(gradient)
    return (p * (g - (p * g).sum(-1, keepdim=True)) / temperature).to(weights.dtype).contiguous()


def _log_softmax_backward_in_torch(logs: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    y, g = widened(logs), widened(gradient)
    return ((g - y.exp() * g.sum(-1, keepdim=True)) / temperature).to(logs.dtype).contiguous()


def _empty_like(logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _empty_rows(logits: Tensor, temperature: float) -> Tensor:
    return logits.new_empty(logits.shape[:-1])


def _empty_statistics(logits: Tensor, temperature: float) -> Tensor:
    return logits.new_empty((*logits.shape[:-1], 3), dtype=computing_dtype(logits))


def _in_rows(x: Tensor) -> Tensor:
    """(rows, V), contiguous."""
    x = x.contiguous()
    return x if x.dim() == 2 else x.view(math.prod(x.shape[:-1]), x.shape[-1])


def _row_operator(
    schema: str, kernel: str, composite: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """An operator over the last dimension of its tensors; `kernel` is its name in kernels/cpu/softmax.py."""

    def on_cpu(*arguments: Any) -> Tensor:
        *tensors, temperature = arguments
        if not cpu.serves(*tensors):
            return composite(*arguments)
        out = fake(*arguments)
        if not COLDEST <= temperature <= HOTTEST:
            return composite(*(item.double() for item in tensors), temperature).to(out.dtype)
        from ..kernels.cpu import softmax as kernels

        rows = [_in_rows(item) for item in tensors]
        results = out.view(rows[0].shape[0], *out.shape[tensors[0].dim() - 1 :]) if tensors[0].dim() != 2 else out
        getattr(kernels, kernel)(*rows, results, temperature)
        return out

    vmap = batch_first(schema.partition("(")[0])
    return operator(schema, cpu=on_cpu, composite=composite, fake=fake, vmap=vmap)


_softmax = _row_operator(
    "softmax(Tensor logits, float temperature) -> Tensor", "softmax", _softmax_in_torch, _empty_like
)
_log_softmax = _row_operator(
    "log_softmax(Tensor logits, float temperature) -> Tensor", "log_softmax", _log_softmax_in_torch, _empty_like
)
_logsumexp = _row_operator(
    "logsumexp(Tensor logits, float temperature) -> Tensor", "logsumexp", _logsumexp_in_torch, _empty_rows
)
_statistics = _row_operator(
    "softmax_statistics(Tensor logits, float temperature) -> Tensor",
    "statistics",
    _statistics_in_torch,
    _empty_statistics,
)
_softmax_backward = _row_operator(
    "softmax_backward(Tensor weights, Tensor gradient, float temperature) -> Tensor",
    "softmax_backward",
    _softmax_backward_in_torch,
    _empty_like,
)
_log_softmax_backward = _row_operator(
    "log_softmax_backward(Tensor logs, Tensor gradient, float temperature) -> Tensor",
    "log_softmax_backward",
    _log_softmax_backward_in_torch,
    _empty_like,
)


class _Softmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, temperature: float) -> Tensor:
        return _softmax(logits, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.temperature = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _SoftmaxBackward.apply(ctx.saved_tensors[0], gradients[0], ctx.temperature), None


class _SoftmaxBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, gradient: Tensor, temperature: float) -> Tensor:
        return _softmax_backward(weights, gradient, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.temperature = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (p, g), second = ctx.saved_tensors, gradients[0]
        mean = (p * g).sum(-1, keepdim=True)
        to_weights = (second * (g - mean) - g * (second * p).sum(-1, keepdim=True)) / ctx.temperature
        return to_weights, _SoftmaxBackward.apply(p, second, ctx.temperature), None


class _LogSoftmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, temperature: float) -> Tensor:
        return _log_softmax(logits, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.temperature = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _LogSoftmaxBackward.apply(ctx.saved_tensors[0], gradients[0], ctx.temperature), None


class _LogSoftmaxBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logs: Tensor, gradient: Tensor, temperature: float) -> Tensor:
        return _log_softmax_backward(logs, gradient, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.temperature = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (logs, g), second = ctx.saved_tensors, gradients[0]
        p = logs.exp()
        to_logs = -p * g.sum(-1, keepdim=True) * second / ctx.temperature
        to_gradient = (second - (p * second).sum(-1, keepdim=True)) / ctx.temperature
        return to_logs, to_gradient, None


class _LogSumExp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, temperature: float) -> Tensor:
        return _logsumexp(logits, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.temperature = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weights = _Softmax.apply(ctx.saved_tensors[0], ctx.temperature)
        return gradients[0].unsqueeze(-1) * weights / ctx.temperature, None


class _Statistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, temperature: float) -> Tensor:
        return _statistics(logits, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.temperature = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, statistics = ctx.saved_tensors
        _, entropy, participation = statistics.unsqueeze(-2).unbind(-1)
        to_logsumexp, to_entropy, to_participation = gradients[0].unsqueeze(-2).unbind(-1)
        x = widened(logits)
        p = _Softmax.apply(x, ctx.temperature)
        logs = _LogSoftmax.apply(x, ctx.temperature).clamp(min=_LEAST_LOG)
        slope = (
            to_logsumexp
            - to_entropy * (logs + entropy)
            - 2 * to_participation * participation * (participation * p - 1)
        )
        return (p * slope / ctx.temperature).to(logits.dtype), None


def _visible_rows(logits: Tensor, dim: int, temperature: float, mask: Tensor | None) -> Tensor:
    """The logits with `dim` last and −inf where hidden, once the call is known to be sound."""
    if not logits.is_floating_point():
        raise UsageError(f"logits must be a floating-point tensor, not {logits.dtype}; convert with logits.float()")
    if not -logits.dim() <= dim < logits.dim():
        raise UsageError(f"dim is {dim}, but logits have shape {tuple(logits.shape)}; give one of their dimensions")
    check_temperature(temperature)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise UsageError(
                f"mask has dtype {mask.dtype}; give a bool tensor that is True where an element is visible"
            )
        if not _broadcasts(mask.shape, logits.shape):
            raise UsageError(
                f"mask has shape {tuple(mask.shape)} and logits {tuple(logits.shape)}; it must broadcast to them"
            )
        logits = torch.where(mask, logits, -torch.inf)
    return _moved(logits, dim, -1)


def _moved(x: Tensor, source: int, target: int) -> Tensor:
    return x if source == target else x.movedim(source, target)


def _along(
    function: type[torch.autograd.Function],
    alone: Callable[..., Tensor],
    logits: Tensor,
    dim: int,
    temperature: float,
    mask: Tensor | None,
) -> Tensor:
    """A function of rows, or its operator alone where no derivative is wanted."""
    rows = _visible_rows(logits, dim, temperature, mask)
    return function.apply(rows, temperature) if is_differentiated(rows) else alone(rows, temperature)


def check_temperature(temperature: float) -> None:
    """Raises UsageError unless it is a positive finite number."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature is {temperature}; it must be positive and finite")


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Whether a shape broadcasts to the target without enlarging it."""
    return len(shape) <= len(target) and all(
        size in (1, whole) for size, whole in zip(reversed(shape), reversed(target), strict=False)
    )


def softmax(logits: Tensor, dim: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Probabilities p_i = e^(x_i/T) / Σ_j e^(x_j/T) along a dimension.

    logits: float tensor of any shape. temperature: T > 0. mask: bool, broadcastable to logits, True where an element is
    visible; hidden elements and those of −inf get 0, and a row with nothing visible is zeros. +inf takes all the
    weight; several share it equally. The result has the logits' shape and dtype; bfloat16 and float16 are computed in
    float32 and rounded once.
    Raises UsageError for a dim, temperature or mask that does not fit. Source: Bridle 1990.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(softmax, (logits,), logits, dim, temperature=temperature, mask=mask)
    return _moved(_along(_Softmax, _softmax, logits, dim, temperature, mask), -1, dim)


def log_softmax(logits: Tensor, dim: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Log-probabilities y_i = x_i/T − log Σ_j e^(x_j/T) along a dimension.

    logits, temperature, mask and dtypes as in `softmax`. Hidden elements are −inf, and so is all of a row with nothing
    visible; one +inf has log-probability 0, each of n has −log n.
    Raises UsageError as `softmax` does. Source: Bridle 1990.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(log_softmax, (logits,), logits, dim, temperature=temperature, mask=mask)
    return _moved(_along(_LogSoftmax, _log_softmax, logits, dim, temperature, mask), -1, dim)


def logsumexp(logits: Tensor, dim: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """The smooth maximum log Σ_j e^(x_j/T) along a dimension, in nats.

    logits, temperature and mask as in `softmax`. The result has the logits' dtype and their shape without `dim`; it is
    −inf where nothing is visible and +inf where an element is.
    Raises UsageError as `softmax` does. Source: Blanchard, Higham and Higham 2021, for its rounding.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(logsumexp, (logits,), logits, dim, temperature=temperature, mask=mask)
    return _along(_LogSumExp, _logsumexp, logits, dim, temperature, mask)


def softmax_statistics(
    logits: Tensor, dim: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None
) -> SoftmaxStatistics:
    """Log-sum-exp, entropy and participation of softmax(logits/T), from one pass after the maximum's.

    With z = (x − max)/T: entropy = log Σe^z − Σz·e^z / Σe^z, participation = (Σe^z)² / Σe^2z; no probability is stored.
    logits, temperature and mask as in `softmax`. Results are float32 (float64 for float64), of the logits'
    shape without `dim`; where nothing is visible entropy and participation are 0.
    Raises UsageError as `softmax` does. Source: Shannon 1948; the participation ratio of Bell and Dean 1970.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(softmax_statistics, (logits,), logits, dim, temperature=temperature, mask=mask)
    return SoftmaxStatistics(*_along(_Statistics, _statistics, logits, dim, temperature, mask).unbind(-1))


def naive_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """e^(x_i) / Σ_j e^(x_j) as it is written, in the logits' own dtype: unstable, for teaching and for claims.

    logits: float tensor of any shape; the result has its shape and dtype, and is NaN where e^x overflows (above 88.7 in
    float32) or all of it underflows. Source: the definition.
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(naive_softmax, (logits,), logits, dim)
    exponentials = logits.exp()
    return exponentials / exponentials.sum(dim, keepdim=True)
