"""The sums that instruments' readings are made of, each from one pass over its tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import cpu
from ._dtypes import widened
from ._operators import operator
from ._statistics import PIECE

TEMPERATURES = tuple(2 ** (power / 6) for power in range(-12, 13))  # 1/4 to 4, a sixth of an octave apart


def in_memory_order(values: Tensor) -> Tensor:
    """All elements, contiguous and in any order; no copy where they lie side by side."""
    if values.is_contiguous():
        return values.view(-1)
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.permute(order).reshape(-1)


def totalled(first: Tensor, second: Tensor, *, largest: tuple[int, ...]) -> Tensor:
    """The sum of two tables of sums; of the rows named, the maximum."""
    total = first + second
    for row in largest:
        total[row] = torch.maximum(first[row], second[row])
    return total


def _sizes_in_torch(x: Tensor) -> Tensor:
    wide = widened(x).reshape(-1)
    squares = torch.linalg.vector_norm(wide, dtype=torch.float64).square()
    low, high = torch.aminmax(wide) if wide.numel() else (wide.sum(), wide.sum())
    finite = [torch.count_nonzero(piece * 0) for piece in wide.split(PIECE)]  # 0·x is NaN for what is not finite
    return torch.stack([squares, torch.maximum(-low, high).double(), torch.stack(finite).sum().double()])


def _sizes_on_cpu(x: Tensor) -> Tensor:
    if not cpu.serves(x):
        return _sizes_in_torch(x)
    from ..kernels.cpu import sums

    out = torch.empty(3, dtype=torch.float64)
    sums.sizes(in_memory_order(x), out)
    return out


sizes = operator(
    "sizes(Tensor x) -> Tensor",
    cpu=_sizes_on_cpu,
    composite=_sizes_in_torch,
    fake=lambda x: x.new_empty(3, dtype=torch.float64),
)
"""Σ x², the largest |x| and how many elements are NaN or infinite, in float64; the first two NaN where any x is."""


def _activation_in_torch(x: Tensor, y: Tensor, slope: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    size = slope.abs()
    of_x, of_y, of_slope = _sizes_in_torch(x), _sizes_in_torch(y), _sizes_in_torch(slope)
    total = x.sum(dtype=torch.float64)
    zero, small = (size == 0).sum().double(), (size < bound).sum().double()
    whole = torch.stack([total, of_x[0], of_x[1], of_y[0], of_y[1], of_slope[0], zero, small])
    return whole, torch.stack([y.sum(0, dtype=torch.float64), size.amax(0).double()])


def _activation_on_cpu(x: Tensor, y: Tensor, slope: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    if not cpu.serves(x, y, slope):
        return _activation_in_torch(x, y, slope, bound)
    from ..kernels.cpu import sums

    whole, channels = _activation_shapes(x, y, slope, bound)
    sums.activation_sums(x.contiguous(), y.contiguous(), slope.contiguous(), bound, whole, channels)
    return whole, channels


def _activation_shapes(x: Tensor, y: Tensor, slope: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(8, dtype=torch.float64), x.new_empty(2, x.shape[1], dtype=torch.float64)


activation_sums = operator(
    "activation_sums(Tensor x, Tensor y, Tensor slope, Tensor bound) -> (Tensor, Tensor)",
    cpu=_activation_on_cpu,
    composite=_activation_in_torch,
    fake=_activation_shapes,
)
"""Of inputs, outputs and slopes (tokens, channels), at least one token, in float64.

First (8,): Σ x, Σ x², max |x|, Σ y², max |y|, Σ slope², how many slopes are 0, how many |slope| lie below the bound.
Second (2, channels): Σ y, max |slope|.
"""


def _logits_in_torch(logits: Tensor, every: int) -> tuple[Tensor, Tensor]:
    rows, classes = logits.shape
    described, heated = _logits_shapes(logits, every)
    step = max(1, PIECE // classes)
    for start in range(0, rows, step):
        wide = widened(logits[start : start + step])
        top, choice = wide.max(-1)
        z = (wide - top.unsqueeze(-1)).clamp(min=-87)  # far below, exponentials are slow, and 0·∞ is NaN
        weights = z.exp()
        columns = choice, wide.amin(-1), top, weights.sum(-1), (weights * z).sum(-1)
        described[start : start + step] = torch.stack([column.double() for column in columns], -1)
    for row in range(0, rows, step * every) if every else ():
        wide = widened(logits[row : row + step * every : every])
        z = wide - wide.amax(-1, keepdim=True)
        totals = [(z / temperature).exp_().sum(-1).double() for temperature in TEMPERATURES]
        heated[row // every : row // every + len(z)] = torch.stack(totals, -1)
    return described, heated


def _logits_on_cpu(logits: Tensor, every: int) -> tuple[Tensor, Tensor]:
    if not cpu.serves(logits) or logits.numel() == 0:
        return _logits_in_torch(logits, every)
    from ..kernels.cpu import logits as kernels

    described, heated = _logits_shapes(logits, every)
    if logits.stride(1) != 1 or logits.stride(0) < logits.shape[1]:
        logits = logits.contiguous()
    kernels.logit_statistics(logits, every, described, heated.zero_())
    return described, heated


def _logits_shapes(logits: Tensor, every: int) -> tuple[Tensor, Tensor]:
    tried = -(-logits.shape[0] // every) if every else 0
    described = logits.new_empty(logits.shape[0], 5, dtype=torch.float64)
    return described, logits.new_empty(tried, len(TEMPERATURES), dtype=torch.float64)


logit_statistics = operator(
    "logit_statistics(Tensor logits, int every) -> (Tensor, Tensor)",
    cpu=_logits_on_cpu,
    composite=_logits_in_torch,
    fake=_logits_shapes,
)
"""Of each row of logits (rows, classes), in float64, with z = logit − the largest logit of the row.

First (rows, 5): the likeliest class, the smallest logit, the largest logit, Σ e^z, Σ z·e^z.
Second (rows / every, 25), of every so many rows (of none for 0): Σ e^(z/T) for T in TEMPERATURES.
"""
