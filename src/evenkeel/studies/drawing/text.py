"""A comparison as a text report: arms, every seed's loss, contrasts with their intervals, health, what is missing.

Names come from outside: they are drawn as rich `Text`, never as markup, and without their control characters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from ...report.quantities import count, digits, number, share
from ...report.table import STYLES, Cell, Table
from ...report.terminal import WIDTH, drawn, grid, safe
from ...rules import RULES
from ...schema import printable
from ..comparison import VERDICT_WORDS, ArmSummary, Comparison, Verdict, VerdictWord
from .scales import Scale, difference_range
from .wording import MISSING, Wording, counted_where_diverged, duration, shown

VERDICT_STYLES: Mapping[VerdictWord, str] = {"better": "green", "worse": "red", "tie": "cyan", "undecided": "yellow"}

_MOST_STATS = 12
_FEWEST_PLACES = 12  # of a plot of intervals
_PLACES_PER_TICK = 12


@dataclass(frozen=True)
class _Column:
    """One number for each row; group and title stand above it in two lines."""

    group: str
    title: str
    cells: Sequence[Cell]

    @property
    def filled(self) -> bool:
        return any(cell.text not in ("", MISSING) for cell in self.cells)


def draw_comparison(comparison: Comparison, *, width: int | None = None, color: bool = False) -> str:
    """The whole report. width: columns, 80 if None; color: with terminal escapes."""
    width = width or WIDTH
    wording = Wording(comparison)
    sections = [
        _header(wording),
        *_tables("arms", _names(wording), _losses(wording), width),
        *_tables("size and speed", _names(wording), _costs(wording), width),
        *_tables("every seed's loss", _names(wording), _seeds(wording), width),
        _legend(wording),
        *_tables(_contrasts_title(wording), _contrast_names(wording), _contrasts(wording), width),
        _intervals(wording, width),
        _undecided(wording, width),
        *_tables("health at the end, mean over the pairs", *_health(wording), width),
        _findings(wording),
        grid(("note", safe(note)) for note in comparison.notes),
        _closing(wording),
    ]
    return drawn(sections, width, color)


def _header(wording: Wording) -> object:
    comparison, study = wording.comparison, wording.comparison.study
    matched = "" if study.objective else f", {study.match} matched"
    rows = [("study", safe(f"{count(len(study.arms), 'arm')}{matched}; baseline {wording.label(study.baseline)}"))]
    if wording.numbered:
        rows += [(wording.label(name), safe(name)) for name in study.names]
    if study.objective:
        rows.append(("objective", safe(study.objective)))
    if comparison.data:
        rows.append(("data", safe(described(comparison.data))))
    rows.append(("trials", _trials(comparison)))
    if comparison.steps:
        rows.append(("each trial", Text(f"{count(comparison.steps, 'step')}, {count(comparison.tokens, 'token')}")))
    versions = [f"{name} {version}" for name, version in comparison.versions.items()]
    rows.append(("machine", safe(", ".join([comparison.device, *versions]))))
    rows.append(("date", safe(f"{comparison.begun} to {comparison.finished or 'now'}")))
    return grid(rows)


def described(data: Mapping[str, object]) -> str:
    """What was trained on in a line: its source, and the rest by name; of a digest the first digits."""
    parts = [str(data["source"])] if "source" in data else []
    for name, value in data.items():
        if name != "source":
            text = f"{value:,}" if isinstance(value, int) else str(value)
            parts.append(f"{name} {text[:12] if re.fullmatch('[0-9a-f]{24,}', text) else text}")
    return ", ".join(parts)


def _trials(comparison: Comparison) -> Text:
    done, tuning = len(comparison.results), sum(item.point.role == "tuning" for item in comparison.results)
    parts = f"{tuning} to tune learning rates, {done - tuning} in {count(comparison.study.seeds, 'paired seed')}"
    if comparison.finished:
        return Text(f"{done}: {parts}")
    return Text(f"partial: {done} of {done + comparison.wanted} trials: {parts}", STYLES["warning"])


def _tables(title: str, labels: Sequence[Cell], columns: Sequence[_Column], width: int) -> Iterator[Text]:
    """As many tables as the columns need at the width, the first under the title; empty columns are left out."""
    waiting = [column for column in columns if column.filled]
    heading = [safe(title, "bold")]
    while waiting:
        taken = 1
        while taken < len(waiting) and _table(labels, waiting[: taken + 1]).width <= width:
            taken += 1
        yield Text("\n").join([*heading, _table(labels, waiting[:taken]).draw()])
        waiting, heading = waiting[taken:], []


def _table(labels: Sequence[Cell], columns: Sequence[_Column]) -> Table:
    cells = [[column.cells[row] for column in columns] for row in range(len(labels))]
    return Table("", labels, [(column.group, column.title) for column in columns], cells)


def _names(wording: Wording) -> list[Cell]:
    return [Cell(wording.label(arm.plan.arm.name)) for arm in wording.comparison.arms]


def _cells(texts: Iterable[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def _losses(wording: Wording) -> list[_Column]:
    arms = wording.comparison.arms
    loss = wording.loss
    rates = [Cell(shown(arm.learning_rate, number), "warning" if arm.at_edge else None) for arm in arms]
    return [
        _Column("loss", "mean", _cells(loss(arm.mean) for arm in arms)),
        _Column("loss", "SD", _cells(loss(arm.deviation) for arm in arms)),
        _Column("trials", "diverged", [_diverged(arm) for arm in arms]),
        _Column("learning", "rate", rates),
        _Column("sensi-", "tivity", _cells(loss(arm.sensitivity) for arm in arms)),
        _Column("copy", "loss", _cells(loss(arm.copy_loss) for arm in arms)),
        _Column(
            "steps to",
            f"loss {loss(wording.comparison.target)}",
            _cells(shown(arm.steps_to_target, lambda steps: f"{steps:,.0f}") for arm in arms),
        ),
    ]


def _diverged(arm: ArmSummary) -> Cell:
    if not arm.losses:
        return Cell(MISSING)
    return Cell(f"{arm.diverged} of {len(arm.losses)}", "error" if arm.diverged else None)


def _costs(wording: Wording) -> list[_Column]:
    arms, match = wording.comparison.arms, wording.comparison.study.match
    sized = [arm.plan for arm in arms]
    differences = [
        f"{100 * plan.difference:+z.2f}%" if plan.parameters and match != "nothing" else MISSING for plan in sized
    ]
    speeds = [shown(arm.tokens_per_second, lambda rate: f"{rate:,.0f}") for arm in arms]
    return [
        _Column("", "parameters", _cells(f"{plan.parameters:,}" if plan.parameters else MISSING for plan in sized)),
        _Column(match, "to baseline", _cells(differences)),
        _Column("MFLOPs", "per token", _cells(digits(plan.flops / 1e6) if plan.flops else MISSING for plan in sized)),
        _Column("tokens", "per second", _cells(speeds)),
    ]


def _seeds(wording: Wording) -> list[_Column]:
    arms = wording.comparison.arms
    results = wording.comparison.results
    diverged = {(item.point.arm, item.point.seed) for item in results if item.point.role == "paired" and item.diverged}

    def cell(arm: ArmSummary, seed: int) -> Cell:
        mark = "error" if (arm.plan.arm.name, seed) in diverged else None
        return Cell(wording.loss(arm.losses.get(seed, math.nan)), mark)

    seeds = sorted({seed for arm in arms for seed in arm.losses})
    return [_Column("seed", str(seed), [cell(arm, seed) for arm in arms]) for seed in seeds]


def _legend(wording: Wording) -> Text:
    arms = wording.comparison.arms
    parts = [f"losses in {wording.unit}" if wording.unit else "losses as the objective gives them"]
    if any(arm.losses for arm in arms):
        parts.append("SD: over the seeds")
    if any(not math.isnan(arm.sensitivity) for arm in arms):
        parts.append("sensitivity: how far the loss lies above its best over the range of learning rates, on average")
    if any(arm.at_edge for arm in arms):
        parts.append("! the best rate lay at an end of the range")
    if any(arm.diverged for arm in arms):
        parts.append(f"✗ diverged: counted {counted_where_diverged(wording.comparison)}")
    return Text("; ".join(parts), "dim")


def _contrasts_title(wording: Wording) -> str:
    unit = f", {wording.unit}" if wording.unit else ""
    return f"contrasts: difference of losses{unit}; below 0 the first is better"


def _contrast_names(wording: Wording) -> list[Cell]:
    return [Cell(wording.contrast(item)) for item in wording.comparison.verdicts]


def _contrasts(wording: Wording) -> list[_Column]:
    verdicts = wording.comparison.verdicts
    intervals = [wording.ends(item.interval) for item in verdicts]
    resampled = [wording.ends(item.bootstrap) for item in verdicts]
    return [
        _Column("", "verdict", [Cell(item.word, style=VERDICT_STYLES[item.word]) for item in verdicts]),
        _Column("", "mean", _cells(wording.difference(item.interval.mean) for item in verdicts)),
        _Column("95% interval", "from", _cells(low for low, _ in intervals)),
        _Column("95% interval", "to", _cells(high for _, high in intervals)),
        _Column("p", "alone", _cells(wording.p_value(item, item.p) for item in verdicts)),
        _Column("p", "Holm", _cells(wording.p_value(item, item.adjusted) for item in verdicts)),
        _Column("P of", "better", _cells(shown(item.probability, share) for item in verdicts)),
        _Column("bootstrap", "from", _cells(low for low, _ in resampled)),
        _Column("bootstrap", "to", _cells(high for _, high in resampled)),
    ]


def _intervals(wording: Wording, width: int) -> Text | None:
    """A line for each contrast with its interval on one axis; nothing without an interval."""
    verdicts, margin = wording.comparison.verdicts, wording.comparison.study.margin
    if not any(math.isfinite(item.interval.low) for item in verdicts):
        return None
    names = [wording.contrast(item) for item in verdicts]
    longest = max(map(cell_len, names))
    labels = [
        f"{name}{' ' * (longest - cell_len(name))}  {item.word:11}" for name, item in zip(names, verdicts, strict=True)
    ]
    start = max(map(cell_len, labels))
    places = max(width - start, _FEWEST_PLACES)
    ends = [(item.interval.low, item.interval.high) for item in verdicts]
    scale = Scale(*difference_range(ends, margin), 0, places - 1)
    lines = [Text("intervals: left of │ the first is better", "bold")]
    for label, verdict in zip(labels, verdicts, strict=True):
        lines.append(Text(label).append(_interval(verdict, scale, margin), VERDICT_STYLES[verdict.word]))
    lines += [Text(" " * start + line, "dim") for line in _axis(scale)]
    lines.append(Text(f"● mean; ├──┤ 95% interval; ┊ the margin of {margin:g}, within which arms are equal", "dim"))
    return Text("\n").join(lines)


def _interval(verdict: Verdict, scale: Scale, margin: float) -> str:
    places = [" "] * (round(scale.end) + 1)
    for value, mark in ((-margin, "┊"), (margin, "┊"), (0.0, "│")):
        places[round(scale(value))] = mark
    interval = verdict.interval
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        first, last = round(scale.nearest(interval.low)), round(scale.nearest(interval.high))
        places[first : last + 1] = "─" * (last - first + 1)
        places[first] = "├" if scale.holds(interval.low) else "◄"
        places[last] = "┤" if scale.holds(interval.high) else "►"
        if scale.holds(interval.mean):
            places[round(scale(interval.mean))] = "●"
    return "".join(places).rstrip()


def _axis(scale: Scale) -> tuple[str, str]:
    places = round(scale.end) + 1
    line, numbers = ["─"] * places, [" "] * places
    for tick, text in scale.labelled(places // _PLACES_PER_TICK, "+"):
        place = round(scale(tick))
        line[place] = "┴"
        start = min(max(place - len(text) // 2, 0), places - len(text))
        numbers[start : start + len(text)] = text
    return "".join(line), "".join(numbers).rstrip()


def _undecided(wording: Wording, width: int) -> Text | None:
    lines = []
    for verdict in wording.comparison.verdicts:
        if verdict.word == "undecided":
            remedy = what_would_decide(verdict) + ":" * bool(verdict.command)
            lines.append(safe(f"{wording.contrast(verdict)}: {remedy}", VERDICT_STYLES["undecided"]))
            lines += [safe(f"  {line}") for line in _shell_lines(verdict.command, width - 4)]
    return Text("\n").join(lines) if lines else None


def what_would_decide(verdict: Verdict) -> str:
    """How many more pairs an undecided contrast needs, and how long they take."""
    if len(verdict.differences) < 2:
        return f"{count(len(verdict.differences), 'pair')} so far, and an interval needs two"
    if verdict.more_pairs is None:
        return "fewer than 1,000 more pairs would not decide"
    time = "" if verdict.more_seconds is None else f", {duration(verdict.more_seconds)}"
    return f"about {count(verdict.more_pairs, 'more pair')}{time}"


def _shell_lines(command: str, width: int) -> list[str]:
    """A command in lines that a shell joins again; quoted words stay whole."""
    lines: list[str] = []
    for word in re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", command):
        if lines and len(lines[-1]) + len(word) + 1 <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}" if lines else word)
    return [*(f"{line} \\" for line in lines[:-1]), *lines[-1:]]


def _health(wording: Wording) -> tuple[list[Cell], list[_Column]]:
    """The stats in which the arms differ most, a row for each; a column for each arm."""
    arms = wording.comparison.arms
    stats = list(dict.fromkeys(stat for arm in arms for stat in arm.health))
    kept = sorted(stats, key=lambda stat: -_disagreement([arm.health.get(stat, math.nan) for arm in arms]))[
        :_MOST_STATS
    ]
    rows = [stat for stat in stats if stat in kept]
    columns = [
        _Column("", label.text, _cells(shown(arm.health.get(stat, math.nan), digits) for stat in rows))
        for arm, label in zip(arms, _names(wording), strict=True)
    ]
    return _cells(map(printable, rows)), columns


def _disagreement(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    return (max(finite) - min(finite)) / largest if largest else 0.0


def _findings(wording: Wording) -> object:
    rows = []
    for arm in wording.comparison.arms:
        labels = [wording.label(arm.plan.arm.name), *[""] * len(arm.findings)]
        for label, (code, trials) in zip(labels, arm.findings.items(), strict=False):
            name = f" {RULES[code].name}" if code in RULES else ""
            rows.append((label, safe(f"{code}{name} in {trials} of {len(arm.losses)} trials", STYLES["warning"])))
    return grid(rows)


def _closing(wording: Wording) -> Text:
    words = Counter(item.word for item in wording.comparison.verdicts)
    said = ", ".join(f"{words[word]} {word}" for word in VERDICT_WORDS if words[word])
    return Text(f"{count(len(wording.comparison.verdicts), 'contrast')}: {said}", "bold")
