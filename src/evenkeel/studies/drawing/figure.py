"""A comparison as one self-contained SVG: a forest plot of its contrasts, loss over learning rate and over steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ...report.quantities import count, share
from ...schema import clean_name
from ..comparison import Comparison, Verdict, VerdictWord
from .canvas import (
    BAND,
    CHARACTER,
    FONT,
    INK,
    PAPER,
    SMALL,
    SOFT,
    Box,
    add,
    heading,
    horizontal_axis,
    line,
    minus,
    polygon,
    write,
)
from .curves import draw_curves
from .scales import Scale, difference_range
from .wording import Wording, shown

_WIDTH = 980
_EDGE = 28
_ROW = 38
_TICKS = 6
_COLOURS: Mapping[VerdictWord, str] = {
    "better": "#00805a",
    "worse": "#c2410c",
    "tie": "#0069a8",
    "undecided": "#7a6a2b",
}

_HEADS = ("mean", "95% interval", "P(better)", "verdict")
_SIDES = ("end", "end", "end", "start")


def draw_svg(comparison: Comparison) -> str:
    """The figure. Every arm and every contrast is a group with a title; what was not measured has no panel."""
    wording = Wording(comparison)
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": FONT, "font-size": "13", "fill": INK})
    SubElement(root, "title").text = _title(comparison)
    add(root, "rect", width="100%", height="100%", fill=PAPER)
    write(root, _EDGE, 42, _title(comparison), font_size=20, font_weight="bold")
    write(root, _EDGE, 63, _subtitle(comparison), fill=SOFT)
    bottom = _Forest(root, wording, top=88).draw()
    bottom = draw_curves(root, wording, left=_EDGE, right=_WIDTH - _EDGE, top=bottom + 32)
    height = f"{bottom + _EDGE:g}"
    root.attrib |= {"width": str(_WIDTH), "height": height, "viewBox": f"0 0 {_WIDTH} {height}"}
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _title(comparison: Comparison) -> str:
    arms, pairs = count(len(comparison.arms), "arm"), count(comparison.study.seeds, "paired seed")
    return f"{arms}, {pairs}" + ("" if comparison.finished else " (unfinished)")


def _subtitle(comparison: Comparison) -> str:
    done = len(comparison.results)
    parts = [f"{done} trials" if comparison.finished else f"{done} of {done + comparison.wanted} trials"]
    if comparison.tokens:
        parts.append(f"{comparison.tokens:,} tokens each")
    named = (comparison.study.objective, comparison.data.get("source"), comparison.device, comparison.begun[:10])
    return " · ".join([*parts, *(clean_name(str(part)) for part in named if part)])


@dataclass(frozen=True)
class _Forest:
    """Contrasts below each other: name, interval and every pair's difference on one axis, numbers and verdict."""

    root: Element
    wording: Wording
    top: float

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return self.wording.comparison.verdicts

    def _numbers(self, verdict: Verdict) -> tuple[str, str, str, str]:
        """What stands beside an interval."""
        interval, wording = verdict.interval, self.wording
        if not verdict.differences:
            return "", "no pairs yet", "", verdict.word
        chance = shown(verdict.probability, share)
        return minus(wording.difference(interval.mean)), minus(wording.interval(interval)), chance, verdict.word

    @cached_property
    def widths(self) -> list[float]:
        """Of the columns of numbers, in px."""
        rows = [_HEADS, *(self._numbers(item) for item in self.verdicts)]
        return [CHARACTER * max(map(len, column)) + 12 for column in zip(*rows, strict=True)]

    @cached_property
    def box(self) -> Box:
        names = max(120.0, CHARACTER * max(len(self.wording.contrast(item)) for item in self.verdicts) + 20)
        width = _WIDTH - 2 * _EDGE - names - sum(self.widths)
        return Box(_EDGE + names, self.top + 50, width, _ROW * len(self.verdicts) + 8)

    def _columns(self, texts: Sequence[str]) -> Iterator[tuple[str, float, str]]:
        """Text, place and the side of it that is there, for each column beside the intervals."""
        start = self.box.right
        for text, width, side in zip(texts, self.widths, _SIDES, strict=True):
            yield text, start + (width if side == "end" else 16), side
            start += width

    @cached_property
    def scale(self) -> Scale:
        drawn = ((item.interval.low, item.interval.high, *item.differences.values()) for item in self.verdicts)
        low, high = difference_range(drawn, self.wording.comparison.study.margin)
        return Scale(low, high, self.box.left, self.box.right)

    def draw(self) -> float:
        """Draw it all; its lower end."""
        root, box, scale = self.root, self.box, self.scale
        margin, unit = self.wording.comparison.study.margin, self.wording.unit
        heading(
            root, _EDGE, self.top + 14, "a", "Paired differences", "dot and line: mean and 95% interval; ring: a pair"
        )
        shaded = scale(margin) - scale(-margin)
        add(root, "rect", x=scale(-margin), y=box.top, width=shaded, height=box.height, fill=BAND)
        title = f"loss(first) − loss(second){', ' * bool(unit)}{unit}; shaded: the margin of {margin:g}"
        horizontal_axis(root, box, scale, scale.labelled(_TICKS, "+"), title)
        line(root, [(scale(0), box.top), (scale(0), box.bottom)], INK, 1.2)
        self._head("◂ better", scale(0) - 6, "end")
        self._head("worse ▸", scale(0) + 6, "start")
        for text, x, side in self._columns(_HEADS):
            self._head(text, x, side)
        for row, verdict in enumerate(self.verdicts):
            self._contrast(verdict, box.top + 4 + _ROW * (row + 0.5))
        return box.bottom + 40

    def _head(self, text: str, x: float, side: str) -> None:
        write(self.root, x, self.box.top - 9, text, font_size=SMALL, fill=SOFT, text_anchor=side)

    def _contrast(self, verdict: Verdict, y: float) -> None:
        colour, interval = _COLOURS[verdict.word], verdict.interval
        group = add(self.root, "g", class_="contrast")
        names = f"{clean_name(verdict.arm)} − {clean_name(verdict.against)}"
        SubElement(group, "title").text = f"{names}: {verdict.word}"
        write(group, _EDGE, y + 4.5, self.wording.contrast(verdict))
        for difference in filter(math.isfinite, verdict.differences.values()):
            self._pair(group, difference, y + 9, colour)
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            self._interval(group, verdict, y - 4)
        *numbers, word = self._columns(self._numbers(verdict))
        for text, x, side in numbers:
            write(group, x, y + 4.5, text, text_anchor=side)
        write(group, word[1], y + 4.5, word[0], font_weight="bold", fill=colour)

    def _pair(self, group: Element, difference: float, y: float, colour: str) -> None:
        """A ring, or an arrow at the end of the axis where it lies outside."""
        x = self.scale.nearest(difference)
        if self.scale.holds(difference):
            add(group, "circle", class_="pair", cx=x, cy=y, r=2.6, fill="none", stroke=colour, stroke_opacity=0.6)
        else:
            tip = x + math.copysign(5, difference)
            polygon(group, [(tip, y), (x, y - 3), (x, y + 3)], colour, class_="pair", fill_opacity=0.6)

    def _interval(self, group: Element, verdict: Verdict, y: float) -> None:
        """A line with caps, or with an arrow where it goes on outside."""
        interval, colour, scale = verdict.interval, _COLOURS[verdict.word], self.scale
        low, high = scale.nearest(interval.low), scale.nearest(interval.high)
        line(group, [(low, y), (high, y)], colour, 2.2, class_="interval")
        for end, x, outward in ((interval.low, low, -1), (interval.high, high, 1)):
            if scale.holds(end):
                line(group, [(x, y - 5), (x, y + 5)], colour, 2.2)
            else:
                polygon(group, [(x + 7 * outward, y), (x - 3 * outward, y - 5), (x - 3 * outward, y + 5)], colour)
        if scale.holds(interval.mean):
            x = scale(interval.mean)
            add(group, "circle", class_="mean", cx=x, cy=y, r=5, fill=colour, stroke=PAPER, stroke_width=1.4)
