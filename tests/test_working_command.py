"""What a terminal is told of a study that is worked on: how much is left, and for how long."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from evenkeel.cli.working import estimate, processes, seconds_left
from evenkeel.studies.comparing import Run, begin
from evenkeel.studies.study import Arm, Study


@pytest.fixture
def run(tmp_path: Path) -> Run:
    arms = tuple(Arm(name=name, choices={}) for name in ("one", "two"))
    study = Study(arms=arms, baseline="one", model={}, objective="tests")
    here = begin(study, objective=lambda arm, rate, seed: 1.0, storage=str(tmp_path / "study.sqlite"))
    return replace(here, jobs=4)


@pytest.mark.parametrize(
    ("left", "told"), [(20, "20 trials of "), (20, " in 4 processes"), (3, " in 3 processes"), (1, " in 1 process")]
)
def test_processes_are_those_that_have_a_trial(run: Run, left: int, told: str) -> None:
    line = estimate(run, left)
    assert told in line and line.endswith(("processes", "1 process"))


def test_what_is_left_takes_as_long_as_what_was_done_here() -> None:
    # 30 of 50 were done before; 5 in 100 s since: 15 more take 300 s
    assert seconds_left(35, 50, 0.0, before=30, workers=2, seconds=100.0) == pytest.approx(300.0)
    # and half of 2 more: 6 in 100 s, 14 left
    assert seconds_left(35, 50, 0.5, before=30, workers=2, seconds=100.0) == pytest.approx(100 * 14 / 6)
    # one is left, whatever the processes: 19.5 in 100 s, half a trial left
    assert seconds_left(49, 50, 0.5, before=30, workers=8, seconds=100.0) == pytest.approx(100 * 0.5 / 19.5)


def test_nothing_is_known_before_there_is_progress() -> None:
    assert math.isnan(seconds_left(30, 50, 0.0, before=30, workers=2, seconds=1.0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_cores_that_this_process_may_not_use_get_no_worker() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processes("cpu") == 1
    finally:
        os.sched_setaffinity(0, before)
    assert processes("cpu") == len(before)
    assert processes("cuda") == 1
