"""Axes: values laid on places, round ticks, and ranges that one outlier does not stretch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_FARTHEST = 8  # times the typical reach; what reaches further stretches no axis and is cut at its end


@dataclass(frozen=True)
class Scale:
    """Values from low to high on places from start to end; logarithmic: equal factors are equally far apart."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; of one outside, on beyond the ends."""
        low, high = self._turned(self.low), self._turned(self.high)
        share = (self._turned(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def nearest(self, value: float) -> float:
        """The place of a value; of one outside, the nearer end."""
        return self(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high

    def ticks(self, most: int) -> list[float]:
        """At most so many round values inside, evenly spaced in what is drawn."""
        return self._factors(most) if self.logarithmic else _steps(self.low, self.high, most)

    def labelled(self, most: int, sign: str = "") -> list[tuple[float, str]]:
        """The ticks with their labels, all with as many decimals as one needs. sign: "+" to show it, but at 0."""
        ticks = self.ticks(most)
        texts = [f"{tick:.6f}".rstrip("0").rstrip(".") if 1e-4 <= abs(tick) < 1e6 else f"{tick:g}" for tick in ticks]
        if self.logarithmic or any("e" in text for text in texts):
            return list(zip(ticks, texts, strict=True))
        decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
        return [(tick, f"{tick:{sign}z,.{decimals}f}" if tick else "0") for tick in ticks]

    def _turned(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def _factors(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for leading in ((1, 2, 5), (1, 3), (1,)):
            found = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in leading]
            found = [value for value in found if self.holds(value)]
            if len(found) <= most:
                break
        return found[:: max(1, math.ceil(len(found) / most))]


def _steps(low: float, high: float, most: int) -> list[float]:
    if not low < high:
        return [low]
    power = math.floor(math.log10((high - low) / most))
    sizes = (float(f"{digit}e{power + further}") for further in (0, 1) for digit in (1, 2, 5))
    step = next(size for size in sizes if math.floor(high / size) - math.ceil(low / size) < most)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def difference_range(contrasts: Iterable[Sequence[float]], margin: float) -> tuple[float, float]:
    """What an axis of differences spans: 0, the margin on both sides, and every contrast that is not far outside.

    contrasts: what is drawn of each, of which one with a number that is not finite is left out.
    """
    finite = [values for values in contrasts if all(map(math.isfinite, values))]
    reaches = [max(map(abs, (*values, margin))) for values in finite]
    farthest = _FARTHEST * statistics.median_low(reaches or [margin])
    shown = [value for values, reach in zip(finite, reaches, strict=True) if reach <= farthest for value in values]
    return _with_room(min(-margin, *shown, margin), max(-margin, *shown, margin))


def loss_range(curves: Iterable[Sequence[float]]) -> tuple[float, float]:
    """What an axis of losses spans: the best of every curve, and all that is not far above most. All are finite."""
    curves = list(curves)
    losses = [loss for curve in curves for loss in curve]
    low = min(losses)
    farthest = max(low + _FARTHEST * (statistics.median_low(losses) - low), *(min(curve) for curve in curves))
    return _with_room(low, max(loss for loss in losses if loss <= farthest))


def _with_room(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.01 * abs(low) or 1.0
    return low - room, high + room
