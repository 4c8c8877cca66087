"""How a study begins here: the steps that fit its budget, by the pace of each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import ConfigError
from ...training import one_thread
from ..comparison import ArmPlan, context_of
from ..founding import Founding
from ..study import Study
from ..trials.corpus import Corpus
from ..trials.language import LanguageTrials, evaluation_steps
from ..trials.objectives import now

_FEWEST_STEPS = 50
_MOST_STEPS = 20_000
_USED = 0.85  # of the budget: the rest is for the start of workers, the steps that are watched, and the end
_WIDENED = 1  # learning rates that are tried beside those of the range, where an arm's best lies at its end
_FORWARD = 1 / 3  # of a step's cost per token: a backward pass costs twice the forward pass


def settled(study: Study, plans: Sequence[ArmPlan], corpus: Corpus | None, device: str, jobs: int) -> Founding:
    """A study as it begins here, on so many processes. corpus: None with an objective of the user's own."""
    steps, seconds = study.steps or 1, 0.0
    if corpus is not None:
        evaluating = steps_of_evaluations(len(corpus.windows(context_of(plans))), study.rows)
        paces = paces_of(study, plans, corpus, device)
        steps = study.steps or steps_within(study, max(paces), evaluating, jobs)
        seconds = (steps + evaluating) * sum(paces)
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


def steps_of_evaluations(windows: int, rows: int) -> float:
    """How many steps of so many rows cost as much as all evaluations of a trial, each of so many windows."""
    return len(evaluation_steps(_MOST_STEPS)) * windows / rows * _FORWARD


def steps_within(study: Study, pace: float, evaluating: float, jobs: int) -> int:
    """How many steps each trial can have, so that all of them end within the budget.

    pace: seconds of a step of the slowest arm. evaluating: what a trial's evaluations cost, in steps. Trials run in
    rounds of one on each process; tuning is over before pairs begin. Raises ConfigError where that gives too few.
    """
    rounds = rounds_of(study, jobs)
    steps = math.floor(_USED * study.budget / (pace * rounds) - evaluating)
    if steps < _FEWEST_STEPS:
        needed = pace * rounds * (_FEWEST_STEPS + evaluating) / _USED
        trials = len(study.arms) * (study.tuning_trials + _WIDENED + study.seeds)
        raise ConfigError(
            f"a budget of {study.budget:g} s gives {max(0, steps)} steps to each of {trials} trials, and "
            f"fewer than {_FEWEST_STEPS} say nothing; give --budget {math.ceil(needed / 60)}m, fewer arms, seeds or "
            "tuning trials"
        )
    return min(steps, _MOST_STEPS)


def rounds_of(study: Study, jobs: int) -> int:
    """How many trials each process runs one after the other, at most: the slowest has that many of the slowest arm."""
    arms = len(study.arms)
    return math.ceil(arms * (study.tuning_trials + _WIDENED) / jobs) + math.ceil(arms * study.seeds / jobs)
