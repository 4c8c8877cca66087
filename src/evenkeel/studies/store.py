"""Where a study's trials are kept: one Optuna study in a database that any number of workers share.

A trial is claimed by writing it down as running; of two claims on one point the older counts. It stays claimed while
its heart beats. A worker that died is told by its silence, or at once where it was on this machine.
"""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import RecordError
from ..schema import clean_name
from .databases import GRACE, HEARTBEAT, open_database, shown
from .founding import FORMAT, Founding
from .points import Point
from .results import TrialResult
from .workers import is_dead, worker_name

_ABOUT = "evenkeel"
_FOUNDING = 10.0  # seconds that a worker waits for the one that has just created a study
_POLL = 0.1


@dataclass(frozen=True)
class Claim:
    """A point that this worker has taken, and its trial in the store."""

    point: Point
    trial: int
    number: int


class Store:
    """One study in a database. where: a path or a URL. name: of the study in it.

    Raises UsageError for a database that cannot be opened, RecordError for one of something else.
    """

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = where, name
        self._storage = open_database(where)
        self._worker = worker_name()

    def founding(self) -> Founding | None:
        """What the study was founded with; None where there is none of this name. RecordError for another format."""
        study = self._found()
        if study is None:
            return None
        begun = time.monotonic()
        while (about := self._storage.get_study_user_attrs(study).get(_ABOUT)) is None:
            if time.monotonic() - begun > _FOUNDING:  # who created it died before it wrote down what for
                return None
            time.sleep(_POLL)
        data = json.loads(about)
        if data.get("format") != FORMAT:
            raise RecordError(
                f"the study {self.name!r} in {shown(self.where)} was written by evenkeel "
                f"{clean_name(str(data.get('evenkeel')))} in format {data.get('format')}, and this one reads {FORMAT}; "
                "give another --storage"
            )
        return Founding.from_dict(data)

    def found(self, founding: Founding) -> Founding:
        """Begin a study; where another worker was faster, what it began."""
        import optuna

        try:
            study = self._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], self.name)
        except optuna.exceptions.DuplicatedStudyError:
            known = self.founding()
            if known is not None:
                return known
            study = self._id()
        self._storage.set_study_user_attr(study, _ABOUT, json.dumps(founding.to_dict()))
        return founding

    def results(self) -> dict[str, TrialResult]:
        """What is done, by the points' keys; of two trials of one point the older counts."""
        done: dict[str, TrialResult] = {}
        for trial in self._trials("COMPLETE"):
            done.setdefault(trial.user_attrs["key"], TrialResult.from_dict(json.loads(trial.user_attrs["result"])))
        return done

    def done(self) -> int:
        """How many trials are done."""
        import optuna

        return self._storage.get_n_trials(self._id(), optuna.trial.TrialState.COMPLETE)

    def running(self) -> frozenset[str]:
        """Keys of the points whose trials run."""
        return frozenset(trial.user_attrs["key"] for trial in self._trials("RUNNING"))

    def claim(self, points: Sequence[Point]) -> Claim | None:
        """Take the first of some points that nobody has; None where there is none left."""
        taken = self.running()
        for point in points:
            if point.key in taken:
                continue
            claim = self._written(point)
            rivals = (trial for trial in self._trials("RUNNING", "COMPLETE") if trial.user_attrs["key"] == point.key)
            if min(trial.number for trial in rivals) == claim.number:
                return claim
            self.give_up(claim, "another worker was faster")
        return None

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Let the heart of a trial beat while it runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                self._storage.record_heartbeat(claim.trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish(self, claim: Claim, result: TrialResult) -> None:
        """Write down what a trial came to; nothing where somebody took us for dead and gave it to another worker."""
        import optuna

        data = json.dumps({**result.to_dict(), "worker": self._worker})
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial, "result", data)
            self._storage.set_trial_state_values(claim.trial, optuna.trial.TrialState.COMPLETE, [_value(result)])

    def adopt(self, results: Iterable[TrialResult]) -> None:
        """Take over results that another store gave, of points that have none here."""
        import optuna

        done = self.results()
        for result in results:
            if result.point.key in done:
                continue
            about = {"key": result.point.key, "point": result.point.to_dict(), "result": json.dumps(result.to_dict())}
            template = optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE, value=_value(result), user_attrs=about
            )
            self._storage.create_new_trial(self._id(), template)

    def give_up(self, claim: Claim, reason: str) -> None:
        """Leave a trial to others."""
        import optuna

        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial, "reason", reason)
            self._storage.set_trial_state_values(claim.trial, optuna.trial.TrialState.FAIL)

    def free_the_dead(self) -> None:
        """Give the trials of workers that died to whoever comes next."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.load_study(study_name=self.name, storage=self._storage)
            optuna.storages.fail_stale_trials(study)
        for trial in self._trials("RUNNING"):
            if _is_dead(trial):
                point = Point.from_dict(trial.user_attrs["point"])
                self.give_up(Claim(point, trial._trial_id, trial.number), "its worker died")

    def _written(self, point: Point) -> Claim:
        """A trial of a point, running from the moment that it is there."""
        import optuna

        about = {"key": point.key, "point": point.to_dict(), "worker": self._worker, "claimed": time.time()}
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={"learning_rate": point.learning_rate, "seed": point.seed},
            distributions={
                "learning_rate": optuna.distributions.FloatDistribution(1e-10, 1e3, log=True),
                "seed": optuna.distributions.IntDistribution(0, 2**31 - 1),
            },
            user_attrs=about,
        )
        trial = self._storage.create_new_trial(self._id(), template)
        self._storage.record_heartbeat(trial)
        self._storage.set_trial_user_attr(trial, "beats", True)
        return Claim(point, trial, self._storage.get_trial_number_from_id(trial))

    def _trials(self, *states: str) -> list[Any]:
        """Trials in these states, by number."""
        import optuna

        wanted = tuple(optuna.trial.TrialState[state] for state in states)
        found = self._storage.get_all_trials(self._id(), deepcopy=False, states=wanted)
        return sorted(found, key=lambda trial: trial.number)

    def _id(self) -> int:
        study = self._found()
        if study is None:
            raise RecordError(f"there is no study {self.name!r} in {shown(self.where)}; begin it without --resume")
        return study

    def _found(self) -> int | None:
        try:
            return self._storage.get_study_id_from_name(self.name)
        except KeyError:
            return None


def _value(result: TrialResult) -> float:
    """What Optuna keeps as a trial's value, which may not be NaN."""
    return result.counted if math.isfinite(result.counted) else math.inf


def _is_dead(trial: Any) -> bool:
    """Whether a trial's worker was on this machine and is gone, or died before its heart first beat."""
    here = is_dead(trial.user_attrs["worker"])
    silent = "beats" not in trial.user_attrs and time.time() - trial.user_attrs["claimed"] > GRACE
    return silent if here is None else here
