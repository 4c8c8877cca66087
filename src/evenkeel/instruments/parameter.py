"""Trained parameters: the size of weights, of gradients, and of what an optimizer step changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._dtypes import widened
from ..functional._sums import sizes
from ..schema import SiteKind
from ..tracing.events import Event, ParameterEvent
from ._protocol import Stat

_MOST_ELEMENTS = 2**16
_FEWEST_ROWS = 8


class ParameterInstrument:
    """gradient_rms (before clipping), weight_rms, and update_ratio, the rms of a step's update over the weight's rms.

    No update of a weight of zeros has ratio 0, any other update of one has ratio infinity.
    elements: how many it has. Of linear maps also gain = weight_rms * (inputs * outputs)^(1/4), by which independent
    weights change the size of what they are applied to, forward and backward taken together.
    And unevenness: how many times more the mean squares of its rows, or of its columns, vary than those of independent
    draws from the same distribution would: about 1 as drawn, 0 where they are equal by construction, far above once
    a map has learned. Of an even sample of rows, about 2^16 elements; of maps with 8 rows and columns or more.
    Of optimizers: in_optimizer, 1 where one holds the parameter and 0 where none does; its learning_rate, and
    planned_learning_rate, the largest of it and those that its scheduler has set down; and changed_share, of the
    elements that have a gradient the share that a step gave another value (16-bit weights only). moved_share: of a
    sample of up to 4,096 such elements, the share with another value than behind the first measured step.
    """

    kind: ClassVar[SiteKind] = "parameter"
    GRADIENT_RMS = Stat("gradient_rms", "1", phase="backward")
    WEIGHT_RMS = Stat("weight_rms", "1")
    UPDATE_RATIO = Stat("update_ratio", "1", phase="update")
    GAIN = Stat("gain", "1")
    UNEVENNESS = Stat("unevenness", "ratio")
    ELEMENTS = Stat("elements", "count")
    IN_OPTIMIZER = Stat("in_optimizer", "1", phase="update")
    LEARNING_RATE = Stat("learning_rate", "1", phase="update")
    PLANNED_RATE = Stat("planned_learning_rate", "1", phase="update")
    CHANGED_SHARE = Stat("changed_share", "share", phase="update")
    MOVED_SHARE = Stat("moved_share", "share", phase="update")
    stats: ClassVar[tuple[Stat, ...]] = (
        GRADIENT_RMS,
        WEIGHT_RMS,
        UPDATE_RATIO,
        GAIN,
        UNEVENNESS,
        ELEMENTS,
        IN_OPTIMIZER,
        LEARNING_RATE,
        PLANNED_RATE,
        CHANGED_SHARE,
        MOVED_SHARE,
    )

    def __init__(self) -> None:
        self._mean_squares: dict[str, tuple[Tensor, int]] = {}
        self._width = 0.0
        self._elements = 0
        self._unevenness: Tensor | None = None
        self._changed: Tensor | None = None
        self._moved: Tensor | None = None
        self._optimizer: dict[Stat, Tensor] = {}

    def observe(self, event: Event) -> None:
        assert isinstance(event, ParameterEvent)
        for name in ("weight", "gradient", "update"):
            values = getattr(event, name)
            if values is not None:
                self._add(name, sizes(values)[0] / max(1, values.numel()), 1)
        if event.weight is not None:
            self._width, self._elements = event.width, event.weight.numel()
            self._unevenness = _unevenness(event.weight) if event.width else None
        if event.changed is not None:
            self._count(event.changed)
        if event.moved is not None:
            self._moved = event.moved.clone()  # since the same step, so the latest says it all
        if event.optimized is not None:
            self._optimizer[self.IN_OPTIMIZER] = torch.tensor(float(event.optimized))
        if event.learning_rate is not None and event.planned_rate is not None:
            rates = {self.LEARNING_RATE: event.learning_rate, self.PLANNED_RATE: event.planned_rate}
            self._optimizer |= {stat: rate.clone() for stat, rate in rates.items()}  # an optimizer changes its own

    def merge(self, other: ParameterInstrument) -> None:
        for name, (total, count) in other._mean_squares.items():
            self._add(name, total, count)
        if other._elements:
            self._width, self._elements = other._width, other._elements
            self._unevenness = other._unevenness
        if other._changed is not None:
            self._count(other._changed)
        if other._moved is not None:
            self._moved = other._moved
        self._optimizer |= other._optimizer

    def _add(self, name: str, total: Tensor, count: int) -> None:
        if name in self._mean_squares:
            total, count = total + self._mean_squares[name][0], count + self._mean_squares[name][1]
        self._mean_squares[name] = (total, count)

    def _count(self, changed: Tensor) -> None:
        self._changed = changed if self._changed is None else self._changed + changed

    def read(self) -> Mapping[Stat, Tensor]:
        rms = {name: (total / count).sqrt() for name, (total, count) in self._mean_squares.items()}
        found = {}
        if "gradient" in rms:
            found[self.GRADIENT_RMS] = rms["gradient"]
        if "weight" in rms:
            found[self.WEIGHT_RMS] = rms["weight"]
            found[self.ELEMENTS] = torch.full_like(rms["weight"], self._elements)
            if self._width:
                found[self.GAIN] = rms["weight"] * self._width**0.5
            if self._unevenness is not None:
                found[self.UNEVENNESS] = self._unevenness
        if "update" in rms:
            found[self.UPDATE_RATIO] = torch.where(rms["update"] == 0, 0, rms["update"] / rms["weight"])
        if self._changed is not None:
            found[self.CHANGED_SHARE] = self._changed[0] / self._changed[1].clamp(min=1)
        if self._moved is not None:
            found[self.MOVED_SHARE] = self._moved[0] / self._moved[1].clamp(min=1)
        return {**found, **self._optimizer}


def _unevenness(weight: Tensor) -> Tensor | None:
    """The variance of the rows' mean squares, or of the columns', over that of draws from all its elements."""
    rows = weight.reshape(len(weight), -1) if weight.dim() > 3 else weight.reshape(-1, weight.shape[-1])
    rows = rows[:: max(1, min(-(-rows.numel() // _MOST_ELEMENTS), len(rows) // _FEWEST_ROWS))]
    count, width = rows.shape
    if min(count, width) < _FEWEST_ROWS:
        return None
    wide = widened(rows)
    squares = (wide / wide.abs().amax().clamp(min=torch.finfo(wide.dtype).tiny)).square()
    spread = squares.var(unbiased=False)
    found = [squares.mean(1).var() * width]
    if weight.dim() == 2:
        found.append(squares.mean(0).var() * count)
    return torch.where(spread == 0, 0, torch.stack(found).amax() / spread)
