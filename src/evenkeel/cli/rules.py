"""`evenkeel rules [CODE]`: the catalogue of rules, or the page of one."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from ..rules import RULES, Example, Rule, apply

SUMMARY = "list the rules, or show the page of one"

_WIDEST = 100
_INDENT = "  "


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="show this rule's page (for example ACT101)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(arguments: argparse.Namespace) -> int:
    """Print the catalogue or one page; raises UsageError for an unknown code."""
    rules = list(RULES.values()) if arguments.code is None else [RULES[arguments.code.upper()]]
    if arguments.format == "json":
        described = [_described(rule) for rule in rules]
        print(json.dumps(described if arguments.code is None else described[0], indent=2, ensure_ascii=False))
    elif arguments.code is None:
        print("\n".join(_listed(rules)))
    else:
        print("\n".join(_page(rules[0], min(shutil.get_terminal_size().columns, _WIDEST))))
    return 0


def _listed(rules: list[Rule]) -> Iterator[str]:
    code, name = (max(len(getattr(rule, field)) for rule in rules) for field in ("code", "name"))
    for rule in rules:
        yield f"{rule.code:{code}}  {rule.name:{name}}  {', '.join(rule.severities)}"
    yield ""
    yield "evenkeel rules CODE shows what a rule measures, its bound, and what to do."


def _page(rule: Rule, width: int) -> Iterator[str]:
    def paragraph(title: str, text: str) -> Iterator[str]:
        yield ""
        yield title
        yield _wrapped(text, width, _INDENT, _INDENT)

    yield f"{rule.code} {rule.name}"
    yield from paragraph("Measures", rule.measures)
    yield from paragraph("Needs", _needs(rule))
    yield from paragraph("Severity", rule.severity)
    yield from paragraph("Bound", rule.bound)
    yield from paragraph("Why it matters", rule.why)
    yield ""
    yield "What to do"
    for number, advice in enumerate(rule.advice, 1):
        yield _wrapped(advice, width, f"{_INDENT}{number}. ", " " * 5)
    if rule.change is not None:
        yield from paragraph("Change", f"{rule.change.axis} = {rule.change.value}")
    yield from paragraph("Try", rule.try_command)
    if rule.claims:
        yield from paragraph("Claims", ", ".join(rule.claims))
    yield from paragraph("Source", rule.source)
    yield ""
    yield f"Example that fires: {rule.firing[0].about}"
    yield from _drawn(rule, rule.firing[0], width)


def _wrapped(text: str, width: int, first: str, others: str) -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _needs(rule: Rule) -> str:
    if not rule.needs:
        return "the log of a training run"
    needs = (f"{need.stat}{_least(need.at_least)}" for need in rule.needs)
    return f"{', '.join(needs)} of every {' or '.join(rule.kinds)}"


def _least(at_least: float | None) -> str:
    return "" if at_least is None else f" (at least {at_least:g})"


def _drawn(rule: Rule, example: Example, width: int) -> Iterator[str]:
    """The readings of an example and what the rule says to them."""
    place = ("", 0)
    for reading in example.measurements.readings:
        if place != (reading.site, reading.step):
            place = (reading.site, reading.step)
            yield f"{_INDENT}{reading.site}, step {reading.step}"
        yield f"{_INDENT * 2}{reading.stat}: {', '.join(f'{value:.4g}' for value in reading.values)}"
    findings, _ = apply(rule, example.measurements)
    for finding in findings:
        yield _wrapped(f"{finding.severity}: {finding.message}", width, _INDENT, _INDENT * 2)


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "code": rule.code,
        "rule": rule.name,
        "kinds": list(rule.kinds),
        "needs": [
            {"kind": need.kind, "stat": need.stat, "phase": need.phase, "at_least": need.at_least}
            for need in rule.needs
        ],
        "measures": rule.measures,
        "severities": list(rule.severities),
        "severity": rule.severity,
        "bound": rule.bound,
        "why": rule.why,
        "advice": list(rule.advice),
        "change": rule.change.to_dict() if rule.change else None,
        "claims": list(rule.claims),
        "try": rule.try_command,
        "source": rule.source,
    }
