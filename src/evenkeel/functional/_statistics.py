"""Statistics of tensors that merge: moments about the mean and extremes, and the sizes of values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels import cpu
from ._dtypes import widened
from ._operators import operator

PIECE = 2**17  # elements: what several passes in a row can take from cache

_KEPT = 2**19
_STRIDE = (1 + math.sqrt(5)) / 2  # irrational, so that an even sample meets every channel alike


def by_channel(values: Tensor, channel_dim: int) -> Tensor:
    """(tokens, channels); a tensor of less than two dimensions is one channel."""
    if values.dim() < 2:
        return values.reshape(-1, 1)
    values = values.movedim(channel_dim, -1)
    return values.reshape(-1, values.shape[-1])


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching rows of tensors of one shape (rows, columns), about PIECE elements at a time."""
    rows = max(1, PIECE // max(1, tensors[0].shape[1]))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


@dataclass(frozen=True)
class TensorStatistics:
    """What `tensor_statistics` finds; every field is a float64 tensor, () or (channels,).

    Of no finite values the minimum is inf, the maximum −inf and everything else 0.
    """

    count: Tensor
    """How many values are finite; all that follows down to `maximum` is of these."""
    mean: Tensor
    second: Tensor
    """Σ (x − mean)²."""
    third: Tensor
    """Σ (x − mean)³."""
    fourth: Tensor
    """Σ (x − mean)⁴."""
    minimum: Tensor
    maximum: Tensor
    nan: Tensor
    """How many values are NaN."""
    infinite: Tensor
    """How many values are ±inf."""
    bounds: tuple[float, ...]
    below: Tensor
    """(bounds,) or (bounds, channels): how many finite values are less than each bound."""
    above: Tensor
    """The same for greater."""

    def merged(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of both sets of values together; associative up to rounding.

        Raises UsageError where the two have different bounds.
        Source: the pairwise update of Chan, Golub and LeVeque 1979, extended by Pébay 2008.
        """
        a, b = self, other
        if a.bounds != b.bounds:
            raise UsageError(f"bounds are {a.bounds} here and {b.bounds} there; give both the same to merge them")
        n = a.count + b.count
        d = b.mean - a.mean
        share = d / n.clamp(min=1)
        product = a.count * b.count
        second = a.second + b.second + d * share * product
        third = (
            a.third
            + b.third
            + d * share**2 * product * (a.count - b.count)
            + 3 * share * (a.count * b.second - b.count * a.second)
        )
        fourth = (
            a.fourth
            + b.fourth
            + d * share**3 * product * (a.count**2 - product + b.count**2)
            + 6 * share**2 * (a.count**2 * b.second + b.count**2 * a.second)
            + 4 * share * (a.count * b.third - b.count * a.third)
        )
        return TensorStatistics(
            n,
            a.mean + d * (b.count / n.clamp(min=1)),
            second,
            third,
            fourth,
            torch.minimum(a.minimum, b.minimum),
            torch.maximum(a.maximum, b.maximum),
            a.nan + b.nan,
            a.infinite + b.infinite,
            a.bounds,
            a.below + b.below,
            a.above + b.above,
        )

    @property
    def variance(self) -> Tensor:
        """E[(x − mean)²], of the values as a population."""
        return self.second / self.count.clamp(min=1)

    @property
    def skewness(self) -> Tensor:
        """E[(x − mean)³] / variance^(3/2); 0 where all values are equal."""
        third = self.third / self.count.clamp(min=1)
        return torch.where(self.second <= 0, 0, third / self.variance.sqrt() / self.variance)

    @property
    def kurtosis(self) -> Tensor:
        """E[(x − mean)⁴] / variance²; 3 for a normal distribution, 0 where all values are equal."""
        return torch.where(self.second <= 0, 0, self.fourth / self.second / self.variance)

    @property
    def absolute_maximum(self) -> Tensor:
        """The largest |x|; −inf of no values."""
        return torch.maximum(-self.minimum, self.maximum)

    @property
    def share_below(self) -> Tensor:
        """The share of finite values less than each bound."""
        return self.below / self.count.clamp(min=1)

    @property
    def share_above(self) -> Tensor:
        """The share of finite values greater than each bound."""
        return self.above / self.count.clamp(min=1)


_FIXED = 9  # fields of a table before the counts below and above each bound


def tensor_statistics(x: Tensor, *, channel_dim: int | None = None, bounds: Sequence[float] = ()) -> TensorStatistics:
    """Count, mean, central moments to the fourth, extremes and shares past bounds, in one pass over memory.

    x: any shape and float dtype, with |x| up to 1e75 in float64, else the fourth powers overflow. channel_dim: the
    dimension to keep, or None for all elements together. bounds: numbers in the unit of x; values below and above
    each are counted. NaN and infinities are counted apart and stand in no other number.
    Computed in float64 whatever the dtype, about a mean of its own for each block; nothing here is differentiable.
    Raises UsageError for a channel_dim that x has not, an x that is not floating-point, and a bound that is NaN.
    """
    if not x.is_floating_point():
        raise UsageError(f"x has dtype {x.dtype} and must be floating-point; pass x.float()")
    if channel_dim is not None and not -x.dim() <= channel_dim < x.dim():
        raise UsageError(f"channel_dim is {channel_dim} and x has {x.dim()} dimensions; pass channel_dim=None for all")
    limits = tuple(float(bound) for bound in bounds)
    if any(math.isnan(bound) for bound in limits):
        raise UsageError(f"bounds are {limits}, and nothing lies past NaN; pass numbers or infinities")
    if channel_dim is None:
        values = x.detach().reshape(-1, 1)
    else:
        values = x.detach().movedim(channel_dim, -1)
        values = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
    table = _statistics(values, limits)
    if channel_dim is None:
        table = table.squeeze(-1)
    count, mean, second, third, fourth, minimum, maximum, nan, infinite = table[:_FIXED].unbind()
    below, above = table[_FIXED::2], table[_FIXED + 1 :: 2]
    return TensorStatistics(count, mean, second, third, fourth, minimum, maximum, nan, infinite, limits, below, above)


def _statistics_in_torch(x: Tensor, bounds: Sequence[float]) -> Tensor:
    finite = x.isfinite()
    values = torch.where(finite, x, 0).double()
    count = finite.sum(0).double()
    some = count.clamp(min=1)
    mean = values.sum(0) / some
    centred = torch.where(finite, values - mean, 0)
    rest = centred.sum(0) / some  # what the rounding of the mean left over
    mean, centred = mean + rest, torch.where(finite, centred - rest, 0)
    second, third, fourth = (centred.pow(power).sum(0) for power in (2, 3, 4))
    ends = x.new_tensor([[math.inf], [-math.inf]], dtype=torch.float64).expand(2, x.shape[1])
    low = torch.cat([ends[:1], torch.where(finite, values, math.inf)]).amin(0)
    high = torch.cat([ends[1:], torch.where(finite, values, -math.inf)]).amax(0)
    past = [
        (finite & beyond).sum(0).double() for bound in bounds for beyond in (x.double() < bound, x.double() > bound)
    ]
    nan, infinite = x.isnan().sum(0).double(), x.isinf().sum(0).double()
    return torch.stack([count, mean, second, third, fourth, low, high, nan, infinite, *past])


def _statistics_on_cpu(x: Tensor, bounds: Sequence[float]) -> Tensor:
    if not cpu.serves(x) or x.numel() == 0:
        return _statistics_in_torch(x, bounds)
    from ..kernels.cpu import statistics

    out = _statistics_shape(x, bounds)
    statistics.tensor_statistics(x.contiguous(), tuple(bounds), out)
    return out


def _statistics_shape(x: Tensor, bounds: Sequence[float]) -> Tensor:
    return x.new_empty(_FIXED + 2 * len(bounds), x.shape[1], dtype=torch.float64)


_statistics = operator(
    "tensor_statistics(Tensor x, float[] bounds) -> Tensor",
    cpu=_statistics_on_cpu,
    composite=_statistics_in_torch,
    fake=_statistics_shape,
)


class Magnitudes:
    """The sizes |x| of the values seen: all of them up to 524,288, beyond that an even sample of 262,144 or more.

    What is read from it is exact up to there; a share then has a standard error of at most 0.1%.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._level = 0

    def add(self, values: Tensor) -> None:
        """Take in the elements of a tensor."""
        count, level = values.numel(), self._level
        while _length(count, level) > _KEPT:
            level += 1
        flat = values.detach().reshape(-1)
        self._take_in([widened(_sampled(flat, level)).abs()], level)

    def merge(self, other: Magnitudes) -> None:
        """Take in what another one saw."""
        self._take_in(other._parts, other._level)

    def _take_in(self, parts: list[Tensor], level: int) -> None:
        shared = max(self._level, level)
        own = [_thinned(part, self._level, shared) for part in self._parts]
        self._parts, self._level = own + [_thinned(part, level, shared) for part in parts], shared
        while sum(part.numel() for part in self._parts) > _KEPT:
            self._parts = [_thinned(part, self._level, self._level + 1) for part in self._parts]
            self._level += 1

    def share_above(self, bound: Tensor) -> Tensor:
        """The share of sizes above a bound; NaN where the bound is."""
        values = torch.cat(self._parts)
        return torch.where(bound.isnan(), torch.nan, (values > bound).double().mean())

    def median(self) -> Tensor:
        """The median, the mean of the two middle values for an even count; NaN where any value is."""
        return _median(torch.cat(self._parts))


def _median_in_torch(sizes: Tensor) -> Tensor:
    lower, upper = ((sizes.numel() + shift) // 2 for shift in (1, 2))
    middle = sizes.kthvalue(lower).values.double()
    if upper != lower:
        middle = (middle + sizes.kthvalue(upper).values.double()) / 2
    return torch.where(sizes.isnan().any(), torch.nan, middle)


def _median_on_cpu(sizes: Tensor) -> Tensor:
    if sizes.dtype != torch.float32 or not cpu.serves(sizes):
        return _median_in_torch(sizes)
    from ..kernels.cpu import statistics

    return sizes.new_full((), statistics.median(sizes), dtype=torch.float64)


_median = operator(
    "median_size(Tensor sizes) -> Tensor",
    cpu=_median_on_cpu,
    composite=_median_in_torch,
    fake=lambda sizes: sizes.new_empty((), dtype=torch.float64),
    formats=("float32",),
)


def _length(count: int, level: int) -> int:
    """How many of `count` values a level keeps: all at level 0, one in φ·2^(level − 1) above it."""
    return count if level == 0 else math.ceil(count / (_STRIDE * 2 ** (level - 1)))


def _sampled(values: Tensor, level: int) -> Tensor:
    if level == 0:
        return values.clone()
    length = _length(values.numel(), level)
    places = torch.arange(length, device=values.device, dtype=torch.float64) * (_STRIDE * 2 ** (level - 1))
    return values[places.long()]


def _thinned(values: Tensor, level: int, wanted: int) -> Tensor:
    if level == wanted:
        return values
    if level == 0:
        return _sampled(values, wanted)
    return values[:: 2 ** (wanted - level)].clone()
