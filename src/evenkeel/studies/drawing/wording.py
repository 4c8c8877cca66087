"""How a study's names and numbers are written: the same in a terminal, in a table and in a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len

from ...report.table import LONGEST_LABEL
from ...schema import clean_name
from ..comparison import Comparison, Interval, Verdict

MISSING = "–"

_MOST_DECIMALS = 8


def counted_where_diverged(comparison: Comparison) -> str:
    """What the loss of a diverged trial counts as."""
    return "as infinite" if comparison.study.objective else "with the loss before the first step"


def shown(value: float, draw: Callable[[float], str]) -> str:
    """The number as drawn; a dash for NaN, which stands for what was not measured."""
    return MISSING if math.isnan(value) else draw(value)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 40 seconds, 9 minutes, 2.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@dataclass(frozen=True)
class Wording:
    """The words for one comparison. Names are safe to print; losses have as many decimals as their noise allows."""

    comparison: Comparison

    @cached_property
    def decimals(self) -> int:
        """So many that half of the arms' standard deviations show two digits or more; without any, the margin does."""
        spreads = [arm.deviation for arm in self.comparison.arms if 0 < arm.deviation < math.inf]
        typical = statistics.median_low(spreads) if spreads else self.comparison.study.margin
        return min(max(1 - math.floor(math.log10(typical)), 0), _MOST_DECIMALS)

    @property
    def unit(self) -> str:
        """What a loss is counted in; a user's own objective has no unit."""
        return "" if self.comparison.study.objective else "nats per token"

    def loss(self, value: float) -> str:
        """A loss, or the standard deviation of losses."""
        return shown(value, lambda number: f"{number:z.{self.decimals}f}")

    def difference(self, value: float) -> str:
        """A difference of losses, with its sign."""
        return shown(value, lambda number: f"{number:+z.{self.decimals}f}")

    def ends(self, interval: Interval | None) -> tuple[str, str]:
        """The two ends of an interval; dashes where there is none, or where it leaves everything open."""
        if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
            return MISSING, MISSING
        return self.difference(interval.low), self.difference(interval.high)

    def interval(self, interval: Interval | None) -> str:
        """The two ends in brackets, or one dash."""
        low, high = self.ends(interval)
        return MISSING if low == MISSING else f"[{low}, {high}]"

    def p_value(self, verdict: Verdict, value: float) -> str:
        """A contrast's p-value with four decimals; a dash for fewer than the two pairs that a test needs."""
        if len(verdict.differences) < 2:
            return MISSING
        return shown(value, lambda p: "<0.0001" if p < 1e-4 else f"{p:.4f}")

    def label(self, arm: str) -> str:
        """What an arm is called where room is short: its name, or its number where `numbered`."""
        return f"arm {self.comparison.study.names.index(arm) + 1}" if self.numbered else clean_name(arm)

    def contrast(self, verdict: Verdict) -> str:
        """What a contrast is called where room is short."""
        return f"{self.label(verdict.arm)} − {self.label(verdict.against)}"

    @cached_property
    def numbered(self) -> bool:
        """Whether arms are called by number, since the names would not fit beside a table's numbers."""
        names = [clean_name(name) for name in self.comparison.study.names]
        pairs = [f"{clean_name(item.arm)} − {clean_name(item.against)}" for item in self.comparison.study.contrasts]
        return any(max(len(label), cell_len(label)) > LONGEST_LABEL for label in (*names, *pairs))
