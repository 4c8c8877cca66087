"""Where a study's trials are kept: one Optuna study in a database that any number of workers share.

A trial is claimed by writing it down as running; of two claims on one point the older counts. It stays claimed while
its heart beats. A worker that died is told by its silence, or at once where it was on this machine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from ...errors import RecordError
from ...schema import clean_name
from ..founding import FORMAT, Founding
from ..points import Point
from ..results import TrialResult
from .databases import GRACE, HEARTBEAT, open_database, shown
from .workers import is_dead, worker_name

_ABOUT = "evenkeel"


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
        self._read: dict[int, TrialResult] = {}
        self._founding: Founding | None = None

    def founding(self) -> Founding | None:
        """What the study was founded with; None where there is none of this name.

        Raises RecordError for one of another format, and for a study of Optuna's that is not evenkeel's.
        """
        if self._founding is None and self._study_id() is not None:
            trials = self._trials("FAIL", "COMPLETE", "RUNNING", "PRUNED", "WAITING")
            about = next((trial.user_attrs[_ABOUT] for trial in trials if _ABOUT in trial.user_attrs), None)
            if about is None and trials:
                raise RecordError(
                    f"the study {self.name!r} in {shown(self.where)} is not evenkeel's; give another --name"
                )
            self._founding = None if about is None else self._checked(json.loads(about))
        return self._founding

    def found(self, founding: Founding) -> Founding:
        """Begin a study; where another worker was faster, what it began: the oldest trial that says so counts."""
        import optuna

        with suppress(optuna.exceptions.DuplicatedStudyError):
            self._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], self.name)
        if self.founding() is None:
            about = {_ABOUT: json.dumps(founding.to_dict())}
            state = optuna.trial.TrialState.FAIL  # so that nobody takes it for a result
            self._storage.create_new_trial(self._id(), optuna.trial.create_trial(state=state, user_attrs=about))
        known = self.founding()
        assert known is not None
        return known

    def _checked(self, data: dict[str, Any]) -> Founding:
        if data.get("format") != FORMAT:
            raise RecordError(
                f"the study {self.name!r} in {shown(self.where)} was written by evenkeel "
                f"{clean_name(str(data.get('evenkeel')))} in format {data.get('format')}, and this one reads {FORMAT}; "
                "give another --storage"
            )
        return Founding.from_dict(data)

    def results(self) -> dict[str, TrialResult]:
        """What is done, by the points' keys; of two trials of one point the older counts."""
        done: dict[str, TrialResult] = {}
        for trial in self._trials("COMPLETE"):
            if trial.number not in self._read:
                self._read[trial.number] = TrialResult.from_dict(json.loads(trial.user_attrs["result"]))
            done.setdefault(trial.user_attrs["key"], self._read[trial.number])
        return done

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
            rivals = [trial for trial in self._trials("RUNNING", "COMPLETE") if trial.user_attrs["key"] == point.key]
            if rivals and rivals[0].number == claim.number:
                return claim
            self.give_up(claim, "another worker was faster")
            taken = self.running()
        return None

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Let the heart of a trial beat while it runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                with suppress(Exception):  # a database that is away for a moment; the next beat tries again
                    self._storage.record_heartbeat(claim.trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish(self, claim: Claim, result: TrialResult) -> None:
        """Write down what a trial came to; as a trial of its own where somebody took us for dead meanwhile."""
        import optuna

        result = replace(result, worker=self._worker)
        try:
            self._storage.set_trial_user_attr(claim.trial, "result", json.dumps(result.to_dict()))
            self._storage.set_trial_state_values(claim.trial, optuna.trial.TrialState.COMPLETE, [_value(result)])
        except optuna.exceptions.UpdateFinishedTrialError:
            self.adopt([result])

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
        running = self._trials("RUNNING")
        silent = set(self._storage._get_stale_trial_ids(self._id())) if running else set()
        for trial in running:
            if _is_dead(trial, trial._trial_id in silent):
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
                "learning_rate": optuna.distributions.FloatDistribution(*_around(point.learning_rate), log=True),
                "seed": optuna.distributions.IntDistribution(0, 2**31 - 1),
            },
            user_attrs=about,
        )
        trial = self._storage.create_new_trial(self._id(), template)
        self._storage.record_heartbeat(trial)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # a clock far off ours: the claim is lost
            self._storage.set_trial_user_attr(trial, "beats", True)
        return Claim(point, trial, self._storage.get_trial_number_from_id(trial))

    def _trials(self, *states: str) -> list[Any]:
        """Trials in these states, by number."""
        import optuna

        wanted = tuple(optuna.trial.TrialState[state] for state in states)
        found = self._storage.get_all_trials(self._id(), deepcopy=False, states=wanted)
        return sorted(found, key=lambda trial: trial.number)

    def _id(self) -> int:
        study = self._study_id()
        if study is None:
            raise RecordError(f"there is no study {self.name!r} in {shown(self.where)}; begin it without --resume")
        return study

    def _study_id(self) -> int | None:
        try:
            return self._storage.get_study_id_from_name(self.name)
        except KeyError:
            return None


def _around(rate: float) -> tuple[float, float]:
    """A range for Optuna's own tools, which want one; nothing here reads it."""
    return min(1e-10, rate), max(1e3, rate)


def _value(result: TrialResult) -> float:
    """What Optuna keeps as a trial's value, which may not be NaN."""
    return result.counted_or_worst


def _is_dead(trial: Any, silent: bool) -> bool:
    """Whether a trial's worker is gone: known at once on this machine, elsewhere by its silence.

    One that died before its heart first beat is silent from its claim on.
    """
    here = is_dead(trial.user_attrs["worker"])
    unborn = "beats" not in trial.user_attrs and time.time() - trial.user_attrs["claimed"] > GRACE
    return silent or unborn if here is None else here
