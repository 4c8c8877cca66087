"""The page of a rule: what it measures, from which bound on, why, what to do; drawn as text and as Markdown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..rules import Example, Override, Rule, apply
from ..schema import Phase, Severity, decode_number, encode_number
from .quantities import number

_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Number:
    """A reading of the sick model beside that of its healthy twin: lowest and highest where there are several."""

    stat: str
    phase: Phase
    sick: tuple[float, ...]
    healthy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a rule said to a real model with a fault, and what was read there and at the same place of its twin.

    fault: its name in `evenkeel.faults`, empty where a model needs none for this finding. story: what was done.
    model: what both are. place: where the numbers were read.
    """

    fault: str
    story: str
    model: str
    severity: Severity
    message: str
    place: str
    numbers: tuple[Number, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("fault", "story", "model", "severity", "message", "place")},
            "numbers": [
                {
                    "stat": item.stat,
                    "phase": item.phase,
                    "sick": [encode_number(value) for value in item.sick],
                    "healthy": [encode_number(value) for value in item.healthy],
                }
                for item in self.numbers
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        numbers = tuple(
            Number(
                stat=item["stat"],
                phase=item["phase"],
                sick=tuple(map(decode_number, item["sick"])),
                healthy=tuple(map(decode_number, item["healthy"])),
            )
            for item in data["numbers"]
        )
        return cls(**{**data, "numbers": numbers})


@dataclass(frozen=True)
class Section:
    """A title with paragraphs under it; numbered: they come in this order. table: rows of cells, the first its head."""

    title: str
    paragraphs: tuple[str, ...] = ()
    numbered: bool = False
    table: tuple[tuple[str, ...], ...] = ()


@cache
def measured_examples() -> Mapping[str, Measured]:
    """The examples that were measured, by the rule's code; `python docs/rules.py --measure` makes them."""
    text = (files("evenkeel.report") / "rule_examples.json").read_text(encoding="utf-8")
    return {code: Measured.from_dict(item) for code, item in json.loads(text).items()}


def page(
    rule: Rule, rules: Mapping[str, Rule], *, override: Override | None = None, source: str = ""
) -> tuple[Section, ...]:
    """Everything that is to be said of a rule, in the order in which it is read.

    rules: the whole catalogue, for what explains what. override: what a project sets otherwise, and source where.
    """
    return tuple(section for section in _sections(rule, rules, override or Override(), source) if section is not None)


def _sections(rule: Rule, rules: Mapping[str, Rule], override: Override, source: str) -> Iterator[Section | None]:
    yield Section("Measures", (rule.measures,))
    yield Section("Needs", (_needs(rule),))
    severity = (f"set to {override.severity} in {source}",) if override.severity else ()
    yield Section("Severity", (rule.severity, *severity))
    yield Section("Bound", (rule.bound, *_bounds(rule, override, source)))
    yield Section("Why it matters", (rule.why,))
    yield Section("What to do", rule.advice, numbered=True)
    if rule.change is not None:
        yield Section("Change", (f"{rule.change.axis} = {rule.change.value}",))
    yield Section("Try", (rule.try_command,))
    explained_by = [code for code, other in rules.items() if rule.code in other.explains]
    for title, codes in (("Explains", rule.explains), ("Explained by", explained_by)):
        if codes:
            yield Section(title, (", ".join(f"{code} {rules[code].name}" for code in codes),))
    if rule.claims:
        yield Section("Claims", (f"{', '.join(rule.claims)} (evenkeel claims {rule.claims[0]} shows the numbers)",))
    yield Section("Source", (rule.source,))
    measured = measured_examples().get(rule.code)
    yield from _by_hand(rule) if measured is None else _measured(measured)
    quiet = "; ".join(example.about for example in rule.silent)
    yield Section("Stays silent on", (quiet,)) if quiet else None


def _needs(rule: Rule) -> str:
    if not rule.needs:
        return "the log of a training run"
    needs = (f"{need.stat}{_least(need.at_least)}" for need in rule.needs)
    return f"{', '.join(needs)} of every {' or '.join(rule.kinds)}"


def _least(at_least: float | None) -> str:
    return "" if at_least is None else f" (at least {at_least:g})"


def _bounds(rule: Rule, override: Override, source: str) -> Iterator[str]:
    """The numbers that a project may set, with the values in force."""
    for name, value in rule.bounds.items():
        if name in override.bounds:
            yield f"{name} = {override.bounds[name]:g} ({source}; by default {value:g})"
        else:
            yield f"{name} = {value:g}"


def _measured(example: Measured) -> Iterator[Section]:
    fault = f" (evenkeel.faults: {example.fault})" if example.fault else ""
    told = f"{example.severity}: {example.message}"
    yield Section("Sick", (f"{example.story}{fault}; {example.model}", told))
    head = (f"at {example.place}" if example.place else "of the run", "sick", "healthy")
    rows = tuple((_named(item.stat, item.phase), _span(item.sick), _span(item.healthy)) for item in example.numbers)
    yield Section("Healthy", ("the same model without it: no such finding",), table=(head, *rows))


def _by_hand(rule: Rule) -> Iterator[Section]:
    """Examples of a rule that none were measured of: those that its author wrote down."""
    silent = [example for example in rule.silent if apply(rule, example.measurements)[1] == "pass"]
    for title, example in (("Sick", rule.firing[0]), *(("Healthy", item) for item in silent[:1])):
        findings, _ = apply(rule, example.measurements)
        told = tuple(f"{finding.severity}: {finding.message}" for finding in findings) or ("no finding",)
        yield Section(title, (f"{example.about} (by hand)", *told), table=tuple(_readings(example)))


def _readings(example: Example) -> Iterator[tuple[str, ...]]:
    readings = example.measurements.readings
    if readings:
        yield ("site", "step", "reading", "value")
    for item in readings:
        yield (item.site, str(item.step), _named(item.stat, item.phase), ", ".join(map(number, item.values)))


def _named(stat: str, phase: Phase) -> str:
    return stat if phase == "forward" else f"{stat} ({phase})"


def _span(values: Sequence[float]) -> str:
    drawn = list(dict.fromkeys(map(number, values)))
    return " to ".join(drawn) or "not read"


def as_text(rule: Rule, sections: Sequence[Section], width: int) -> str:
    """A page for a terminal of so many columns."""
    return "\n".join(_text(rule, sections, width))


def _text(rule: Rule, sections: Sequence[Section], width: int) -> Iterator[str]:
    yield f"{rule.code} {rule.name}"
    for section in sections:
        yield ""
        yield section.title
        for place, paragraph in enumerate(section.paragraphs, 1):
            start = f"{place}. " if section.numbered else ""
            yield _wrapped(paragraph, width, _INDENT + start, _INDENT + " " * len(start))
        yield from _text_table(section.table, width)


def _text_table(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Cells below each other; where they are too wide for the terminal, a row is a paragraph."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{wide}}" for cell, wide in zip(row, widths, strict=True)]
        line = _INDENT * 2 + "  ".join(cells).rstrip()
        yield line if len(line) <= width else _wrapped("  ".join(row), width, _INDENT * 2, _INDENT * 3)


def _wrapped(text: str, width: int, first: str, others: str) -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def as_markdown(rule: Rule, sections: Sequence[Section]) -> str:
    """The same page as a Markdown file."""
    return "\n".join(_markdown(rule, sections)) + "\n"


def _markdown(rule: Rule, sections: Sequence[Section]) -> Iterator[str]:
    yield f"# {rule.code} {rule.name}"
    for section in sections:
        yield ""
        yield f"## {section.title}"
        for place, paragraph in enumerate(section.paragraphs, 1):
            if place == 1 or not section.numbered:
                yield ""
            yield _wrapped(_escaped(paragraph), 120, f"{place}. " if section.numbered else "", "   " * section.numbered)
        for place, row in enumerate(section.table):
            if place == 0:
                yield ""
            yield f"| {' | '.join(map(_escaped, row))} |"
            if place == 0:
                yield f"|{'---|' * len(row)}"


def _escaped(text: str) -> str:
    """What Markdown would take for its own."""
    for character in "\\`*_<>|":
        text = text.replace(character, f"\\{character}")
    return text
