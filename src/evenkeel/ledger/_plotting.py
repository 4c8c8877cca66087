"""What a claim measured, drawn: a bar for each number and, under it, where each bound of the criterion lets it lie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ._claim import Bound, MeasuredClaim, Measurement, Role
from ._drawing import NO, ROLES, VERDICTS_IN_WORDS, YES, interval, wrapped
from ._text import Language, Text, in_language

_WIDTH = 80
_NUMBER = 10
_NARROWEST = 10
_FAR = 1000.0  # what is so many times smaller than the largest shows no bar

_PURE = Text(en="pure numbers", es="números puros", pt="números puros")
_TO = Text(en="to", es="a", pt="a")
_LOGARITHMIC = Text(en="logarithmic", es="logarítmica", pt="logarítmica")
_MISS_COLORS: dict[Role, int] = {"claim": 31, "caveat": 33, "noise": 33}
_MET_COLOR = 32


@dataclass(frozen=True)
class Glyphs:
    """What a plot is drawn with. parts: a cell filled in steps, from empty to full. ends: of an interval, and between.

    words: what stands for signs that the encoding may lack.
    """

    parts: str
    ends: tuple[str, str, str, str]
    words: dict[str, str]

    def fit(self, encoding: str) -> bool:
        """Whether an encoding has all of them."""
        try:
            (self.parts + "".join(self.ends) + "≤≥…").encode(encoding)
        except (LookupError, UnicodeEncodeError):
            return False
        return True


BLOCKS = Glyphs(" ▏▎▍▌▋▊▉█", ("├", "─", "┤", "│"), {})
ASCII = Glyphs(" #", ("[", "-", "]", "|"), {"≤": "<=", "≥": ">=", "…": "..", "−": "-"})


def glyphs_of(encoding: str) -> Glyphs:
    """Block characters where an encoding has them, else ASCII."""
    return BLOCKS if BLOCKS.fit(encoding) else ASCII


@dataclass(frozen=True)
class _Axis:
    """From low to high over some columns, linear or logarithmic; bars start at 0, or at the left end where 0 is not."""

    low: float
    high: float
    logarithmic: bool
    width: int

    def at(self, value: float) -> float:
        """The column of a value, from 0 to the width; what lies outside is put at the nearer end."""
        if value <= self.low or math.isnan(value):
            return 0.0
        if value >= self.high:
            return float(self.width)
        if self.logarithmic:
            return self.width * math.log(value / self.low) / math.log(self.high / self.low)
        return self.width * (value - self.low) / (self.high - self.low)

    @property
    def origin(self) -> float:
        return 0.0 if self.logarithmic else self.at(0.0)


def draw_plots(
    measured: Iterable[MeasuredClaim],
    language: Language,
    width: int | None = None,
    *,
    glyphs: Glyphs = BLOCKS,
    color: bool = False,
) -> str:
    """A plot of each claim's numbers against its bounds, grouped by unit, in at most 80 columns."""
    plots = (
        "\n".join(_plot(item, language, min(width or _WIDTH, _WIDTH), glyphs, color)).translate(
            str.maketrans(glyphs.words)
        )
        for item in measured
    )
    return "\n\n\n".join(plots)


def _plot(item: MeasuredClaim, language: Language, width: int, glyphs: Glyphs, color: bool) -> Iterator[str]:
    yield f"{item.claim.id}  {in_language(VERDICTS_IN_WORDS[item.verdict], language)}"
    yield wrapped(in_language(item.claim.statement, language), width)
    bounds: dict[str, list[Bound]] = defaultdict(list)
    for bound in item.claim.criterion:
        bounds[bound.measurement].append(bound)
    by_unit: dict[str, list[Measurement]] = defaultdict(list)
    for number in item.measurements:
        by_unit[number.unit].append(number)
    labels = [f"  {number.name}" for number in item.measurements]
    labels += [_label(bound, language) for bound in item.claim.criterion]
    margin = min(max(map(len, labels), default=0), width - _NARROWEST - _NUMBER - 4)
    for unit, numbers in by_unit.items():
        bars = width - margin - _NUMBER - 4
        axis = _axis([number.value for number in numbers], [b for n in numbers for b in bounds[n.name]], bars)
        yield ""
        yield _scale(axis, unit, language)
        for number in numbers:
            bar = _bar(axis, number.value, glyphs)
            yield f"{f'  {number.name}':{margin}}  {bar:{bars}}  {number.value:>{_NUMBER}.4g}"
            for bound in bounds[number.name]:
                answer = _answer(bound, bound.met(number.value), language, color)
                yield f"{_label(bound, language):{margin}}  {_segment(axis, bound, glyphs):{bars}}  {answer}"


def _label(bound: Bound, language: Language) -> str:
    return f"    {in_language(ROLES[bound.role], language)} {interval(bound)}"


def _answer(bound: Bound, met: bool, language: Language, color: bool) -> str:
    word = f"{in_language(YES if met else NO, language):>{_NUMBER}}"
    return f"\N{ESCAPE}[{_MET_COLOR if met else _MISS_COLORS[bound.role]}m{word}\N{ESCAPE}[0m" if color else word


def _axis(values: list[float], bounds: list[Bound], width: int) -> _Axis:
    """Wide enough for every finite number and end of a bound; logarithmic where at least half would show no bar."""
    ends = [end for bound in bounds for end in (bound.low, bound.high)]
    finite = [value for value in (*values, *ends) if math.isfinite(value)] or [0.0]
    positive = [value for value in finite if value > 0]
    far = [value for value in positive if value * _FAR < max(positive)]
    if far and min(finite) >= 0 and 2 * len(far) >= len(positive):
        return _Axis(min(positive) / 2, max(positive), True, width)  # below the least, so that it has a bar
    low, high = min(0.0, *finite), max(0.0, *finite)
    return _Axis(low, high if high > low else low + 1, False, width)


def _scale(axis: _Axis, unit: str, language: Language) -> str:
    name = in_language(_PURE, language) if unit == "1" else unit
    span = f"{axis.low:.3g} {in_language(_TO, language)} {axis.high:.3g}"
    return f"{name}: {span}{f', {in_language(_LOGARITHMIC, language)}' if axis.logarithmic else ''}"


def _bar(axis: _Axis, value: float, glyphs: Glyphs) -> str:
    """From the origin to the value; to the right in parts of a cell, to the left in whole ones."""
    start, end = axis.origin, axis.at(value)
    if end < start:
        return " " * round(end) + glyphs.parts[-1] * (round(start) - round(end))
    steps = len(glyphs.parts) - 1
    filled = round((end - round(start)) * steps)
    if filled <= 0:
        return ""
    return " " * round(start) + glyphs.parts[-1] * (filled // steps) + glyphs.parts[filled % steps].strip()


def _segment(axis: _Axis, bound: Bound, glyphs: Glyphs) -> str:
    """Where the value may lie: an end that is infinite runs on to the edge."""
    left, line, right, point = glyphs.ends
    first, last = (min(int(axis.at(end)), axis.width - 1) for end in (bound.low, bound.high))
    if first == last:
        return " " * first + point
    start, stop = (left if math.isfinite(bound.low) else line), (right if math.isfinite(bound.high) else line)
    return " " * first + start + line * (last - first - 1) + stop
