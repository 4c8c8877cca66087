"""The residual stream behind each block: its size, its outliers, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional import Sample
from ..schema import SiteKind
from ..tracing.events import Event, GradientEvent, OutputEvent
from ._protocol import Stat


class ResidualInstrument:
    """residual_rms; residual_absmax_ratio, the largest |x| over the median |x|; gradient_rms of the loss by the output."""

    kind: ClassVar[SiteKind] = "residual"
    RMS = Stat("residual_rms", "1")
    ABSMAX_RATIO = Stat("residual_absmax_ratio", "1")
    GRADIENT_RMS = Stat("gradient_rms", "1", phase="backward")
    stats: ClassVar[tuple[Stat, ...]] = (RMS, ABSMAX_RATIO, GRADIENT_RMS)

    def __init__(self) -> None:
        self._sample = Sample()
        self._largest: Tensor | None = None
        self._squares: dict[str, tuple[Tensor, int]] = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent):
            size = event.output.abs()
            self._sample.add(size)
            self._enlarge(size.amax().double())
            self._add("output", _squares(event.output), event.output.numel())
        elif isinstance(event, GradientEvent):
            self._add("gradient", _squares(event.gradient), event.gradient.numel())

    def merge(self, other: ResidualInstrument) -> None:
        self._sample.merge(other._sample)
        if other._largest is not None:
            self._enlarge(other._largest)
        for name, (squares, count) in other._squares.items():
            self._add(name, squares, count)

    def _enlarge(self, largest: Tensor) -> None:
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def _add(self, name: str, squares: Tensor, count: int) -> None:
        if name in self._squares:
            squares, count = squares + self._squares[name][0], count + self._squares[name][1]
        self._squares[name] = (squares, count)

    def read(self) -> Mapping[Stat, Tensor]:
        found = {}
        for name, stat in (("output", self.RMS), ("gradient", self.GRADIENT_RMS)):
            if name in self._squares:
                squares, count = self._squares[name]
                found[stat] = (squares / count).sqrt()
        if self._largest is not None:
            found[self.ABSMAX_RATIO] = self._largest / self._sample.median().double()
        return found


def _squares(values: Tensor) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.linalg.vector_norm(wide, dtype=torch.float64).square()
