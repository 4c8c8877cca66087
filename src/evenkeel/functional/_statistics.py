"""Statistics of tensors that merge: sums of squares, moments about the mean, and the sizes of values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 2**17  # elements: what several passes in a row can take from cache

_KEPT = 2**19
_STRIDE = (1 + math.sqrt(5)) / 2  # irrational, so that an even sample meets every channel alike


def widened(values: Tensor) -> Tensor:
    """In the dtype to compute in: float64 stays, everything narrower becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


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


def sum_of_squares(values: Tensor) -> Tensor:
    """Σ x² over all elements, in float64."""
    return torch.linalg.vector_norm(widened(values), dtype=torch.float64).square()


def absolute_maximum(values: Tensor) -> Tensor:
    """The largest |x|, in float64; NaN where any element is."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high).double()


class Moments:
    """Count, mean and central moments to the fourth of all values seen, in float64; merging is exact.

    Source: the pairwise update of Chan, Golub and LeVeque 1979, extended by Pébay 2008.
    """

    def __init__(self, count: Tensor, mean: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> None:
        self.count, self.mean, self.second, self.third, self.fourth = count, mean, second, third, fourth

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """The moments of a tensor's elements; bf16 and fp16 are widened to float32, sums are float64."""
        values = widened(values.detach())
        mean = values.mean(dtype=torch.float64)
        centred = values - mean.to(values.dtype)
        square = centred * centred
        shift = centred.sum(dtype=torch.float64) / max(1, values.numel())  # what the rounding of the mean left over
        second = square.sum(dtype=torch.float64)
        third = (square * centred).sum(dtype=torch.float64)
        fourth = square.square_().sum(dtype=torch.float64)
        count = torch.full_like(mean, float(values.numel()))
        about = cls(count, shift, second, third, fourth)._recentred()
        return cls(count, mean, about.second, about.third, about.fourth)

    def _recentred(self) -> Moments:
        """Moments about the mean from moments about a point that lies `mean` below it."""
        n, d = self.count, self.mean
        second = self.second - n * d**2
        third = self.third - 3 * d * self.second + 2 * n * d**3
        fourth = self.fourth - 4 * d * self.third + 6 * d**2 * self.second - 3 * n * d**4
        return Moments(n, d, second, third, fourth)

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of values together."""
        a, b = self, other
        n = a.count + b.count
        d = b.mean - a.mean
        share = d / n.clamp(min=1)
        mean = a.mean + share * b.count
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
        return Moments(n, mean, second, third, fourth)

    @property
    def variance(self) -> Tensor:
        """E[(x − mean)²]."""
        return self.second / self.count

    @property
    def kurtosis(self) -> Tensor:
        """E[(x − mean)⁴] / variance²; 3 for a normal distribution, 0 where all values are equal."""
        return torch.where(self.second == 0, 0, self.fourth * self.count / self.second.square())


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
        values = torch.cat(self._parts)
        lower, upper = ((values.numel() + shift) // 2 for shift in (1, 2))
        middle = values.kthvalue(lower).values.double()
        if upper != lower:
            middle = (middle + values.kthvalue(upper).values.double()) / 2
        return torch.where(values.isnan().any(), torch.nan, middle)


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
