"""Two panels of a figure, a colour for each arm: loss over the learning rate, and held-out loss over steps."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from ...schema import clean_name
from ..comparison import Comparison
from .canvas import CHARACTER, Box, Place, add, clipped, heading, horizontal_axis, line, vertical_axis, write
from .scales import Scale, loss_range
from .wording import Wording

_GAP = 44
_HEIGHT = 216
_LABELS = 54  # px to the left of a panel's data
_TICKS = 6
_SWATCH = 30

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which white paper swallows
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
_DASHES = ("none", "6 3", "2 2.5", "8 3 2 3")

Curves = Mapping[str, Sequence[Sequence[Place]]]
"""The curves of each arm: places of (learning rate or step, loss)."""


def draw_curves(root: Element, wording: Wording, *, left: float, right: float, top: float) -> float:
    """The panels that have data, side by side, and below them which arm is which; the lower end of what was drawn."""
    width = (right - left - _GAP) / 2
    drawn = 0
    for panel in (_Rates, _Steps):
        if curves := panel.curves(wording.comparison):
            box = Box(left + drawn * (width + _GAP) + _LABELS, top + 26, width - _LABELS, _HEIGHT)
            panel(root, wording, curves, box).draw("bc"[drawn])
            drawn += 1
    return _legend(root, wording, left, right, top + 26 + _HEIGHT + 66) if drawn else top - 32


@dataclass(frozen=True)
class _Panel:
    """What both have in common: an axis of losses, and a group for each arm that nothing leaves."""

    root: Element
    wording: Wording
    curves_by_arm: Curves
    box: Box

    def _heading(self, letter: str, title: str, hint: str) -> None:
        heading(self.root, self.box.left - _LABELS, self.box.top - 12, letter, title, hint)

    def _places(self) -> Iterator[Place]:
        return (place for paths in self.curves_by_arm.values() for path in paths for place in path)

    def _up(self, curves: Iterable[Sequence[float]]) -> Scale:
        scale = Scale(*loss_range(curves), self.box.bottom, self.box.top)
        vertical_axis(self.root, self.box, scale, scale.labelled(_TICKS))
        return scale

    def _across(self, scale: Scale, ticks: Sequence[tuple[float, str]], title: str) -> None:
        unit = self.wording.unit
        horizontal_axis(self.root, self.box, scale, ticks, f"{title}; up: loss{', ' * bool(unit)}{unit}")

    def _arms(self) -> Iterator[tuple[str, Element, str, str]]:
        """Name, group, colour and dashes of every arm that has curves."""
        inside = clipped(self.root, self.box)
        for index, name in enumerate(self.wording.comparison.study.names):
            if name in self.curves_by_arm:
                group = add(inside, "g", class_="arm")
                SubElement(group, "title").text = clean_name(name)
                yield name, group, *_style(index)


class _Rates(_Panel):
    """The tuning trials."""

    @staticmethod
    def curves(comparison: Comparison) -> Curves:
        found = {arm.plan.arm.name: _finite(arm.tuned) for arm in comparison.arms}
        return {name: [path] for name, path in found.items() if path}

    def draw(self, letter: str) -> None:
        self._heading(letter, "Loss over learning rate", "ring: the rate of the pairs")
        rates = [rate for rate, _ in self._places()]
        across = Scale(min(rates) / 1.15, max(rates) * 1.15, self.box.left, self.box.right, logarithmic=True)
        up = self._up([loss for path in paths for _, loss in path] for paths in self.curves_by_arm.values())
        self._across(across, across.labelled(_TICKS), "learning rate")
        chosen = {arm.plan.arm.name: arm.learning_rate for arm in self.wording.comparison.arms}
        for name, group, colour, dash in self._arms():
            for path in self.curves_by_arm[name]:
                places = [(across(rate), up(loss)) for rate, loss in path]
                line(group, places, colour, 1.8, stroke_dasharray=dash)
                for (rate, _), (x, y) in zip(path, places, strict=True):
                    add(group, "circle", cx=x, cy=y, r=3, fill=colour)
                    if math.isclose(rate, chosen[name], rel_tol=1e-6):
                        ring = {"fill": "none", "stroke": colour, "stroke_width": 1.6}
                        add(group, "circle", class_="chosen", cx=x, cy=y, r=6.5, **ring)


class _Steps(_Panel):
    """The paired trials; the axis of losses is for what comes after the first half of the steps."""

    @staticmethod
    def curves(comparison: Comparison) -> Curves:
        found: dict[str, list[Sequence[Place]]] = defaultdict(list)
        for item in comparison.results:
            path = _finite((evaluation.step, evaluation.loss) for evaluation in item.evaluations)
            if item.point.role == "paired" and path:
                found[item.point.arm].append(path)
        return found

    def draw(self, letter: str) -> None:
        self._heading(letter, "Held-out loss over steps", "thin: a pair; thick: their median")
        last = max(step for step, _ in self._places())
        across = Scale(0, max(last, 1), self.box.left, self.box.right)
        late = [
            [loss for path in paths for step, loss in path if step >= last / 2] for paths in self.curves_by_arm.values()
        ]
        up = self._up(filter(None, late))
        self._across(across, across.labelled(_TICKS), "step")
        for name, group, colour, dash in self._arms():
            by_step: dict[float, list[float]] = defaultdict(list)
            for path in self.curves_by_arm[name]:
                places = [(across(step), up(loss)) for step, loss in path]
                line(group, places, colour, 0.8, class_="pair", stroke_opacity=0.35)
                for step, loss in path:
                    by_step[step].append(loss)
            median = [(across(step), up(statistics.median(losses))) for step, losses in sorted(by_step.items())]
            line(group, median, colour, 2, class_="median", stroke_dasharray=dash)


def _finite(path: Iterable[Place]) -> list[Place]:
    return [(x, loss) for x, loss in path if math.isfinite(loss)]


def _style(index: int) -> tuple[str, str]:
    """The colour and the dashes of an arm; when the colours are used up they come again with other dashes."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _legend(root: Element, wording: Wording, left: float, right: float, y: float) -> float:
    """Every arm's line and whole name, in as many rows as they need; the lower end."""
    x = left
    for index, name in enumerate(wording.comparison.study.names):
        colour, dash = _style(index)
        text = f"{wording.label(name)}: {clean_name(name)}" if wording.numbered else clean_name(name)
        width = _SWATCH + CHARACTER * len(text) + 26
        if x > left and x + width > right:
            x, y = left, y + 22
        group = add(root, "g", class_="legend")
        line(group, [(x, y - 4.5), (x + _SWATCH - 8, y - 4.5)], colour, 2.4, stroke_dasharray=dash)
        write(group, x + _SWATCH, y, text)
        x += width
    return y
