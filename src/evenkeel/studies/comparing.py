"""Comparing: a study begun or gone on with, worked on, and judged."""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..directories import cache_directory
from ..errors import ConfigError, RecordError, UsageError
from ..schema import clean_name
from ..training import one_thread
from .comparison import Comparison, context_of
from .founding import Founding
from .judging import compared
from .reading.arms import plan_arms
from .reading.specifications import fields_of, read_study, study_of
from .results import TrialResult
from .running.databases import is_missing, shown, without_password
from .running.joining import STORAGE_VARIABLE, Helpers
from .running.settling import settled
from .running.store import Store
from .running.working import Report, stopped_by_signals, work
from .schedule import agenda
from .study import MAY_CHANGE, Study
from .trials.corpus import Corpus, read_corpus
from .trials.language import LanguageTrials
from .trials.objectives import Objective, OwnObjective, UserObjective, name_of

NAME = "compare"
"""Of a study in a store that the user names, unless it is named too."""


@dataclass(frozen=True, eq=False)
class Run:
    """A study that is being worked on here."""

    store: Store
    founding: Founding
    study: Study
    objective: Objective
    device: str
    jobs: int
    parent: int | None = None

    @property
    def remaining(self) -> int:
        """How many trials are left, as far as is known."""
        return agenda(self.study, self.store.results().values()).remaining

    @property
    def seconds_left(self) -> float:
        """About how long the trials that are left take here; NaN where nothing is known of their speed."""
        taken = [item.seconds for item in self.store.results().values() if math.isfinite(item.seconds)]
        pace = statistics.fmean(taken) if taken else self.founding.seconds / len(self.founding.plans)
        return math.ceil(self.remaining / self.jobs) * pace if pace else math.nan

    def work(
        self,
        report: Report = lambda done, total, share: None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> bool:
        """Work with so many processes until the study is done, True, or until Ctrl-C, False.

        tell: is given lines that a user has to see: that work is about to stop, and which processes were lost.
        """
        helpers = Helpers(self._joining, {STORAGE_VARIABLE: self.store.where}, count=min(self.jobs, self.remaining) - 1)
        with one_thread(), stopped_by_signals(tell) as asked, helpers:
            work(
                self.store,
                self.study,
                self.objective,
                checkpoints=_checkpoints(self.founding),
                stopping=lambda: asked() or self.abandoned(),
                report=report,
            )
            for line in helpers.lost():
                tell(line)
        return not self.remaining

    @property
    def _joining(self) -> list[str]:
        """What joins this study from another process, which finds its storage in the environment."""
        words = ["compare", "--resume", "--name", self.store.name]
        return [*words, "--device", self.device, *self._changes(), "--seeds", str(self.study.seeds)]

    def _changes(self) -> Iterator[str]:
        """The options that make this study of the one that was begun, but for the number of pairs."""
        study, begun = self.study, self.founding.study
        for name in ("data", "margin", "target"):
            if getattr(study, name) != getattr(begun, name):
                yield from (f"--{name}", str(getattr(study, name)))
        if study.contrasts != begun.contrasts:
            for item in study.contrasts:
                yield from ("--contrast", item.arm, item.against)

    def abandoned(self) -> bool:
        """Whether this process works for another one, which is gone."""
        return self.parent is not None and os.getppid() != self.parent

    def comparison(self) -> Comparison:
        """What the trials that are done show. Raises RecordError where the pairs do not share what they should."""
        return compared(
            self.founding,
            self.study,
            tuple(self.store.results().values()),
            device=self.device,
            versions={"evenkeel": version("evenkeel"), "torch": torch.__version__},
            jobs=self.jobs,
            command=self.command,
        )

    @property
    def default_storage(self) -> bool:
        """Whether the study is where those go that name no storage."""
        return self.store.where == str(_default_file())

    def command(self, seeds: int) -> str:
        """What a user types to have so many pairs; "" with an objective of one's own, which no command can name."""
        if self.study.objective:
            return ""
        words = ["evenkeel", "compare", "--resume", "--storage", without_password(self.store.where)]
        words += [] if self.store.name == NAME else ["--name", self.store.name]
        words += [] if self.device == "cpu" else ["--device", self.device]
        return shlex.join([*words, *self._changes(), "--seeds", str(seeds)])


def compare(
    spec: Study | str | Sequence[str] | Mapping[str, Any],
    *,
    objective: UserObjective | None = None,
    storage: str | None = None,
    name: str | None = None,
    device: str = "cpu",
    jobs: int = 1,
    report: Report = lambda done, total, share: None,
    **options: Any,
) -> Comparison:
    """Run a study, or go on with one that was begun, and judge it: which arm is better, and how sure that is.

    spec: a Study, words as on the command line ("feedforward=relu,gelu"), the path of a study file, or a mapping with
    its keys. options: further keys of a study file. objective: `train(arm, learning_rate, seed) -> loss` in place of
    the language model; each call is one trial, and spec may be nothing but the names of the arms. storage: a file or
    URL; by default a file in the user's cache. name: of the study in it. jobs: processes on this machine, with the
    default objective. report: is told how many trials are done, of how many, and the share of the present one. Ctrl-C
    ends the present trial at its next step and leaves a partial comparison.
    Raises ConfigError for a study that cannot be run, RecordError for a store that holds another study of this name.
    """
    if objective is not None:
        options["objective"] = name_of(objective)
        if not isinstance(spec, Study | Mapping | str):
            spec = {"arms": [{"name": name, "choices": {}} for name in spec]}
    study = _read(spec, options)
    run = begin(study, objective=objective, storage=storage, name=name, device=device, jobs=jobs)
    run.work(report, lambda line: warnings.warn(line, stacklevel=2))
    return run.comparison()


def _read(spec: Study | str | Sequence[str] | Mapping[str, Any], options: Mapping[str, Any]) -> Study:
    if isinstance(spec, Study):
        stated = () if spec.contrasts == spec.default_contrasts else spec.contrasts  # a new baseline has its own
        return replace(spec, **{"contrasts": stated, **fields_of(options)})
    if isinstance(spec, Mapping):
        return study_of({**spec, **options})
    return read_study(spec.split() if isinstance(spec, str) and "=" in spec else _several(spec), **options)


def _several(words: str | Sequence[str]) -> Sequence[str]:
    return [words] if isinstance(words, str) else words


def begin(
    study: Study,
    *,
    objective: UserObjective | None = None,
    storage: str | None = None,
    name: str | None = None,
    device: str = "cpu",
    jobs: int = 1,
    must_exist: bool = False,
) -> Run:
    """Begin a study, or find it where it was begun; nothing is written before all of it is checked."""
    if (objective is None) == bool(study.objective):
        raise ConfigError(
            f"the study's objective is {study.objective!r} and the objective given is {objective!r}; name the own "
            "objective in the study, and give it to compare"
        )
    plans = plan_arms(study)
    study = _at_home(study)
    corpus = None if objective is not None else read_corpus(study.data, context=context_of(plans))
    if storage is not None and must_exist:
        store, founding = _existing(storage, name or NAME)
    else:
        where, known_as = (
            (storage, name or NAME) if storage is not None else _default(study, "" if corpus is None else corpus.digest)
        )
        new = settled(study, plans, corpus, device, jobs) if is_missing(where) else None
        store = Store(where, known_as)
        founding = store.founding()
        if founding is None:
            founding = store.found(new or settled(study, plans, corpus, device, jobs))
    _check_same(study, founding.study, store)
    return _run(store, founding, study, corpus, objective, device, jobs)


def resume(
    storage: str,
    *,
    name: str = NAME,
    device: str = "cpu",
    jobs: int = 1,
    parent: int | None = None,
    **changes: Any,
) -> Run:
    """Go on with a study as it was begun, with all pairs that it has got. Raises RecordError where there is none.

    changes: the fields of it that may change while it runs. parent: the process that this one works for; it ends when
    that one does.
    """
    store, founding = _existing(storage, name)
    pairs = [item.point.seed + 1 for item in store.results().values() if item.point.role == "paired"]
    study = _at_home(replace(founding.study, **{"seeds": max(founding.study.seeds, *pairs, 0), **changes}))
    if study.objective:
        raise RecordError(
            f"the study {store.name!r} has an objective of its own, {study.objective}; go on with it from Python: "
            "evenkeel.compare(study, objective=...)"
        )
    plans = plan_arms(study)
    corpus = read_corpus(study.data, context=context_of(plans))
    return replace(_run(store, founding, study, corpus, None, device, jobs), parent=parent)


def _at_home(study: Study) -> Study:
    """The study with its data's whole path, so that it is found from another folder too."""
    return replace(study, data=str(Path(study.data).resolve())) if study.data else study


def take_over(path: str, storage: str | None, name: str = NAME) -> tuple[Store, dict[str, Any]]:
    """A store with the study of an exported comparison and the trials that it holds, begun where it was not there; and
    what of the study had changed by then.

    path: a JSON file, as `Comparison.to_json` writes it. Raises RecordError for a file that is none, and for a store
    that holds another study of this name, or the same one with other steps, sizes or data.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        founding, study = Founding.from_comparison(data), Study.from_dict(data["study"])
        results = [TrialResult.from_dict(item) for item in data["results"]]
    except OSError as error:
        raise RecordError(f"{clean_name(path)} cannot be read ({error.strerror}); give a comparison as JSON") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{clean_name(path)} is no exported comparison; write one with evenkeel compare --out FILE"
        ) from error
    store = Store(*(_default(founding.study, founding.digest) if storage is None else (storage, name)))
    known = store.founding() or store.found(founding)
    _check_same(founding.study, known.study, store)
    if founding.settled != known.settled:
        raise RecordError(
            f"the study {store.name!r} in {shown(store.where)} was begun with {known.settled} and that of "
            f"{clean_name(path)} with {founding.settled}; give another --storage"
        )
    store.adopt(results)
    changed = {field: getattr(study, field) for field in MAY_CHANGE if field != "seeds"}
    return store, {field: value for field, value in changed.items() if value != getattr(founding.study, field)}


def _existing(storage: str, name: str) -> tuple[Store, Founding]:
    """A study that is there, and nothing written where it is not."""
    store = None if is_missing(storage) else Store(storage, name)
    founding = None if store is None else store.founding()
    if store is None or founding is None:
        raise RecordError(f"there is no study {name!r} in {shown(storage)}; begin it without --resume")
    return store, founding


def _run(
    store: Store,
    founding: Founding,
    study: Study,
    corpus: Corpus | None,
    objective: UserObjective | None,
    device: str,
    jobs: int,
) -> Run:
    if corpus is None:
        assert objective is not None
        return Run(store, founding, study, OwnObjective(objective), device, 1)
    if corpus.digest != founding.digest:
        raise RecordError(
            f"the data is another than the study {store.name!r} began with ({corpus.source}, digest {corpus.digest}, "
            f"against {founding.digest}); give the same text, or another --storage"
        )
    trials = LanguageTrials(
        plans={plan.arm.name: plan for plan in founding.plans},
        corpus=corpus,
        rows=study.rows,
        steps=founding.steps,
        device=device,
    )
    return Run(store, founding, study, trials, device, jobs)


def _check_same(study: Study, begun: Study, store: Store) -> None:
    """Raises RecordError, with the first field that differs, for a store that holds another study of this name."""
    if study.identity == begun.identity:
        return
    ours, theirs = ({name: json.dumps(value) for name, value in item.fixed.items()} for item in (study, begun))
    field = next((name for name in ours if ours[name] != theirs.get(name)), "steps")
    here, there = _from_the_difference(ours[field], theirs[field])
    raise RecordError(
        f"the study {store.name!r} in {shown(store.where)} is another one ({field}: {there} there, {here} here); give "
        "another --name or --storage"
    )


def _from_the_difference(one: str, other: str) -> tuple[str, str]:
    """Two texts from a little before where they differ, for a while."""
    differs = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, differs - 20)

    def cut(text: str) -> str:
        return f"{'…' * (start > 0)}{text[start : start + 60]}{'…' * (len(text) > start + 60)}"

    return cut(one), cut(other)


def _default(study: Study, digest: str) -> tuple[str, str]:
    """The store of studies that name none, and what this one is called there: other data is another study."""
    return str(_default_file()), f"{study.identity}-{digest}"


def _default_file() -> Path:
    """One file in the user's cache."""
    path = cache_directory() / "studies.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache {clean_name(str(path.parent))} cannot be made ({error.strerror}); name a folder for it in "
            "EVENKEEL_CACHE"
        ) from error
    return path


def _checkpoints(founding: Founding) -> Path:
    """Checkpoints stay on the machine that wrote them, in the user's cache."""
    return cache_directory() / "checkpoints" / founding.id
