"""`evenkeel rules [CODE]`: the catalogue of rules, or the page of one."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from typing import Any

from ..rules import RULES, Override, Rule
from ..settings import Settings

SUMMARY = "list the rules, or show the page of one"

_WIDEST = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="show this rule's page (for example ACT101)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")
    parser.add_argument(
        "--config", metavar="FILE", help="settings in [tool.evenkeel] there (default: the nearest pyproject.toml's)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the catalogue or one page; raises UsageError for an unknown code."""
    rules = list(RULES.values()) if arguments.code is None else [RULES[arguments.code.upper()]]
    settings = Settings.nearest() if arguments.config is None else Settings.from_file(arguments.config)
    if arguments.format == "json":
        described = [_described(rule, settings.rules.get(rule.code, Override())) for rule in rules]
        print(json.dumps(described if arguments.code is None else described[0], indent=2, ensure_ascii=False))
    elif arguments.code is None:
        print("\n".join(_listed(rules)))
    else:
        print(_page(rules[0], settings))
    return 0


def _listed(rules: list[Rule]) -> Iterator[str]:
    code, name = (max(len(getattr(rule, field)) for rule in rules) for field in ("code", "name"))
    for rule in rules:
        yield f"{rule.code:{code}}  {rule.name:{name}}  {', '.join(rule.severities)}"
    yield ""
    yield "evenkeel rules CODE shows what a rule measures, its bound, and what to do."


def _page(rule: Rule, settings: Settings) -> str:
    from ..report.rule_page import as_text, page

    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return as_text(rule, page(rule, RULES, override=settings.rules.get(rule.code), source=settings.source), width)


def _described(rule: Rule, override: Override) -> dict[str, Any]:
    from ..report.rule_page import measured_examples

    measured = measured_examples().get(rule.code)
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
        "severity_set": override.severity,
        "bound": rule.bound,
        "bounds": [
            {"name": name, "value": override.bounds.get(name, value), "default": value}
            for name, value in rule.bounds.items()
        ],
        "explains": list(rule.explains),
        "explained_by": [code for code, other in RULES.items() if rule.code in other.explains],
        "why": rule.why,
        "advice": list(rule.advice),
        "change": rule.change.to_dict() if rule.change else None,
        "claims": list(rule.claims),
        "try": rule.try_command,
        "source": rule.source,
        "example": None if measured is None else measured.to_dict(),
    }
