"""How a study begins here: the steps that fit its budget, by the pace of each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ConfigError
from ..training import one_thread
from .comparison import ArmPlan
from .corpus import Corpus
from .founding import Founding
from .language import LanguageTrials
from .study import Study
from .trials import now

_FEWEST_STEPS = 50
_MOST_STEPS = 20_000
_USED = 0.85  # of the budget: the rest is for evaluations, the start of workers and the end
_WIDENED = 1  # learning rates that are tried beside those of the range, where an arm's best lies at its end


def settled(study: Study, plans: Sequence[ArmPlan], corpus: Corpus | None, device: str, jobs: int) -> Founding:
    """A study as it begins here, on so many processes. corpus: None with an objective of the user's own."""
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
