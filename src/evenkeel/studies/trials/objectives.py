"""What a worker hands to whoever runs a trial, and what an objective of the user's own leaves."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, Protocol

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
    """What a study calls an objective: its name, and a digest of its code and of the values that it holds.

    It holds its defaults, what it closes over, the arguments of a `functools.partial` and the fields of a callable
    object. Of these, numbers, texts, tuples and functions count; what can change while it runs (lists, dictionaries,
    objects) does not, and neither do functions that it calls by their name.
    """
    inner = objective.func if isinstance(objective, partial) else objective
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    digest = hashlib.sha256(_told(objective).encode()).hexdigest()[:8]
    return f"{getattr(inner, '__module__', type(inner).__module__)}.{name}@{digest}"


def _told(value: Any, within: tuple[Any, ...] = ()) -> str:
    """A value as text that is the same in every process.

    within: what holds it, so that a function that closes over itself has an end.
    """
    if any(value is outer for outer in within):
        return "itself"
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            return repr(value)
        case frozenset():
            parts = sorted(_told(item, (*within, value)) for item in value)
        case _:
            parts = [_told(item, (*within, value)) for item in _held(value)]
    return f"{type(value).__name__}({', '.join(parts)})"


def _held(value: Any) -> Iterable[Any]:
    """What decides what a callable does, and what a tuple holds; nothing of anything else."""
    match value:
        case tuple():
            return value
        case CodeType():  # without the lines that it stands on
            return value.co_code, value.co_names, value.co_varnames, value.co_consts
        case FunctionType():
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
            return value.__code__, value.__defaults__, _pairs(value.__kwdefaults__ or {}), cells
        case MethodType():
            return value.__func__, value.__self__
        case partial():
            return value.func, value.args, _pairs(value.keywords)
    call = getattr(type(value), "__call__", None)  # noqa: B004 - what it is, not whether there is one
    return (call, _pairs(getattr(value, "__dict__", {}))) if isinstance(call, FunctionType) else ()


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
