"""Numerics of every module's output: values that are no numbers, and the room left below the dtype's maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._sums import sizes
from ..schema import Phase, SiteKind
from ..tracing.events import Event, GradientEvent, OutputEvent
from ._protocol import Stat


class NumericsInstrument:
    """nonfinite: how many NaN and Inf the outputs (forward) and their gradients (backward) hold.

    headroom_log2 = log2(largest number of the dtype / largest |output|): doublings until overflow, infinite for zeros.
    """

    kind: ClassVar[SiteKind] = "module"
    NONFINITE = Stat("nonfinite", "count")
    NONFINITE_GRADIENT = Stat("nonfinite", "count", phase="backward")
    HEADROOM = Stat("headroom_log2", "log2")
    stats: ClassVar[tuple[Stat, ...]] = (NONFINITE, NONFINITE_GRADIENT, HEADROOM)

    def __init__(self) -> None:
        self._counts: dict[Phase, Tensor] = {}
        self._headroom: Tensor | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent) and event.output.numel():
            _, largest, nonfinite = sizes(event.output).unbind()
            self._count("forward", nonfinite)
            self._narrow(math.log2(torch.finfo(event.output.dtype).max) - largest.log2())
        elif isinstance(event, GradientEvent) and event.gradient.numel():
            self._count("backward", sizes(event.gradient)[2])

    def merge(self, other: NumericsInstrument) -> None:
        for phase, count in other._counts.items():
            self._count(phase, count)
        if other._headroom is not None:
            self._narrow(other._headroom)

    def _count(self, phase: Phase, count: Tensor) -> None:
        self._counts[phase] = self._counts[phase] + count if phase in self._counts else count

    def _narrow(self, headroom: Tensor) -> None:
        self._headroom = headroom if self._headroom is None else torch.minimum(self._headroom, headroom)

    def read(self) -> Mapping[Stat, Tensor]:
        found = {}
        for stat in (self.NONFINITE, self.NONFINITE_GRADIENT):
            if stat.phase in self._counts:
                found[stat] = self._counts[stat.phase]
        if self._headroom is not None:
            found[self.HEADROOM] = self._headroom
        return found
