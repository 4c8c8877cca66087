"""Numerics of every module's output: values that are no numbers, and the room left below the dtype's maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._sums import sizes
from ..schema import SiteKind
from ..tracing.events import Event, ExponentialEvent, GradientEvent, InputGradientEvent, OutputEvent
from ._protocol import Stat


class NumericsInstrument:
    """nonfinite: how many NaN and Inf the outputs (forward) and their gradients (backward) hold.

    nonfinite_input: how many a module adds to the gradient of its input; where it has parts, how many that has in all.
    headroom_log2 = log2(largest number of the dtype / largest |output|): doublings until overflow, infinite for zeros.
    Of a softmax spelled out: exponent_max, the largest number to which e is raised, and exp_headroom = ln(largest
    number of the dtype) - exponent_max, nats until that overflows.
    """

    kind: ClassVar[SiteKind] = "module"
    NONFINITE = Stat("nonfinite", "count")
    NONFINITE_GRADIENT = Stat("nonfinite", "count", phase="backward")
    NONFINITE_INPUT = Stat("nonfinite_input", "count", phase="backward")
    HEADROOM = Stat("headroom_log2", "log2")
    EXPONENT_MAX = Stat("exponent_max", "nats")
    EXP_HEADROOM = Stat("exp_headroom", "nats")
    stats: ClassVar[tuple[Stat, ...]] = (
        NONFINITE,
        NONFINITE_GRADIENT,
        NONFINITE_INPUT,
        HEADROOM,
        EXPONENT_MAX,
        EXP_HEADROOM,
    )

    def __init__(self) -> None:
        self._counts: dict[Stat, Tensor] = {}
        self._headroom: Tensor | None = None
        self._exponents: tuple[Tensor, Tensor] | None = None  # the negative of the largest, the headroom

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent) and event.output.numel():
            _, largest, nonfinite = sizes(event.output).unbind()
            self._count(self.NONFINITE, nonfinite)
            self._narrow(math.log2(torch.finfo(event.output.dtype).max) - largest.log2())
        elif isinstance(event, GradientEvent) and event.gradient.numel():
            self._count(self.NONFINITE_GRADIENT, sizes(event.gradient)[2])
        elif isinstance(event, InputGradientEvent) and event.gradient.numel():
            self._count(self.NONFINITE_INPUT, sizes(event.gradient)[2])
        elif isinstance(event, ExponentialEvent) and event.exponents.numel():
            largest = event.exponents.amax().double()
            self._raise(-largest, math.log(torch.finfo(event.dtype).max) - largest)

    def merge(self, other: NumericsInstrument) -> None:
        for stat, count in other._counts.items():
            self._count(stat, count)
        if other._headroom is not None:
            self._narrow(other._headroom)
        if other._exponents is not None:
            self._raise(*other._exponents)

    def _count(self, stat: Stat, count: Tensor) -> None:
        self._counts[stat] = self._counts[stat] + count if stat in self._counts else count

    def _narrow(self, headroom: Tensor) -> None:
        self._headroom = headroom if self._headroom is None else torch.minimum(self._headroom, headroom)

    def _raise(self, lowered: Tensor, headroom: Tensor) -> None:
        if self._exponents is not None:
            lowered, headroom = (
                torch.minimum(*pair) for pair in zip(self._exponents, (lowered, headroom), strict=True)
            )
        self._exponents = lowered, headroom

    def read(self) -> Mapping[Stat, Tensor]:
        found = dict(self._counts)
        if self._headroom is not None:
            found[self.HEADROOM] = self._headroom
        if self._exponents is not None:
            found |= {self.EXPONENT_MAX: -self._exponents[0], self.EXP_HEADROOM: self._exponents[1]}
        return found
