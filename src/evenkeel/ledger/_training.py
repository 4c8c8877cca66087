"""Many small networks trained side by side, one for each seed and learning rate, and intervals over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._claim import Measurement
from ._stacks import normal

SEEDS = 8

_STUDENT = 2.3646  # the 97.5% point of Student's t with SEEDS − 1 = 7 degrees of freedom
_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.99, 1e-8
_LONGEST = 1.0


@dataclass(frozen=True)
class Networks:
    """SEEDS networks for each learning rate; every parameter has shape (rates · SEEDS, ...), the seeds inside.

    Networks of one seed start from the same weights and see the same examples, whatever their rate or arm.
    """

    rates: tuple[float, ...]
    parameters: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """How many networks there are."""
        return len(self.rates) * SEEDS

    def for_each(self, examples: Tensor) -> Tensor:
        """(SEEDS, ...) repeated for every learning rate."""
        return examples.repeat(len(self.rates), *(1 for _ in examples.shape[1:]))

    def train(self, losses: Callable[[], Tensor], steps: int) -> None:
        """Adam on one loss per network, gradients clipped to norm 1; a gradient that is not finite counts as 0."""
        rates = torch.tensor(self.rates, dtype=torch.float64).repeat_interleave(SEEDS)
        means = [torch.zeros_like(item) for item in self.parameters]
        squares = [torch.zeros_like(item) for item in self.parameters]
        for step in range(1, steps + 1):
            gradients = _clipped(torch.autograd.grad(losses().sum(), self.parameters))
            for item, gradient, mean, square in zip(self.parameters, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 1 - _MEAN_DECAY)
                square.lerp_(gradient.square(), 1 - _SQUARE_DECAY)
                spread = (square / (1 - _SQUARE_DECAY**step)).sqrt() + _EPSILON
                with torch.no_grad():
                    item -= _per_network(rates, item) * (mean / (1 - _MEAN_DECAY**step)) / spread

    def best(self, losses: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
        """What was found for each seed, (SEEDS,), at the rate whose loss is lowest; NaN is the worst of losses."""
        by_rate = losses.detach().nan_to_num(math.inf).view(-1, SEEDS)
        chosen = by_rate.argmin(0, keepdim=True)
        return tuple(item.detach().view(-1, SEEDS).gather(0, chosen)[0] for item in found)


def networks(rates: tuple[float, ...], *shapes: tuple[int, ...], seed: int = 0) -> Networks:
    """Networks whose parameters have these shapes: matrices (fan in, fan out) are N(0, 1/fan in), biases (n,) are 0."""
    stream = torch.Generator().manual_seed(seed)
    parameters = []
    for shape in shapes:
        if len(shape) == 1:
            start = torch.zeros(SEEDS, 1, *shape, dtype=torch.float64)
        else:
            start = normal(stream, SEEDS, *shape) / math.sqrt(shape[0])
        parameters.append(start.repeat(len(rates), 1, 1).requires_grad_())
    return Networks(rates, tuple(parameters))


def interval(name: str, differences: Tensor, unit: str) -> tuple[Measurement, Measurement, Measurement]:
    """The mean of paired differences over the seeds and its 95% interval by Student's t: `.mean`, `.low`, `.high`."""
    mean = differences.mean().item()
    half = _STUDENT * differences.std().item() / math.sqrt(SEEDS)
    return (
        Measurement(f"{name}.mean", mean, unit),
        Measurement(f"{name}.low", mean - half, unit),
        Measurement(f"{name}.high", mean + half, unit),
    )


def _clipped(gradients: tuple[Tensor, ...]) -> list[Tensor]:
    finite = [torch.nan_to_num(item, 0.0, 0.0, 0.0) for item in gradients]
    norm = torch.stack([item.square().flatten(1).sum(1) for item in finite]).sum(0).sqrt()
    scale = (_LONGEST / norm.clamp_min(_LONGEST)).clamp_max(1.0)
    return [item * _per_network(scale, item) for item in finite]


def _per_network(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in like.shape[1:]))
