"""How early a run that goes wrong is told: its first finding against the step at which its loss leaves a twin's.

The twin has the same weights and batches, and the healthy recipe. Its band is what two healthy runs on other batches
differ by: the difference of the losses, smoothed over some steps, is outside where it stays above that.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import evenkeel as ek
from evenkeel.architectures.offline import offline_and_quiet
from evenkeel.faults import FAULTS, Patient, Recipe, run

from .bases import Base
from .tables import Share, listed
from .zoo import Size

STEPS = 240
AHEAD = 20
"""Steps that a finding has to come before the loss."""

GRADUAL = ("entropy_collapse", "steps_too_large")
"""Faults that training reaches by and by; a broken batch is there with the loss that it breaks."""

FAMILIES = ("own-gpt2", "own-llama", "gpt2", "llama", "opt")
SEEDS = (41, 42, 43)

_EVERY = 5
_WARMUP = 0.25
_SIZE = Size(4, 64)
_SMOOTHED = 8
_STAYS = 10  # steps outside that are no wobble
_DEVIATIONS = 4.0
_LEAST = 0.05  # nats


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run: the step of its first finding at warning or above, the code, and the step at which its loss left."""

    fault: str
    family: str
    seed: int
    code: str = ""
    told: int | None = None
    left: int | None = None

    @property
    def id(self) -> str:
        """What was done to whom."""
        return f"{self.fault}/{self.family}/{self.seed}"

    @property
    def early(self) -> bool | None:
        """Whether the finding came early enough; None where the loss never left the band."""
        if self.left is None:
            return None
        return self.told is not None and self.told <= self.left - AHEAD

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Course:
        return cls(**data)


def courses() -> tuple[Course, ...]:
    """Every run that is to be made."""
    return tuple(
        Course(fault=name, family=family, seed=seed) for name in GRADUAL for family in FAMILIES for seed in SEEDS
    )


def course(run_: Course) -> Course:
    """Train a sick model and its twin, and say which came first, the finding or the loss."""
    fault, base = FAULTS[run_.fault], Base(run_.family, _SIZE, run_.seed, 0)
    assert fault.train is not None
    with offline_and_quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        recipe = replace(base.recipe(STEPS), warmup=_WARMUP)
        twin = _losses(base, recipe, base)
        others = [_losses(base, recipe, replace(base, seed=base.seed + offset)) for offset in (1000, 2000)]
        sick, told, code = _watched(base, fault.train(recipe), fault.codes)
    return replace(run_, code=code, told=told, left=left_band(sick, twin, _noise(*others)))


def left_band(sick: Sequence[float], twin: Sequence[float], noise: float) -> int | None:
    """The first step from which the smoothed loss stays above the twin's by more than the noise; None if it never does.

    A run that ended early, on a loss that is not finite, left at its end at the latest.
    """
    above = _smoothed([a - b for a, b in zip(sick, twin, strict=False)])
    bound = max(_LEAST, _DEVIATIONS * noise)
    for step in range(len(above)):
        after = above[step : step + _STAYS]
        if len(after) == _STAYS and not any(item <= bound for item in after):
            return step
    return len(sick) if len(sick) < len(twin) else None


def _noise(first: Sequence[float], second: Sequence[float]) -> float:
    """The deviation of the smoothed difference of two healthy runs, behind their first steps."""
    return statistics.pstdev(_smoothed([a - b for a, b in zip(first, second, strict=True)])[_SMOOTHED:])


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, as many as are smoothed over."""
    windows = (values[max(0, place - _SMOOTHED + 1) : place + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _losses(base: Base, recipe: Recipe, read: Base) -> list[float]:
    torch.manual_seed(base.seed)
    return run(recipe, Patient(base.model(), ()), read.stream())


def _watched(base: Base, recipe: Recipe, codes: Sequence[str]) -> tuple[list[float], int | None, str]:
    """The losses of a watched run, and the first finding with one of these codes at warning or above."""
    torch.manual_seed(base.seed)
    model = base.model()
    optimizer = recipe.optimizer(model, recipe)
    first: list[tuple[int, str]] = []
    with ek.watch(model, optimizer=optimizer, every=_EVERY) as watch:

        def look(step: int) -> None:
            if first or step % _EVERY:
                return
            found = [item for item in watch.diagnose().findings if item.severity != "info" and item.code in codes]
            first.extend((step, item.code) for item in found[:1])

        losses = run(
            replace(recipe, batches=_looking(recipe, look)), Patient(model, ()), base.stream(), watch, optimizer
        )
    told, code = first[0] if first else (None, "")
    return losses, told, code


def _looking(recipe: Recipe, look: Callable[[int], None]) -> Callable[..., Iterator[Any]]:
    """The recipe's batches, with a look at the record before each step but the first."""

    def batches(stream: Iterator[Any], given: Recipe) -> Iterator[Any]:
        for step, batch in enumerate(recipe.batches(stream, given)):
            if step:
                look(step - 1)
            yield batch

    return batches


def render(made: Sequence[Course]) -> Iterator[str]:
    """The share of runs that were told early, by fault, and each run."""
    for name in GRADUAL:
        runs = [item for item in made if item.fault == name and item.early is not None]
        yield f"`{name}`: told at least {AHEAD} steps before the loss left its twin's band in "
        yield f"{Share.of(bool(item.early) for item in runs)} of the runs in which it did."
        yield ""
    yield from listed("Runs", [(item.id, _told(item)) for item in made])


def _told(item: Course) -> str:
    told = "not told" if item.told is None else f"{item.code} at step {item.told}"
    return f"{told}; the loss " + ("stayed" if item.left is None else f"left at step {item.left}")
