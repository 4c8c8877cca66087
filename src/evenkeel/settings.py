"""What a project sets otherwise: bounds and severities of rules, suppressed findings, and what lets a command fail.

Read from the table `[tool.evenkeel]` of a pyproject.toml, or made in Python; docs/settings.md has every key.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from .catalogue import near_miss
from .errors import UsageError
from .rules import RULES, Override
from .schema import SEVERITIES, Severity, clean_name

FailOn = Literal["error", "warning", "never"]
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)

TABLE = "tool.evenkeel"
FILE = "pyproject.toml"

EVERYWHERE = ("*",)


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """Findings that are known and accepted: of one rule ("": of every rule), at the sites that a glob fits."""

    code: str = ""
    sites: tuple[str, ...] = EVERYWHERE
    reason: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.sites, str):  # else each of its letters would be a glob
            object.__setattr__(self, "sites", (self.sites,))

    def __str__(self) -> str:
        places = "" if self.sites == EVERYWHERE else f" at {', '.join(self.sites)}"
        return f"{self.code or 'every rule'}{places}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A project's settings; the default is evenkeel as it is.

    rules: what is set otherwise, by the rule's code. suppress: findings that are neither shown nor counted.
    ignore: codes of rules that are not applied. fail_on: the least severity that makes a command exit with 1.
    baseline: an earlier JSON document, whose findings do not count. source: where the settings were read.
    Raises UsageError for codes, bounds and severities that there are not.
    """

    rules: Mapping[str, Override] = field(default_factory=dict)
    suppress: tuple[Suppression, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: FailOn = "error"
    baseline: Path | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for name, items in (("suppress", self.suppress), ("ignore", self.ignore)):
            if isinstance(items, str | Suppression):
                raise UsageError(f"{name} is {_shown(items)} and must be a tuple; write {name}=(..., )")
        for code, override in self.rules.items():
            if not isinstance(override, Override):
                raise UsageError(f"rules[{code!r}] is {_shown(override)} and must be an Override; write Override(...)")
            _checked_numbers(override.bounds, code)
            _one_of(override.bounds, RULES[code].bounds, f"{code} has no bound")
            if override.severity is not None:
                _one_of([override.severity], SEVERITIES, f"the severity of {code} cannot be")
        for suppression in self.suppress:
            if suppression.code:
                RULES[suppression.code]
            elif suppression.sites == EVERYWHERE:
                raise UsageError('a suppression names neither a code nor sites; give code = "ATT301" or sites = "..."')
        for code in self.ignore:
            RULES[code]
        _one_of([self.fail_on], FAIL_ON, "fail_on cannot be")

    @property
    def overrides(self) -> Mapping[str, Override]:
        """What is set otherwise for each rule, suppressions included."""
        return {code: self._override(code) for code in RULES if code in self.rules or self._silent_at(code)}

    def _override(self, code: str) -> Override:
        own = self.rules.get(code, Override())
        return replace(own, silent_at=(*own.silent_at, *self._silent_at(code)))

    def _silent_at(self, code: str) -> tuple[str, ...]:
        return tuple(glob for item in self.suppress if item.code in ("", code) for glob in item.sites)

    @classmethod
    def from_file(cls, path: str | Path) -> Settings:
        """The settings in a TOML file; raises UsageError for a file without `[tool.evenkeel]`."""
        path = Path(path)
        table = _table(path)
        if table is None:
            raise UsageError(f"{clean_name(str(path))} has no table [{TABLE}]; docs/settings.md says what goes there")
        return _read(table, path)

    @classmethod
    def nearest(cls, directory: str | Path = ".") -> Settings:
        """Those of the nearest pyproject.toml with `[tool.evenkeel]`, from a directory upwards; else the default."""
        start = Path(directory).absolute()
        for folder in (start, *start.parents):
            table = _table(folder / FILE) if (folder / FILE).is_file() else None
            if table is not None:
                return _read(table, folder / FILE)
        return cls()


def ignored(codes: Collection[str]) -> str:
    """The note that says which rules were not applied."""
    return f"ignored on request: {', '.join(codes)}"


def _one_of(names: Collection[str], known: Collection[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{what} {name!r}; {near_miss(str(name), known)}")


def _table(path: Path) -> Any:
    """The table of a file; None where it has none."""
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{clean_name(str(path))} cannot be read ({error.strerror}); give a TOML file") from error
    except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8
        raise UsageError(f"{clean_name(str(path))} is no TOML: {error}; mend it, or give --config FILE") from error
    tool = data.get("tool")
    return tool.get("evenkeel") if isinstance(tool, Mapping) else None


def _read(table: Any, path: Path) -> Settings:
    try:
        return _settings(table, path)
    except UsageError as error:
        raise UsageError(f"{clean_name(str(path))}: {error}") from error


def _settings(table: Any, path: Path) -> Settings:
    given = _keys(table, TABLE, ("rules", "suppress", "ignore", "fail_on", "baseline"))
    rules = {
        code: _override(item, f"{TABLE}.rules.{code}")
        for code, item in _mapping(given.get("rules", {}), f"{TABLE}.rules").items()
    }
    suppress = given.get("suppress", [])
    if not isinstance(suppress, list):
        raise UsageError(f"{TABLE}.suppress is {_shown(suppress)} and must be tables; write [[{TABLE}.suppress]]")
    baseline = _text(given.get("baseline", ""), f"{TABLE}.baseline")
    return Settings(
        rules=rules,
        suppress=tuple(_suppression(item, f"{TABLE}.suppress[{index}]") for index, item in enumerate(suppress)),
        ignore=_texts(given.get("ignore", []), f"{TABLE}.ignore"),
        fail_on=cast(FailOn, _text(given.get("fail_on", "error"), f"{TABLE}.fail_on")),
        baseline=path.parent / baseline if baseline else None,
        source=clean_name(path.name),
    )


def _override(item: Any, key: str) -> Override:
    given = _keys(item, key, ("bounds", "severity"))
    bounds = _mapping(given.get("bounds", {}), f"{key}.bounds")
    _checked_numbers(bounds, key)
    severity = _text(given["severity"], f"{key}.severity") if "severity" in given else None
    return Override(
        bounds={name: float(value) for name, value in bounds.items()}, severity=cast(Severity | None, severity)
    )


def _checked_numbers(bounds: Mapping[str, Any], key: str) -> None:
    for name, value in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{key}.bounds.{name} is {_shown(value)} and must be a finite number")


def _suppression(item: Any, key: str) -> Suppression:
    given = _keys(item, key, ("code", "sites", "reason"))
    sites = given.get("sites", list(EVERYWHERE))
    return Suppression(
        code=_text(given.get("code", ""), f"{key}.code"),
        sites=_texts([sites] if isinstance(sites, str) else sites, f"{key}.sites"),
        reason=_text(given.get("reason", ""), f"{key}.reason"),
    )


def _keys(item: Any, key: str, known: Collection[str]) -> Mapping[str, Any]:
    given = _mapping(item, key)
    _one_of(given, known, f"{key} has no key")
    return given


def _mapping(item: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise UsageError(f"{key} is {_shown(item)} and must be a table; write [{key}]")
    return item


def _text(item: Any, key: str) -> str:
    if not isinstance(item, str):
        raise UsageError(f"{key} is {_shown(item)} and must be a string")
    return item


def _texts(items: Any, key: str) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError(f"{key} is {_shown(items)} and must be a list of strings")
    return tuple(items)


def _shown(item: Any) -> str:
    return clean_name(repr(item))
