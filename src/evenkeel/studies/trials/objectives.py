"""What a worker hands to whoever runs a trial, and what an objective of the user's own leaves."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import CodeType
from typing import Protocol

from ...errors import UsageError
from ..points import Point
from ..results import TrialResult

UserObjective = Callable[[str, float, int], float]
"""`train(arm, learning_rate, seed) -> loss`: the loss that is compared, below which an arm is better."""


class Stopped(Exception):
    """A trial was asked to stop; what it had is in its checkpoint."""


@dataclass(frozen=True)
class Session:
    """One run of one trial. checkpoint: a file that is the trial's own, for it to write and find again.

    stopping: whether it is asked to stop. progress: is told the share that is done.
    """

    checkpoint: Path
    stopping: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[float], object] = field(default=lambda share: None)

    def check(self) -> None:
        """Raises Stopped where the trial is asked to stop."""
        if self.stopping():
            raise Stopped


class Objective(Protocol):
    """Runs the trial at a point."""

    def __call__(self, point: Point, session: Session) -> TrialResult: ...


@dataclass(frozen=True)
class OwnObjective:
    """The user's own objective as the engine calls it."""

    train: UserObjective

    def __call__(self, point: Point, session: Session) -> TrialResult:
        begun = time.perf_counter()
        loss = self.train(point.arm, point.learning_rate, point.seed)
        try:
            loss = float(loss)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the objective gave {type(loss).__name__} for arm {point.arm!r}; let it return a number, the loss"
            ) from error
        seconds = time.perf_counter() - begun
        return TrialResult(point=point, loss=loss, diverged=not math.isfinite(loss), seconds=seconds, finished=now())


def name_of(objective: UserObjective) -> str:
    """What a study calls an objective: its name and a digest of its code, so that an edited one is another."""
    code = getattr(objective, "__code__", None) or getattr(type(objective).__call__, "__code__", None)
    named = f"{objective.__module__}.{getattr(objective, '__qualname__', type(objective).__name__)}"
    return named if code is None else f"{named}@{hashlib.sha256(_marshalled(code)).hexdigest()[:8]}"


def _marshalled(code: CodeType) -> bytes:
    """A function's code and constants without the lines that it stands on."""
    inner = b"".join(_marshalled(item) for item in code.co_consts if isinstance(item, CodeType))
    plain = repr([item for item in code.co_consts if not isinstance(item, CodeType)])
    return code.co_code + plain.encode() + repr((code.co_names, code.co_varnames)).encode() + inner


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
