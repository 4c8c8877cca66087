"""Contenders that take turns: so many rounds, a ratio within each, minimum and median beside it."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table


class Contest:
    """Things to time, the first of them what the others are compared with, and how exact each is.

    before: what is done before every turn and not timed, so that nobody finds the caches as his neighbour left them.
    """

    def __init__(self, name: str, base: Callable[[], object], before: Callable[[], object] = lambda: None) -> None:
        self.before = before
        self.contenders: dict[str, Callable[[], object]] = {name: base}
        self.errors: dict[str, str] = {}

    def add(self, name: str, contender: Callable[[], object]) -> None:
        """One more contender."""
        self.contenders[name] = contender

    def error(self, text: str) -> None:
        """The error of the contender that was added last."""
        self.errors[list(self.contenders)[-1]] = text


def run(contest: Contest, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; a round before the first is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contest.contenders}
    for number in range(rounds + 1):
        if sys.stderr.isatty():
            print(f"\rround {number} of {rounds}", end="", file=sys.stderr)
        for name, contender in contest.contenders.items():
            contest.before()
            start = time.perf_counter()
            contender()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def draw(contest: Contest, seconds: dict[str, list[float]], title: str) -> None:
    """Print milliseconds and ratios to the first contender; the ratio of a round is taken within the round."""
    table = Table(title=f"{title}; load {os.getloadavg()[0]:.1f}", title_justify="left")
    table.add_column("")
    for column in ("min ms", "median ms", "min ratio", "median ratio", "error"):
        table.add_column(column, justify="right")
    base = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        table.add_row(
            name,
            f"{min(values) * 1e3:.2f}",
            f"{statistics.median(values) * 1e3:.2f}",
            f"{min(values) / min(base):.2f}",
            f"{statistics.median(ratios):.2f}",
            contest.errors.get(name, ""),
        )
    Console(width=110).print(table)
