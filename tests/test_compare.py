"""`evenkeel.compare` from Python: the user's own objective, the user's own activation, words and mappings."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import evenkeel as ek
from evenkeel.errors import ConfigError, UsageError
from evenkeel.studies import read_study
from evenkeel.studies.reading.specifications import study_of
from evenkeel.studies.trials.objectives import name_of

BETTER = 0.1
"""Nats by which one arm is better than the other."""


def noisy(arm: str, learning_rate: float, seed: int) -> float:
    """A loss with a seed's noise, which pairs share, and an arm's own."""
    shared, own = random.Random(seed).gauss(0, 0.2), random.Random(f"{arm} {seed}").gauss(0, 0.02)
    return 2 - BETTER * (arm == "new") + shared + own + (learning_rate - 4e-3) ** 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))


def test_a_planted_difference_is_decided_at_the_default_number_of_pairs() -> None:
    comparison = ek.compare(["old", "new"], objective=noisy)
    verdict = comparison.verdicts[0]
    assert (verdict.arm, verdict.against, verdict.word) == ("new", "old", "better")
    assert verdict.interval.low < -BETTER < verdict.interval.high
    assert len(verdict.differences) == 5
    assert comparison.arms[0].learning_rate == 4e-3
    assert comparison.finished and not comparison.wanted


def test_another_baseline_has_contrasts_of_its_own() -> None:
    study = study_of({"arms": [{"name": name} for name in ("old", "new")], "objective": "theirs", "seeds": 2})
    comparison = ek.compare(study, objective=noisy, baseline="new")
    assert [(item.arm, item.against) for item in comparison.verdicts] == [("old", "new")]


def test_an_objective_without_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match="gave str for arm 'old'"):
        ek.compare(["old", "new"], objective=lambda arm, rate, seed: "lost")  # pyright: ignore


def test_an_error_of_the_objective_comes_out_and_the_study_goes_on_behind_it() -> None:
    seen: list[tuple[str, float, int]] = []

    def fragile(arm: str, learning_rate: float, seed: int) -> float:
        if len(seen) == 3:
            seen.append((arm, learning_rate, seed))
            raise ZeroDivisionError("once")
        seen.append((arm, learning_rate, seed))
        return noisy(arm, learning_rate, seed)

    spec = ["old", "new"]
    with pytest.raises(ZeroDivisionError, match="once"):
        ek.compare(spec, objective=fragile)
    comparison = ek.compare(spec, objective=fragile)
    assert not comparison.wanted
    assert len(seen) == len(set(seen)) + 1  # what broke was tried again, nothing else


def test_another_objective_is_another_study() -> None:
    def slower(arm: str, learning_rate: float, seed: int, *, lost: float) -> float:
        return noisy(arm, learning_rate, seed) + lost * (arm == "new")

    def known(objective: Callable[..., float]) -> str:
        return ek.compare(["old", "new"], objective=objective).verdicts[0].word

    assert known(partial(slower, lost=0.0)) == "better"
    assert known(partial(slower, lost=0.5)) == "worse"
    assert name_of(noisy) == name_of(noisy) != name_of(partial(slower, lost=0.5))


def test_an_objective_has_the_same_name_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def train(arm, rate, seed):\n    return 1.0 if arm in {'adam', 'lion', 'sgd', 'muon'} else 2.0\n"
    )
    program = "import mine; from evenkeel.studies.trials.objectives import name_of; print(name_of(mine.train))"
    names = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(names) == 1 and "mine.train@" in names.pop()


def test_a_loss_of_minus_infinity_does_not_win() -> None:
    def lucky(arm: str, learning_rate: float, seed: int) -> float:
        return -math.inf if learning_rate < 2e-3 else noisy(arm, learning_rate, seed)

    assert ek.compare(["old", "new"], objective=lucky).arms[0].learning_rate == 4e-3


def test_an_axis_of_one_value_never_reaches_an_objective() -> None:
    with pytest.raises(ConfigError, match="width has one value for all arms"):
        ek.compare("optimizer=adam,sgd width=64", objective=noisy)


def test_options_beside_a_study_are_read_as_in_a_file() -> None:
    study = study_of({"arms": [{"name": name} for name in ("old", "new")], "objective": "theirs", "seeds": 2})
    comparison = ek.compare(study, objective=noisy, contrasts=[["old", "new"]], budget="30m")
    assert (comparison.study.budget, comparison.verdicts[0].arm) == (1800.0, "old")
    with pytest.raises(ConfigError, match="did you mean 'seeds'"):
        ek.compare(study, objective=noisy, seed=3)


def test_a_study_with_an_objective_needs_it() -> None:
    study = read_study(["optimizer=old,new"], objective="theirs")
    with pytest.raises(ConfigError, match="give it to compare"):
        ek.compare(study)


def test_an_activation_of_ones_own_is_an_arm(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text("def softer(x):\n    return x / (1 + x.abs())\n")
    comparison = ek.compare(
        f"feedforward=relu,{path}:softer depth=1 d_model=16 context=16 attention.heads=2",
        steps=10,
        seeds=2,
        tuning_trials=3,
    )
    assert not comparison.wanted
    own = comparison.arms[1]
    assert "softer" in own.plan.arm.name
    assert own.plan.parameters == comparison.arms[0].plan.parameters
    assert own.losses != comparison.arms[0].losses
