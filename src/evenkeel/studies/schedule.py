"""Which trials a study wants, as a pure function of what is done: any worker comes to the same list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .points import TUNING_SEED, Point
from .results import TrialResult
from .study import Study

MOST_WIDENED = 3
"""By so many steps a range of learning rates may grow on each side."""


@dataclass(frozen=True)
class Agenda:
    """wanted: points without a result that can be run now, in their order. remaining: all that is known to be left."""

    wanted: tuple[Point, ...]
    remaining: int


def agenda(study: Study, results: Iterable[TrialResult]) -> Agenda:
    """What is to be done: learning rates of every arm first, then the pairs at each arm's best.

    Every arm is tried at the same rates. While the best of some arm is the lowest or the highest rate, the range grows
    by a step on that side, for all arms, up to MOST_WIDENED steps.
    """
    done = {item.point.key: item for item in results}
    tuning = [point for point in tuning_points(study, done) if point.key not in done]
    if tuning:
        return Agenda(tuple(tuning), len(tuning) + len(study.arms) * study.seeds)
    best = {name: best_rate(study, name, done) for name in study.names}
    paired = [Point(name, "paired", best[name], seed) for seed in range(study.seeds) for name in study.names]
    wanted = tuple(point for point in paired if point.key not in done)
    return Agenda(wanted, len(wanted))


def tuning_points(study: Study, done: Mapping[str, TrialResult]) -> tuple[Point, ...]:
    """Every tuning trial that is wanted so far, rate by rate."""
    lowest, highest = 0, study.tuning_trials - 1
    while True:
        points = [
            Point(name, "tuning", rate_of(study, step), TUNING_SEED)
            for step in range(lowest, highest + 1)
            for name in study.names
        ]
        if any(point.key not in done for point in points):
            return tuple(points)
        best = [_best_step(study, name, range(lowest, highest + 1), done) for name in study.names]
        down = lowest in best and lowest > -MOST_WIDENED
        up = highest in best and highest < study.tuning_trials - 1 + MOST_WIDENED
        if not (down or up):
            return tuple(points)
        lowest, highest = lowest - down, highest + up


def rate_of(study: Study, step: int) -> float:
    """The learning rate at a step of the range, which has the first at its low end; to six digits."""
    low, high = study.learning_rates
    return float(f"{low * (high / low) ** (step / (study.tuning_trials - 1)):.6g}")


def best_rate(study: Study, arm: str, done: Mapping[str, TrialResult]) -> float:
    """The tried learning rate at which an arm's tuning trial ends lowest."""
    tried = [point for point in tuning_points(study, done) if point.arm == arm]
    return best_of([(point.learning_rate, done[point.key].counted_or_worst) for point in tried])


def best_of(losses: Sequence[tuple[float, float]]) -> float:
    """Of (learning rate, loss), lowest rate first, the rate with the lowest loss; of equal ones the lowest."""
    return min(losses, key=lambda pair: pair[1])[0]


def _best_step(study: Study, arm: str, steps: range, done: Mapping[str, TrialResult]) -> int:
    keys = {step: Point(arm, "tuning", rate_of(study, step), TUNING_SEED).key for step in steps}
    return min(steps, key=lambda step: done[keys[step]].counted_or_worst)
