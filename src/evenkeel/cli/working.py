"""A study that is worked on, as a terminal sees it: how long it takes, how far it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..studies import Report, Run

INTERRUPTED = 130
"""The exit code where Ctrl-C left a study partial: 128 + SIGINT, as shells count."""


def quieten_optuna() -> None:
    """Optuna tells on stderr that it made a study, which the estimate says better."""
    import logging

    logging.getLogger("optuna.storages").setLevel(logging.WARNING)  # of "optuna" itself its import sets it anew


def processes(device: str) -> int:
    """One for each core; one on a device."""
    return (os.cpu_count() or 1) if device == "cpu" else 1


def estimate(here: Run, left: int) -> str:
    """What is left to do, and about how long it takes."""
    founding = here.founding
    minutes = here.seconds_left / 60
    about = f", about {max(1, round(minutes))} min" if minutes == minutes else ""
    return f"{left} trials of {founding.steps:,} steps ({founding.tokens:,} tokens) in {here.jobs} processes{about}"


@contextmanager
def bar(total: int) -> Iterator[Report]:
    """A progress bar over trials on stderr, where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.fields[text]}"), BarColumn(), TimeRemainingColumn())
    terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal or not total) as bars:
        task = bars.add_task("", total=1.0, text="")

        def report(done: int, trials: int, share: float) -> None:
            bars.update(task, completed=done + share, total=trials, text=f"trial {min(done + 1, trials)} of {trials}")

        yield report
