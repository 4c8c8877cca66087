"""The studies that trained claims rest on: their specs, the stored result of a full run of each, and fresh runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..studies import Comparison, Report, Run, TrialResult, begin
from ..studies.founding import Founding
from ..studies.judging import compared
from ..studies.reading.specifications import read_file, seconds
from ..studies.study import Study

FOLDER = Path(__file__).parent / "studies"
"""NAME.toml is a study as `evenkeel compare` reads it; NAME.json beside it is the export of a full run of it."""

RunKind = Literal["measured", "stored", "trained", "none"]
Comparisons = Mapping[str, Comparison]
"""Finished comparisons by the names of their studies."""

Watcher = Callable[[str, Run], Report]
"""Is told which study is about to be worked on, and gives what is told of its progress."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One finished run of a study. date: of its last trial, ISO 8601 without the time. versions: (tool, version)."""

    name: str
    identity: str
    trials: int
    date: str
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, comparison: Comparison) -> StudyRun:
        """What is told of a comparison."""
        return cls(
            name=name,
            identity=comparison.study.identity,
            trials=len(comparison.results),
            date=comparison.finished[:10],
            versions=tuple(sorted(comparison.versions.items())),
        )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers of a claim come from.

    kind: "measured" just now, without any study; "stored" with the package, or "trained" just now; "none" where a study
    has no finished run. studies: those of the claim that have one.
    """

    kind: RunKind = "measured"
    studies: tuple[StudyRun, ...] = ()

    @property
    def date(self) -> str:
        """When the last of its studies ended."""
        return max((run.date for run in self.studies), default="")

    @property
    def versions(self) -> dict[str, str]:
        """Of the tools, of every study that differs."""
        by_tool: dict[str, dict[str, None]] = {}
        for tool, number in (pair for run in self.studies for pair in run.versions):
            by_tool.setdefault(tool, {})[number] = None
        return {tool: ", ".join(numbers) for tool, numbers in by_tool.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "date": self.date or None,
            "versions": self.versions,
            "studies": {
                run.name: {"identity": run.identity, "trials": run.trials, "date": run.date} for run in self.studies
            },
        }


MEASURED = Provenance()


@cache
def study_named(name: str) -> Study:
    """A study of the ledger as it is specified."""
    return read_file(FOLDER / f"{name}.toml")


@cache
def stored(name: str) -> Comparison | None:
    """The full run of a study that came with the package, judged anew from its trials.

    None where there is none, and where SciPy, which judges, is not installed.
    """
    file = FOLDER / f"{name}.json"
    if not file.exists() or find_spec("scipy") is None:
        return None
    return comparison_of(json.loads(file.read_text(encoding="utf-8")))


def comparison_of(data: Mapping[str, Any]) -> Comparison:
    """An exported comparison, judged anew: nothing but its trials and what it was founded with is read."""
    founding = Founding.from_comparison(data)
    results = [TrialResult.from_dict(item) for item in data["results"]]
    return compared(founding, founding.study, results, device=data["device"], versions=data["versions"])


def stored_runs(names: Iterable[str]) -> dict[str, Comparison]:
    """The finished stored runs of some studies."""
    found = {name: stored(name) for name in names}
    return {name: item for name, item in found.items() if item is not None and not item.wanted}


def train(
    names: Iterable[str],
    *,
    budget: float | str | None = None,
    storage: str | None = None,
    jobs: int = 1,
    watcher: Watcher = lambda name, run: lambda done, total, share: None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Comparison]:
    """Run some studies, or go on with them where they were begun; those that finished. Ctrl-C ends the work.

    budget: for all of them together, in equal parts; without it they have the tokens of their specs. storage: as of
    `compare`, where each has its own name. tell: as of `Run.work`. Raises ConfigError, before any trial runs, for a
    budget that is too small for one of them.
    """
    names = tuple(names)
    part = None if budget is None else seconds("budget", budget) / max(1, len(names))
    runs = {name: _begun(name, part, len(names), storage, jobs) for name in names}
    finished: dict[str, Comparison] = {}
    for name, run in runs.items():
        if not run.work(watcher(name, run), tell):
            break
        finished[name] = run.comparison()
    return finished


def _begun(name: str, budget: float | None, studies: int, storage: str | None, jobs: int) -> Run:
    study = study_named(name)
    if budget is not None:
        study = replace(study, steps=None, budget=budget)
    try:
        return begin(study, storage=storage, name=None if storage is None else name, jobs=jobs)
    except ConfigError as error:
        if budget is None or studies == 1:
            raise
        raise ConfigError(f"study {name}, which has 1/{studies} of the budget: {error}") from error
