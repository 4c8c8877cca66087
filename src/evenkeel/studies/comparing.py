"""Comparing: a study begun or gone on with, worked on, and judged."""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from ..directories import demo_directory
from ..errors import ConfigError, EvenkeelError, RecordError
from .arms import plan_arms
from .comparison import ArmPlan, Comparison
from .corpus import Corpus, read_corpus
from .databases import shown
from .judging import check_pairing, judge, summarise
from .language import LanguageTrials
from .reading import read_study, study_of
from .schedule import agenda
from .store import Founding, Store
from .study import Study
from .trials import Objective, OwnObjective, UserObjective, now
from .working import Report, one_thread, stopped_by_signals, work

NAME = "compare"
"""Of a study in a store that the user names, unless it is named too."""

_FEWEST_STEPS = 50
_MOST_STEPS = 20_000
_USED = 0.85  # of the budget: the rest is for evaluations, the start of workers and the end
_WIDENED = 1  # learning rates that are tried beside those of the range, where an arm's best lies at its end


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
    def trials(self) -> int:
        """How many trials are left, as far as is known."""
        return agenda(self.study, self.store.results().values()).remaining

    @property
    def context(self) -> int:
        """How long a sequence is, in tokens; 0 with an objective of the user's own."""
        return max((plan.config.get("context", 0) for plan in self.founding.plans), default=0)

    @property
    def seconds_left(self) -> float:
        """About how long the trials that are left take here; NaN where nothing is known of their speed."""
        pace = self.founding.seconds / len(self.founding.plans)
        return self.trials * pace / self.jobs if pace else math.nan

    def work(self, report: Report = lambda done, total, share: None) -> bool:
        """Work with so many processes until the study is done, True, or until Ctrl-C, False."""
        with one_thread(), stopped_by_signals() as asked, Helpers(self, self.jobs - 1) as helpers:
            work(
                self.store,
                self.study,
                self.objective,
                checkpoints=_checkpoints(self.founding),
                stopping=lambda: asked() or self.abandoned() or helpers.failed(),
                report=report,
            )
            if not asked():
                helpers.check()
        return not self.trials

    def abandoned(self) -> bool:
        """Whether this process works for another one, which is gone."""
        return self.parent is not None and os.getppid() != self.parent

    def comparison(self) -> Comparison:
        """What the trials that are done show. Raises RecordError where the pairs do not share what they should."""
        results = tuple(self.store.results().values())
        arms = summarise(self.study, self.founding.plans, results)
        left = agenda(self.study, results).remaining
        return Comparison(
            study=self.study,
            arms=arms,
            verdicts=judge(self.study, arms, results, self.command),
            results=results,
            steps=self.founding.steps,
            tokens=self.founding.steps * self.study.rows * self.context,
            wanted=left,
            target=next(item.mean for item in arms if item.plan.arm.name == self.study.baseline),
            data={"source": self.founding.source, "digest": self.founding.digest},
            versions={"evenkeel": version("evenkeel"), "torch": torch.__version__, "python": platform.python_version()},
            device=self.device,
            begun=self.founding.begun,
            finished="" if left else max(item.finished for item in results),
            notes=check_pairing(results),
        )

    @property
    def default_storage(self) -> bool:
        """Whether the study is where those go that name no storage."""
        return self.store.where == str(_default_file())

    def command(self, seeds: int) -> str:
        """What a user types to have so many pairs."""
        words = ["evenkeel", "compare", "--resume", "--storage", self.store.where]
        words += [] if self.store.name == NAME else ["--name", self.store.name]
        return shlex.join([*words, "--seeds", str(seeds)])


class Helpers:
    """Further processes of this machine that work on the same study: each runs the command that joins it."""

    def __init__(self, run: Run, count: int) -> None:
        self._run, self._count = run, count
        self._processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Helpers:
        run = self._run
        command = [sys.executable, "-m", "evenkeel", "compare", "--resume", "--parent", str(os.getpid()), "--jobs", "1"]
        command += ["--storage", run.store.where, "--name", run.store.name, "--device", run.device]
        command += ["--seeds", str(run.study.seeds)]
        for _ in range(self._count):
            errors = TemporaryFile()
            # In a session of its own, so that the terminal's Ctrl-C reaches it through us alone, once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            self._processes.append((process, errors))
        return self

    def __exit__(self, *error: object) -> None:
        for process, errors in self._processes:
            process.terminate()
            process.wait()
            errors.close()

    def failed(self) -> bool:
        """Whether one of them ended with an error."""
        return any(process.poll() not in (None, 0) for process, _ in self._processes)

    def check(self) -> None:
        """Raises EvenkeelError with the last words of one that failed."""
        for process, errors in self._processes:
            if process.poll() not in (None, 0):
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise EvenkeelError(
                    f"a worker ended with {process.returncode}: {said.removeprefix('evenkeel: ') or 'it was killed'}; "
                    "the same command goes on"
                )


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
    the language model; each call is one trial. storage: a file or URL; by default a file in the user's cache. name: of
    the study in it. jobs: processes on this machine, with the default objective. report: is told how many trials are
    done, of how many, and the share of the present one. Ctrl-C ends the present trial at its next step and leaves a
    partial comparison.
    Raises ConfigError for a study that cannot be run, RecordError for a store that holds another study of this name.
    """
    if objective is not None:
        options["objective"] = f"{objective.__module__}.{getattr(objective, '__qualname__', type(objective).__name__)}"
    study = _read(spec, options)
    run = begin(study, objective=objective, storage=storage, name=name, device=device, jobs=jobs)
    run.work(report)
    return run.comparison()


def _read(spec: Study | str | Sequence[str] | Mapping[str, Any], options: Mapping[str, Any]) -> Study:
    if isinstance(spec, Study):
        return replace(spec, **options)
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
    plans = plan_arms(study) if objective is None else tuple(ArmPlan(arm=arm, config={}) for arm in study.arms)
    corpus = None if objective is not None else read_corpus(study.data, context=_context(plans))
    store = Store(str(_default_file()), study.identity) if storage is None else Store(storage, name or NAME)
    founding = store.founding()
    if founding is None:
        if must_exist:
            raise RecordError(f"there is no study {store.name!r} in {shown(store.where)}; begin it without --resume")
        founding = store.found(_founded(study, plans, corpus, device, jobs))
    _check_same(study, founding.study, store)
    return _run(store, founding, study, corpus, objective, device, jobs)


def resume(
    storage: str,
    *,
    name: str = NAME,
    seeds: int | None = None,
    device: str = "cpu",
    jobs: int = 1,
    parent: int | None = None,
) -> Run:
    """Go on with a study as it was begun, with as many pairs as wanted. Raises RecordError where there is none.

    parent: the process that this one works for; it ends when that one does.
    """
    store = Store(storage, name)
    founding = store.founding()
    if founding is None:
        raise RecordError(f"there is no study {store.name!r} in {shown(storage)}; begin it without --resume")
    study = founding.study if seeds is None else founding.study.with_seeds(seeds)
    if study.objective:
        raise RecordError(
            f"the study {store.name!r} has an objective of its own, {study.objective}; go on with it from Python: "
            "evenkeel.compare(study, objective=...)"
        )
    plans = plan_arms(study)
    corpus = read_corpus(study.data, context=_context(plans))
    return replace(_run(store, founding, study, corpus, None, device, jobs), parent=parent)


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


def _founded(study: Study, plans: Sequence[ArmPlan], corpus: Corpus | None, device: str, jobs: int) -> Founding:
    steps, seconds = study.steps or 1, 0.0
    if corpus is not None:
        paces = paces_of(study, plans, corpus, device)
        steps = study.steps or steps_within(study, sum(paces), jobs)
        seconds = steps * sum(paces) / _USED
    return Founding(
        study=study,
        plans=tuple(plans),
        steps=steps,
        seconds=seconds,
        source="" if corpus is None else corpus.source,
        digest="" if corpus is None else corpus.digest,
        begun=now(),
    )


def paces_of(study: Study, plans: Sequence[ArmPlan], corpus: Corpus, device: str) -> list[float]:
    """Seconds that a step of each arm takes here."""
    trials = LanguageTrials({plan.arm.name: plan for plan in plans}, corpus, study.rows, _FEWEST_STEPS, device)
    with one_thread():
        return [trials.pace(name) for name in study.names]


def steps_within(study: Study, pace: float, jobs: int) -> int:
    """How many steps each trial can have, so that all of them end within the budget. pace: of all arms together."""
    rounds = study.tuning_trials + _WIDENED + study.seeds
    steps = int(_USED * study.budget * jobs / (pace * rounds))
    if steps < _FEWEST_STEPS:
        needed = pace * rounds * _FEWEST_STEPS / (_USED * jobs)
        raise ConfigError(
            f"a budget of {study.budget:g} s gives {steps} steps to each of {len(study.arms) * rounds} trials, and "
            f"fewer than {_FEWEST_STEPS} say nothing; give --budget {math.ceil(needed / 60)}m, fewer arms, seeds or "
            "tuning trials"
        )
    return min(steps, _MOST_STEPS)


def _check_same(study: Study, begun: Study, store: Store) -> None:
    """Raises RecordError, with the first field that differs, for a store that holds another study of this name."""
    if study.identity == begun.identity:
        return
    ours, theirs = study.to_dict(), begun.to_dict()
    field = next(name for name in ours if name not in ("seeds", "margin", "contrasts") and ours[name] != theirs[name])
    raise RecordError(
        f"the study {store.name!r} in {shown(store.where)} is another one ({field} is {_short(theirs[field])} there and "
        f"{_short(ours[field])} here); give another --name or --storage"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _context(plans: Sequence[ArmPlan]) -> int:
    return max(plan.config["context"] for plan in plans)


def _default_file() -> Path:
    """Studies without a storage of their own: one file in the user's cache, each under its identity."""
    path = demo_directory().parent / "studies.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _checkpoints(founding: Founding) -> Path:
    """Checkpoints stay on the machine that wrote them, in the user's cache."""
    return demo_directory().parent / "checkpoints" / founding.study.identity
