"""Which trials a study wants, from what is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from evenkeel.studies.points import Point
from evenkeel.studies.results import TrialResult
from evenkeel.studies.schedule import MOST_WIDENED, agenda
from evenkeel.studies.study import Arm, Study

STUDY = Study(
    arms=(Arm(name="one", choices={}), Arm(name="two", choices={})),
    baseline="one",
    model={},
    seeds=3,
    tuning_trials=3,
    learning_rates=(1e-3, 4e-3),
)


def carried_out(loss: Callable[[Point], float], study: Study = STUDY) -> list[TrialResult]:
    """Every result of a study whose trials come to these losses."""
    results: list[TrialResult] = []
    while wanted := agenda(study, results).wanted:
        point = wanted[0]
        value = loss(point)
        results.append(TrialResult(point=point, loss=value, start=5.0, diverged=not math.isfinite(value)))
    return results


def bowl(best: float) -> Callable[[Point], float]:
    return lambda point: math.log2(point.learning_rate / best) ** 2


def rates(results: list[TrialResult], role: str, arm: str) -> list[float]:
    return sorted({item.point.learning_rate for item in results if item.point.role == role and item.point.arm == arm})


def test_every_arm_is_tuned_at_the_same_rates_and_paired_at_its_best() -> None:
    results = carried_out(bowl(2e-3))
    assert rates(results, "tuning", "one") == rates(results, "tuning", "two") == [1e-3, 2e-3, 4e-3]
    assert rates(results, "paired", "one") == rates(results, "paired", "two") == [2e-3]
    assert [item.point.seed for item in results if item.point.role == "paired"] == [0, 0, 1, 1, 2, 2]


def test_no_pair_has_a_seed_of_the_tuning() -> None:
    results = carried_out(bowl(2e-3))
    assert {item.point.seed for item in results if item.point.role == "tuning"}.isdisjoint(
        item.point.seed for item in results if item.point.role == "paired"
    )


def test_a_best_at_the_end_of_the_range_widens_it_for_all_arms() -> None:
    results = carried_out(lambda point: bowl(8e-3 if point.arm == "two" else 2e-3)(point))
    assert rates(results, "tuning", "one") == rates(results, "tuning", "two") == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert rates(results, "paired", "two") == [8e-3]
    assert rates(results, "paired", "one") == [2e-3]


def test_a_range_widens_below_as_well() -> None:
    results = carried_out(bowl(1e-3))
    assert rates(results, "tuning", "one") == [5e-4, 1e-3, 2e-3, 4e-3]


def test_a_range_does_not_grow_without_end() -> None:
    results = carried_out(lambda point: -point.learning_rate)
    assert len(rates(results, "tuning", "one")) == STUDY.tuning_trials + MOST_WIDENED


def test_diverged_trials_are_the_worst_and_are_not_asked_for_again() -> None:
    results = carried_out(lambda point: math.nan if point.learning_rate > 2e-3 else bowl(2e-3)(point))
    assert rates(results, "paired", "one") == [2e-3]
    points = [item.point for item in results]
    assert len(points) == len(set(points))


def test_what_remains_falls_by_one_with_each_trial_where_no_range_grows() -> None:
    results = carried_out(bowl(2e-3))
    remaining = [agenda(STUDY, results[:count]).remaining for count in range(len(results) + 1)]
    assert remaining == list(range(len(results), -1, -1))


def test_more_seeds_want_only_the_pairs_that_are_missing() -> None:
    results = carried_out(bowl(2e-3))
    wanted = agenda(replace(STUDY, seeds=5), results).wanted
    assert [(point.arm, point.seed) for point in wanted] == [("one", 3), ("two", 3), ("one", 4), ("two", 4)]


@pytest.mark.parametrize("study", [STUDY, replace(STUDY, seeds=7)])
def test_a_study_is_the_same_one_with_more_seeds(study: Study) -> None:
    assert study.identity == STUDY.identity


def test_a_study_read_back_is_the_same_one() -> None:
    assert Study.from_dict(STUDY.to_dict()) == STUDY
