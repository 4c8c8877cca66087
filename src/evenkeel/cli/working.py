"""A study that is worked on, as a terminal sees it: how long it takes, how far it is."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..schema import in_one_line, printable

if TYPE_CHECKING:
    from ..studies import Report, Run

INTERRUPTED = 130
"""The exit code where Ctrl-C left a study partial: 128 + SIGINT, as shells count."""


def quieten_optuna() -> None:
    """Optuna tells on stderr that it made a study, which the estimate says better."""
    import logging

    # Not of "optuna" itself, whose level it sets anew when it is imported.
    logging.getLogger("optuna.storages").setLevel(logging.WARNING)


def warn(line: str) -> None:
    """A line on stderr, whether somebody watches or not."""
    print(f"evenkeel: {printable(line)}", file=sys.stderr)


def check_device(device: str) -> None:
    """Raises UsageError for a device on which nothing can be computed here."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # of many types: an unknown name, a torch built without it, no driver, "meta"
        raise UsageError(
            f"--device {device} cannot be used ({in_one_line(error)}); give cpu, or a device of this machine, as cuda"
        ) from error


def processes(device: str) -> int:
    """One for each core that this process may use; one on a device."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(here: Run, left: int) -> str:
    """What is left to do, and about how long it takes."""
    founding, workers = here.founding, min(here.jobs, left)
    minutes = here.seconds_left / 60
    about = f", about {max(1, round(minutes))} min" if minutes == minutes else ""
    trials = f"{left} trial{'s' * (left > 1)} of {founding.steps:,} steps ({founding.tokens:,} tokens)"
    return f"{trials} in {workers} process{'es' * (workers > 1)}{about}"


def seconds_left(done: int, trials: int, share: float, *, before: int, workers: int, seconds: float) -> float:
    """How long the trials that are left take at the pace of those done since work began here; NaN before there is one.

    before: how many were done then, `seconds` ago. share: of this process's present trial; the others are taken to be
    as far with theirs.
    """
    left = trials - done
    running = min(workers, left) * share
    moved = done - before + running
    return seconds * (left - running) / moved if moved > 0 else math.nan


@contextmanager
def bar(here: Run, left: int) -> Iterator[Report]:
    """A progress bar over a study's trials on stderr, where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TextColumn("{task.fields[time]}"))
    terminal = sys.stderr.isatty()
    before, begun = len(here.store.results()), time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal or not left) as bars:
        task = bars.add_task("", total=before + left, completed=before, text="", time="")

        def report(done: int, trials: int, share: float) -> None:
            seconds = seconds_left(
                done, trials, share, before=before, workers=here.jobs, seconds=time.monotonic() - begun
            )
            bars.update(
                task,
                completed=done + share,
                total=trials,
                text=f"trial {min(done + 1, trials)} of {trials}",
                time=f"{timedelta(seconds=round(seconds))} left" if seconds == seconds else "",
            )

        yield report
