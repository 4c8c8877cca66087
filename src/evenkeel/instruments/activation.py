"""Activations: what goes in, what comes out, and how much of the gradient gets through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import absolute_maximum, by_channel, in_pieces, sum_of_squares, widened
from ..schema import SiteKind
from ..tracing.events import ActivationEvent, Event
from ._protocol import Stat

_SMALL = 1e-2
_GRID = (-10, 10, 4001)  # from, to, points: every activation in use has its largest slope there, or has no largest
_LARGEST = frozenset(("input_absmax", "output_absmax", "slope_max"))


class ActivationInstrument:
    """Inputs, outputs and slopes f′ of an elementwise function, f′ by autograd of the model's own implementation.

    mean_energy = Σ_c E[y_c]² / Σ_c E[y_c²] over channels c. zero_gradient_share: f′ exactly 0 in the model's own dtype.
    small_gradient_share: |f′| < 1e-2 of the function's largest |f′| between −10 and 10. dead_channel_share: channels
    whose f′ is 0 for every token seen. tokens: values seen per channel.
    """

    kind: ClassVar[SiteKind] = "activation"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("input_mean", "1"),
        Stat("input_rms", "1"),
        Stat("input_absmax", "1"),
        Stat("output_mean", "1"),
        Stat("output_rms", "1"),
        Stat("output_absmax", "1"),
        Stat("mean_energy", "share"),
        Stat("zero_gradient_share", "share"),
        Stat("small_gradient_share", "share"),
        Stat("dead_channel_share", "share"),
        Stat("slope_rms", "1"),
        Stat("tokens", "count"),
    )

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] | None = None
        self._bound: Tensor | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, ActivationEvent)
        if event.input.numel() == 0:
            return
        if self._bound is None:
            grid = torch.linspace(*_GRID, dtype=event.input.dtype, device=event.input.device)
            self._bound = _SMALL * _slope(event.function, grid[None]).abs().amax()
        for x, y in in_pieces(by_channel(event.input, event.channel_dim), by_channel(event.output, event.channel_dim)):
            self._take_in(_sums(x, y, _slope(event.function, x), self._bound))

    def merge(self, other: ActivationInstrument) -> None:
        if other._sums is not None:
            self._take_in(other._sums)

    def _take_in(self, sums: dict[str, Tensor]) -> None:
        own = self._sums
        self._sums = sums if own is None else {name: _joined(name, own[name], sums[name]) for name in own}

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None:
            return {}
        sums = self._sums
        count, tokens = sums["count"], sums["tokens"]
        output_squares = sums["output_squares"].sum()
        values = (
            sums["input"] / count,
            (sums["input_squares"] / count).sqrt(),
            sums["input_absmax"],
            sums["output"].sum() / count,
            (output_squares / count).sqrt(),
            sums["output_absmax"],
            torch.where(output_squares == 0, 0, (sums["output"] / tokens).square().sum() / (output_squares / tokens)),
            sums["zero"] / count,
            sums["small"] / count,
            (sums["slope_max"] == 0).double().mean(),
            (sums["slope_squares"] / count).sqrt(),
            tokens,
        )
        return dict(zip(self.stats, values, strict=True))


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        y = function(x.clone())  # it may write into its argument
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return slope


def _sums(x: Tensor, y: Tensor, slope: Tensor, bound: Tensor) -> dict[str, Tensor]:
    size = slope.abs()
    return {
        "count": torch.full((), float(x.numel()), dtype=torch.float64, device=x.device),
        "tokens": torch.full((), float(x.shape[0]), dtype=torch.float64, device=x.device),
        "input": x.sum(dtype=torch.float64),
        "input_squares": sum_of_squares(x),
        "input_absmax": absolute_maximum(x),
        "output": y.sum(0, dtype=torch.float64),
        "output_squares": widened(y).square().sum(0, dtype=torch.float64),
        "output_absmax": absolute_maximum(y),
        "zero": (size == 0).sum().double(),
        "small": (size < bound).sum().double(),
        "slope_squares": sum_of_squares(slope),
        "slope_max": size.amax(0),
    }


def _joined(name: str, first: Tensor, second: Tensor) -> Tensor:
    return torch.maximum(first, second) if name in _LARGEST else first + second
