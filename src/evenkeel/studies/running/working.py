"""A worker: takes one trial after the other until its study wants none."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...schema import in_one_line
from ..schedule import agenda
from ..study import Study
from ..trials.objectives import Objective, Session, Stopped
from .store import Claim, Store

Report = Callable[[int, int, float], object]
"""Is told how many trials are done, how many there are as far as is known, and the share of the present one."""

_WAIT = 2.0  # seconds between two looks for work, where others have all of it


def work(
    store: Store,
    study: Study,
    objective: Objective,
    *,
    checkpoints: Path,
    stopping: Callable[[], bool],
    report: Report,
) -> None:
    """Run trials of a study until it is done, its own and those that dead workers left, or until it is asked to stop.

    checkpoints: the directory of the trials' checkpoints; one that is there is gone on from. An error of a trial is
    raised here, after the trial was left to others.
    """
    while not stopping():
        store.free_the_dead()
        done = store.results()
        left = agenda(study, done.values())
        if not left.wanted:
            return
        report(len(done), len(done) + left.remaining, 0.0)
        claim = store.claim(left.wanted)
        if claim is None:
            threading.Event().wait(_WAIT)
            continue
        count, total = len(done), len(done) + left.remaining
        _run(
            store,
            claim,
            objective,
            checkpoints,
            stopping,
            lambda share, count=count, total=total: report(count, total, share),
        )


def _run(
    store: Store,
    claim: Claim,
    objective: Objective,
    checkpoints: Path,
    stopping: Callable[[], bool],
    progress: Callable[[float], object],
) -> None:
    checkpoint = checkpoints / f"{hashlib.sha256(claim.point.key.encode()).hexdigest()[:16]}.pt"
    try:
        with store.beating(claim):
            result = objective(claim.point, Session(checkpoint, stopping, progress))
    except Stopped:
        store.give_up(claim, "stopped")
        return
    except BaseException as error:
        store.give_up(claim, in_one_line(error))
        raise
    store.finish(claim, result)
    for file in checkpoints.glob(f"{checkpoint.stem}.*"):
        file.unlink(missing_ok=True)


@contextmanager
def stopped_by_signals(tell: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come, which ends a trial at its next step; a second Ctrl-C ends it at once.

    tell: is given a line that says so when the first comes. Outside the main thread, where no handler can be set,
    signals do what they did before.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        tell("stopping at the next step; Ctrl-C again stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
