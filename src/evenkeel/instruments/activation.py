"""Activations: what goes in, what comes out, and how much of the gradient gets through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import by_channel, in_pieces
from ..functional._sums import activation_sums, totalled
from ..schema import SiteKind
from ..tracing.events import ActivationEvent, Event
from ._protocol import Stat

_SMALL = 1e-2
_GRID = (-10, 10, 4001)  # from, to, points: every activation in use has its largest slope there, or has no largest


class ActivationInstrument:
    """Inputs, outputs and slopes f′ of an elementwise function, f′ by autograd of the model's own implementation.

    mean_energy = Σ_c E[y_c]² / Σ_c E[y_c²] over channels c. zero_gradient_share: f′ exactly 0 in the model's own dtype.
    small_gradient_share: |f′| < 1e-2 of the function's largest |f′| between −10 and 10. dead_channel_share: channels
    whose f′ is 0 for every token seen. tokens: values seen per channel. fan_in: inputs of the linear map that leads
    in, 0 where none was seen.
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
        Stat("channels", "count"),
        Stat("fan_in", "count"),
    )

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor] | None = None
        self._tokens = 0
        self._bound: Tensor | None = None
        self._fan_in = 0

    def observe(self, event: Event) -> None:
        assert isinstance(event, ActivationEvent)
        if event.input.numel() == 0:
            return
        if self._bound is None:
            grid = torch.linspace(*_GRID, dtype=event.input.dtype, device=event.input.device)
            self._bound = _SMALL * _slope(event.function, grid[None]).abs().amax()
        inputs, outputs = (by_channel(item, event.channel_dim) for item in (event.input, event.output))
        for x, y in in_pieces(inputs, outputs):
            self._take_in(*activation_sums(x, y, _slope(event.function, x), self._bound))
        self._tokens += inputs.shape[0]
        self._fan_in = event.fan_in

    def merge(self, other: ActivationInstrument) -> None:
        self._fan_in = self._fan_in or other._fan_in
        if other._sums is not None:
            self._take_in(*other._sums)
            self._tokens += other._tokens

    def _take_in(self, whole: Tensor, channels: Tensor) -> None:
        if self._sums is None:
            self._sums = whole, channels
        else:
            own_whole, own_channels = self._sums
            self._sums = totalled(own_whole, whole, largest=(2, 4)), totalled(own_channels, channels, largest=(1,))

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None:
            return {}
        whole, (output, slope_max) = self._sums
        tokens = self._tokens
        count = tokens * output.numel()
        mean_input, mean_square, _, mean_output_square, _, slope_square, zero, small = (whole / count).unbind()
        energy = (output / tokens).square().mean() / mean_output_square
        values = (
            mean_input,
            mean_square.sqrt(),
            whole[2],
            output.sum() / count,
            mean_output_square.sqrt(),
            whole[4],
            torch.where(mean_output_square == 0, 0, energy),
            zero,
            small,
            (slope_max == 0).double().mean(),
            slope_square.sqrt(),
            *(torch.full_like(mean_input, float(number)) for number in (tokens, output.numel(), self._fan_in)),
        )
        return dict(zip(self.stats, values, strict=True))


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        y = function(x.clone())  # it may write into its argument
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return slope
