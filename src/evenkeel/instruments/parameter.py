"""Trained parameters: the size of weights, of gradients, and of what an optimizer step changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._sums import sizes
from ..schema import SiteKind
from ..tracing.events import Event, ParameterEvent
from ._protocol import Stat


class ParameterInstrument:
    """gradient_rms (before clipping), weight_rms, and update_ratio, the rms of a step's update over the weight's rms.

    No update of a weight of zeros has ratio 0, any other update of one has ratio infinity.
    """

    kind: ClassVar[SiteKind] = "parameter"
    GRADIENT_RMS = Stat("gradient_rms", "1", phase="backward")
    WEIGHT_RMS = Stat("weight_rms", "1")
    UPDATE_RATIO = Stat("update_ratio", "1", phase="update")
    stats: ClassVar[tuple[Stat, ...]] = (GRADIENT_RMS, WEIGHT_RMS, UPDATE_RATIO)

    def __init__(self) -> None:
        self._mean_squares: dict[str, tuple[Tensor, int]] = {}

    def observe(self, event: Event) -> None:
        assert isinstance(event, ParameterEvent)
        for name in ("weight", "gradient", "update"):
            values = getattr(event, name)
            if values is not None:
                self._add(name, sizes(values)[0] / max(1, values.numel()), 1)

    def merge(self, other: ParameterInstrument) -> None:
        for name, (total, count) in other._mean_squares.items():
            self._add(name, total, count)

    def _add(self, name: str, total: Tensor, count: int) -> None:
        if name in self._mean_squares:
            total, count = total + self._mean_squares[name][0], count + self._mean_squares[name][1]
        self._mean_squares[name] = (total, count)

    def read(self) -> Mapping[Stat, Tensor]:
        rms = {name: (total / count).sqrt() for name, (total, count) in self._mean_squares.items()}
        found = {}
        if "gradient" in rms:
            found[self.GRADIENT_RMS] = rms["gradient"]
        if "weight" in rms:
            found[self.WEIGHT_RMS] = rms["weight"]
        if "update" in rms:
            found[self.UPDATE_RATIO] = torch.where(rms["update"] == 0, 0, rms["update"] / rms["weight"])
        return found
