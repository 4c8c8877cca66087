"""A worker on a small study with an objective of its own, for tests that kill it or let several work."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from evenkeel.studies.comparing import begin
from evenkeel.studies.running.working import work
from evenkeel.studies.study import Arm, Study

OWN = Study(
    arms=tuple(Arm(name=name, choices={}) for name in ("one", "two", "three")),
    baseline="one",
    model={},
    seeds=4,
    tuning_trials=3,
    learning_rates=(1e-3, 4e-3),
    objective="tests",
)


def loss_of(arm: str, learning_rate: float, seed: int) -> float:
    """A number that belongs to the point alone, best in the middle of the range."""
    noise = int(hashlib.sha256(f"{arm} {seed}".encode()).hexdigest()[:6], 16) / 2**24
    return 1 + abs(learning_rate - 2e-3) * 1e3 + noise


def work_on(where: str, log: str, seconds: float) -> None:
    """Work until the study is done; each trial takes some time, and its point goes into a log as it begins."""

    def train(arm: str, learning_rate: float, seed: int) -> float:
        with Path(log).open("a") as file:
            file.write(f"{arm} {learning_rate:.6g} {seed}\n")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return loss_of(arm, learning_rate, seed)

    run = begin(OWN, objective=train, storage=where, name="work")
    checkpoints = Path(log).parent / "checkpoints"
    work(run.store, run.study, run.objective, checkpoints=checkpoints, stopping=lambda: False, report=lambda *_: None)
