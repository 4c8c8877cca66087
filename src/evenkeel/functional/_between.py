"""What stands between the nonlinear parts: torch's, but for the small calls of decoding, where torch is slow.

Linear maps of a row or two, RMS norms and rotary positions go to a CPU kernel where nothing is differentiated and
nobody looks on; measured, traced and trained they are torch's own functions. Rotary positions are trained by the kernel
too, which has torch's bits in float32, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function

from ..kernels import cpu
from ._dtypes import widened
from ._operators import is_differentiated, only_the_kernel_sees

_FEW = {torch.float32: 4, torch.bfloat16: 1}
"""Up to how many rows the kernel was quicker than torch's product; `benchmarks/transformer.py` prints by how much."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b.

    x: (..., inputs). weight: (outputs, inputs). bias: (outputs,). The result is (..., outputs) in their one dtype. The
    kernel serves up to 4 rows in float32, one in bfloat16, with sums in float32.
    Raises what torch's linear raises for shapes and dtypes that do not fit.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    if not _are_few(x, weight, bias) or not _in_kernels(*given):
        return F.linear(x, weight, bias)
    from ..kernels.cpu import between

    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    between.products(x, weight, bias, out)
    return out


def _are_few(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1] or weight.numel() == 0:
        return False
    few = 0 < x.numel() <= _FEW.get(x.dtype, 0) * weight.shape[1]
    return few and (bias is None or bias.shape == weight.shape[:1])


def rms_norm(x: Tensor, weight: Tensor, *, epsilon: float = 1e-6, offset: bool = False) -> Tensor:
    """x / √(mean x² + ε) · w over the last dimension.

    x: (..., size). weight: (size,), w or, with offset, w − 1. The result has x's shape and dtype; low precision is
    computed in float32. Raises what torch's rms_norm raises for shapes that do not fit.
    Source: Zhang and Sennrich 2019; offset: Gemma.
    """
    if x.dtype not in _FEW or x.shape[-1:] != weight.shape or x.numel() == 0 or not _in_kernels(x, weight):
        return _rms_norm_in_torch(x, weight, epsilon, offset)
    from ..kernels.cpu import between

    out = torch.empty_like(x)
    between.rms_norms(x, weight, epsilon, offset, out)
    return out


def _rms_norm_in_torch(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> Tensor:
    if not offset and x.dtype == weight.dtype:
        return F.rms_norm(x, weight.shape, weight, epsilon)
    wide = widened(weight)  # 1 + w in a low precision would round the weight away
    return F.rms_norm(widened(x), weight.shape, 1 + wide if offset else wide, epsilon).to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs of channels i and i + n of every head by angles: (a, b) to (a·cos − b·sin, b·cos + a·sin).

    x: (batch, length, heads, head_dim). cosine, sine: (batch or 1, length, n), 2n at most head_dim; channels from 2n on
    stay as they are. The result has x's shape and dtype; angles of a wider dtype, as under autocast, turn in theirs.
    Source: Su et al. 2021, with LLaMA's pairing of the two halves.
    """
    if _is_trained(x, cosine, sine):
        return _Rotation.apply(x, cosine, sine)
    return _rotated(x, cosine, sine)


class _Rotation(torch.autograd.Function):
    """Saves the same whether somebody looks on or not: checkpointing compares a pass with its repetition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return rotate(gradients[0], cosine, -sine), None, None


def _is_trained(x: Tensor, *angles: Tensor) -> bool:
    """Whether x, in float32 on a CPU, is differentiated by autograd: no transform, compiler, trace or subclass."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.dtype == torch.float32
        and x.is_cpu
        and x.requires_grad
        and torch.is_grad_enabled()
        and not any(item.requires_grad or item.dtype != x.dtype for item in angles)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    if x.dtype in _FEW and x.numel() and _in_kernels(x, cosine, sine) and _fit(x, cosine, sine):
        from ..kernels.cpu import between

        out = torch.empty_like(x)
        between.rotations(x, cosine, sine, out)
        return out
    half = cosine.shape[-1]
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat([*turned, rest] if rest.shape[-1] else turned, dim=-1).to(x.dtype)


def _fit(x: Tensor, cosine: Tensor, sine: Tensor) -> bool:
    """Whether angles have the shape that `rotate` asks for: the kernel does not look."""
    shape, angles = x.shape, cosine.shape
    if len(shape) != 4 or len(angles) != 3 or sine.shape != angles:
        return False
    return angles[0] in (1, shape[0]) and angles[1] == shape[1] and 2 * angles[2] <= shape[3]


def _in_kernels(*tensors: Tensor) -> bool:
    """Whether a CPU kernel takes these: one dtype, contiguous, no autocast, no gradient, and nobody who looks on."""
    if has_torch_function(tensors) or is_differentiated(*tensors) or torch.is_autocast_enabled("cpu"):
        return False
    for tensor in tensors:
        if tensor.layout is not torch.strided or not tensor.is_contiguous():
            return False
    return cpu.serves(*tensors) and only_the_kernel_sees(tensors)
