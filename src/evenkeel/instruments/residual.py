"""The residual stream behind each block: its size, its outliers, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import Magnitudes
from ..functional._sums import sizes
from ..schema import SiteKind
from ..tracing.events import Event, GradientEvent, OutputEvent
from ._protocol import Stat


class ResidualInstrument:
    """residual_rms; residual_absmax_ratio, the largest |x| over the median |x|; gradient_rms of the loss by the output.

    A stream of nothing but zeros has ratio 0.
    """

    kind: ClassVar[SiteKind] = "residual"
    RMS = Stat("residual_rms", "1")
    ABSMAX_RATIO = Stat("residual_absmax_ratio", "1")
    GRADIENT_RMS = Stat("gradient_rms", "1", phase="backward")
    stats: ClassVar[tuple[Stat, ...]] = (RMS, ABSMAX_RATIO, GRADIENT_RMS)

    def __init__(self) -> None:
        self._sizes = Magnitudes()
        self._largest: Tensor | None = None
        self._squares: dict[str, tuple[Tensor, int]] = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent) and event.output.numel():
            self._sizes.add(event.output)
            squares, largest, _ = sizes(event.output).unbind()
            self._enlarge(largest)
            self._add("output", squares, event.output.numel())
        elif isinstance(event, GradientEvent) and event.gradient.numel():
            self._add("gradient", sizes(event.gradient)[0], event.gradient.numel())

    def merge(self, other: ResidualInstrument) -> None:
        self._sizes.merge(other._sizes)
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
            found[self.ABSMAX_RATIO] = torch.where(self._largest == 0, 0, self._largest / self._sizes.median())
        return found
