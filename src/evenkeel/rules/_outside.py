"""What makes an entry from another package no rule."""

from __future__ import annotations

import re
from typing import Any

from ..schema import SEVERITIES, SITE_KINDS
from ._examples import Example
from ._rule import Need, Rule

_CODE = re.compile(r"[A-Z]{2,8}\d{3}")


def flaw_of_rule(name: str, entry: Any) -> str:
    """What a rule entered under this name breaks of the protocol, as the rest of a sentence; "" where nothing."""
    if not isinstance(entry, Rule):
        return f"is {_kind(entry)} and must be an evenkeel.rules.Rule"
    if entry.code != name:
        return f"has the code {entry.code!r}, which its entry point must be called by"
    if not _CODE.fullmatch(entry.code):
        return f"has the code {entry.code!r} and must have letters and three digits, as in ABC123"
    strange = [need for need in entry.needs if not isinstance(need, Need)]
    if strange:
        return f"needs {_kind(strange[0])}; each of its needs must be an evenkeel.rules.Need"
    unknown = [kind for kind in entry.kinds if kind not in SITE_KINDS]
    if unknown:
        return f"needs readings of {unknown[0]!r} sites; kinds are {', '.join(SITE_KINDS)}"
    if len(entry.kinds) > 1:
        return f"needs readings of {' and '.join(entry.kinds)} sites and must judge one kind"
    if not entry.severities or set(entry.severities) - set(SEVERITIES):
        return f"gives the severities {entry.severities} and must give some of {', '.join(SEVERITIES)}"
    for field in ("firing", "silent"):
        examples = getattr(entry, field)
        if not examples or not all(isinstance(item, Example) for item in examples):
            return f"has no {field} examples; make one at least with evenkeel.rules.example"
    return "" if callable(entry.judge) else f"has {_kind(entry.judge)} as judge, which must be a function"


def _kind(item: Any) -> str:
    return f"the class {item.__name__}" if isinstance(item, type) else f"of type {type(item).__name__}"
