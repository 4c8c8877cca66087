"""Statistics of a tensor that merge: moments about the mean, and a bounded sample of values."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 2**16
PIECE = 2**19  # elements that one pass after the other can take from cache


class Moments:
    """Count, mean and central moments to the fourth of all values seen, in float64; merging is exact.

    Source: the pairwise update of Chan, Golub and LeVeque 1979, extended by Pébay 2008.
    """

    def __init__(self, count: Tensor, mean: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> None:
        self.count, self.mean, self.second, self.third, self.fourth = count, mean, second, third, fourth

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """The moments of a tensor's elements; bf16 and fp16 are widened to float32, sums are float64."""
        values = values.detach() if values.dtype == torch.float64 else values.detach().float()
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
        return self.second / self.count

    @property
    def kurtosis(self) -> Tensor:
        """E[(x − mean)⁴] / variance²; 3 for a normal distribution, 0 where all values are equal."""
        return torch.where(self.second > 0, self.fourth * self.count / self.second.square(), 0.0 * self.second)


class Sample:
    """The values seen: all of them up to 65,536 a call, an even sample of that size of a larger tensor.

    What is computed from it is exact for small inputs and has a sampling error of about 0.2% of a share for large ones.
    """

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._weights: list[float] = []

    def add(self, values: Tensor) -> None:
        flat = values.detach().reshape(-1)
        stride = -(-flat.numel() // _SAMPLE)
        stride += 1 - stride % 2  # odd, so that it meets every channel of an even width
        taken = flat[::stride].float() if flat.dtype != torch.float64 else flat[::stride]
        self._values.append(taken.clone())
        self._weights.append(flat.numel() / max(1, taken.numel()))
        self._thin()

    def merge(self, other: Sample) -> None:
        self._values += other._values
        self._weights += other._weights
        self._thin()

    def _thin(self) -> None:
        """Keep every other value of the largest part while there are more than four times the sample's size."""
        while sum(part.numel() for part in self._values) > 4 * _SAMPLE:
            largest = max(range(len(self._values)), key=lambda index: self._values[index].numel())
            self._values[largest] = self._values[largest][::2].clone()
            self._weights[largest] *= 2

    def share_above(self, bound: Tensor) -> Tensor:
        """The share of values above a bound."""
        above = sum(weight * (part > bound).sum() for part, weight in zip(self._values, self._weights, strict=True))
        return above / sum(weight * part.numel() for part, weight in zip(self._values, self._weights, strict=True))

    def median(self) -> Tensor:
        """The median, the mean of the two middle values for an even count."""
        ordered = torch.cat(self._values).sort().values
        count = ordered.numel()
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
