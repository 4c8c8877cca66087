"""How many steps a budget gives: numbers worked out by hand, and a schedule that is played through."""

from __future__ import annotations

import heapq
import random
from pathlib import Path

import pytest
from study_files import config_alone

from evenkeel.errors import ConfigError
from evenkeel.studies.comparison import context_of
from evenkeel.studies.reading.arms import plan_arms
from evenkeel.studies.reading.specifications import read_study
from evenkeel.studies.running.settling import rounds_of, steps_of_evaluations, steps_within
from evenkeel.studies.study import Arm, Study


def study(arms: int, *, seeds: int = 5, tuning_trials: int = 5, budget: float = 600.0) -> Study:
    return Study(
        arms=tuple(Arm(name=f"arm {number}", choices={}) for number in range(arms)),
        baseline="arm 0",
        model={},
        seeds=seeds,
        tuning_trials=tuning_trials,
        budget=budget,
    )


@pytest.mark.parametrize(
    ("arms", "jobs", "rounds"),
    [
        (3, 1, 33),  # 3 arms of 6 learning rates and 5 pairs
        (3, 2, 17),  # 18 in 9 rounds, 15 in 8: the last has one process idle
        (3, 4, 9),  # 18 in 5, 15 in 4
        (2, 64, 2),  # more processes than trials: one round of tuning, one of pairs
    ],
)
def test_a_process_runs_so_many_trials_one_after_the_other(arms: int, jobs: int, rounds: int) -> None:
    assert rounds_of(study(arms), jobs) == rounds


def test_evaluations_cost_a_third_of_a_step_per_token() -> None:
    # 13 evaluations: 11 evenly from the start to the end, 2 more close to it. 13 · 480 windows / 16 rows / 3
    assert steps_of_evaluations(480, 16) == pytest.approx(130)


def test_a_budget_gives_what_is_left_of_its_rounds_behind_the_evaluations() -> None:
    # 85% of 600 s is 510 s; in 17 rounds 30 s each; 600 steps of 0.05 s, of which evaluations cost 130.5
    assert steps_within(study(3), 0.05, 130.5, 2) == 469
    # more processes than trials: 2 rounds of 255 s, 5,100 steps
    assert steps_within(study(3), 0.05, 130.5, 1000) == 4969


def test_a_budget_that_is_too_small_says_which_one_is_not() -> None:
    # 33 rounds of 50 steps and evaluations of 130, 0.05 s each: 297 s, which are 85% of 349 s
    with pytest.raises(ConfigError, match=r"gives 0 steps to each of 33 trials.* give --budget 6m"):
        steps_within(study(3, budget=60.0), 0.05, 130.0, 1)
    assert steps_within(study(3, budget=360.0), 0.05, 130.0, 1) >= 50


@pytest.mark.parametrize("like", [False, True])
def test_four_arms_have_steps_worth_the_name_within_the_default_budget_on_two_slow_cores(
    like: bool, tmp_path: Path
) -> None:
    given = {"like": config_alone(tmp_path, "llama")} if like else {}
    ours = read_study(["feedforward=relu,gelu,sigmoid,swiglu"], **given)
    plans = plan_arms(ours)
    step = max(plan.flops for plan in plans) * ours.rows * context_of(plans)
    assert steps_within(ours, step / 15e9, steps_of_evaluations(512, ours.rows), jobs=2) >= 200  # at 15 GFLOP/s


@pytest.mark.parametrize("seed", range(20))
def test_every_trial_ends_within_the_budget_whatever_the_arms_paces(seed: int) -> None:
    drawn = random.Random(seed)
    paces = [drawn.uniform(0.05, 0.06) for _ in range(drawn.randint(2, 6))]
    jobs, evaluating = drawn.randint(1, 4), drawn.uniform(200, 500)
    ours = study(len(paces), seeds=drawn.randint(2, 7), budget=9000.0)
    steps = steps_within(ours, max(paces), evaluating, jobs)
    trials = [pace * (steps + evaluating) for pace in paces]
    tuning = trials * (ours.tuning_trials + 1)
    assert played(trials * ours.seeds, jobs, begun=played(tuning, jobs)) <= 0.85 * ours.budget


def played(seconds: list[float], jobs: int, begun: float = 0.0) -> float:
    """When the last of some trials ends, where each process takes the next one as soon as it is free."""
    free = [begun] * jobs
    for item in seconds:
        heapq.heappush(free, heapq.heappop(free) + item)
    return max(free)
