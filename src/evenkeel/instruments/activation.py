"""Activations: what goes in, what comes out, and how much of the gradient gets through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..schema import SiteKind
from ..tracing.events import ActivationEvent, Event
from ._protocol import Stat

_SMALL = 1e-2
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
        x, y = (_by_channel(item, event.channel_dim) for item in (event.input, event.output))
        if self._bound is None:
            grid = torch.linspace(-10, 10, 4001, dtype=x.dtype, device=x.device).reshape(1, -1)
            self._bound = _SMALL * _slope(event.function, grid).abs().amax()
        slope = _by_channel(_slope(event.function, event.input), event.channel_dim)
        size = slope.abs()
        sums = {
            "count": torch.full((), float(x.numel()), dtype=torch.float64, device=x.device),
            "tokens": torch.full((), float(x.shape[0]), dtype=torch.float64, device=x.device),
            "input": x.sum(dtype=torch.float64),
            "input_squares": _squares(x),
            "input_absmax": _absmax(x),
            "output": y.sum(0, dtype=torch.float64),
            "output_squares": y.float().square().sum(0, dtype=torch.float64),
            "output_absmax": _absmax(y),
            "zero": (slope == 0).sum().double(),
            "small": (size < self._bound).sum().double(),
            "slope_squares": _squares(slope),
            "slope_max": size.amax(0),
        }
        self._sums = sums if self._sums is None else _merged(self._sums, sums)

    def merge(self, other: ActivationInstrument) -> None:
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else _merged(self._sums, other._sums)

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
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = function(x)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return slope


def _by_channel(values: Tensor, channel_dim: int) -> Tensor:
    """(tokens, channels)."""
    if values.dim() < 2:
        return values.reshape(-1, 1)
    values = values.movedim(channel_dim, -1)
    return values.reshape(-1, values.shape[-1])


def _squares(values: Tensor) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.linalg.vector_norm(wide, dtype=torch.float64).square()


def _absmax(values: Tensor) -> Tensor:
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high).double()


def _merged(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.maximum(first[name], second[name]) if name in _LARGEST else first[name] + second[name]
        for name in first
    }
