"""Numbers of claims from comparisons: contrasts, differences over pairs, orders of arms against printed ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ..studies import ArmSummary, Comparison
from ..studies.statistics import student_interval
from ._claim import Measurement

NATS = "nats/token"
SHAZEER_65K = {
    **{"relu": 1.997, "gelu": 1.983, "silu": 1.994, "glu": 1.982},
    **{"bilinear": 1.960, "geglu": 1.942, "swiglu": 1.944, "reglu": 1.953},
}
"""Held-out log-perplexity at 65,536 steps by arm: Shazeer 2020, table 1."""
SHAZEER_524K = {
    **{"relu": 1.677, "gelu": 1.679, "silu": 1.683, "glu": 1.663},
    **{"bilinear": 1.648, "geglu": 1.633, "swiglu": 1.636, "reglu": 1.645},
}
"""The same at 524,288 steps."""
NARANG = {
    **{"relu": 1.838, "gelu": 1.838, "silu": 1.847, "glu": 1.814, "geglu": 1.792},
    **{"reglu": 1.803, "swiglu": 1.789, "bilinear": 1.798, "sigmoid": 1.867},
}
"""Final loss by arm: Narang et al. 2021, of the arms that the studies have too."""


def arm(comparison: Comparison, name: str) -> ArmSummary:
    """The numbers of an arm."""
    return next(item for item in comparison.arms if item.plan.arm.name == name)


def contrast(comparison: Comparison, name: str, against: str, prefix: str) -> Iterator[Measurement]:
    """A contrast of the study: mean loss difference with its 95% interval, and whether its verdict is this or that.

    `.better`, `.worse`, `.tie` are 1 where the study says so (Holm over its contrasts), `.decided` where any of these.
    """
    verdict = next(item for item in comparison.verdicts if (item.arm, item.against) == (name, against))
    for end in ("mean", "low", "high"):
        yield Measurement(f"{prefix}.{end}", getattr(verdict.interval, end), NATS)
    for word in ("better", "worse", "tie"):
        yield Measurement(f"{prefix}.{word}", float(verdict.word == word), "1")
    yield Measurement(f"{prefix}.decided", float(verdict.word != "undecided"), "1")


def difference(values: Mapping[int, float], prefix: str, unit: str, margin: float) -> Iterator[Measurement]:
    """The mean over the pairs of a number that no contrast of the study is about, with its 95% interval.

    `.decided` is 1 where the interval leaves out 0, or lies within the margin.
    """
    interval = student_interval(tuple(values.values()))
    for end in ("mean", "low", "high"):
        yield Measurement(f"{prefix}.{end}", getattr(interval, end), unit)
    apart = interval.low > 0 or interval.high < 0
    decided = apart or (-margin <= interval.low and interval.high <= margin)
    yield Measurement(f"{prefix}.decided", float(decided), "1")


def loss_gap(comparison: Comparison, names: Sequence[str], against: Sequence[str]) -> dict[int, float]:
    """By seed, the mean loss of some arms less that of others."""
    mine, theirs = ([arm(comparison, name).losses for name in group] for group in (names, against))
    seeds = set.intersection(*(set(losses) for losses in (*mine, *theirs)))
    return {
        seed: _mean([item[seed] for item in mine]) - _mean([item[seed] for item in theirs]) for seed in sorted(seeds)
    }


def health_by_seed(comparison: Comparison, name: str, stat: str) -> dict[int, float]:
    """A health number of an arm's paired trials."""
    wanted = arm(comparison, name)
    return {
        result.point.seed: result.health[stat]
        for result in comparison.results
        if result.point.arm == name
        and result.point.role == "paired"
        and result.point.learning_rate == wanted.learning_rate
        and stat in result.health
    }


def rank_correlations(comparison: Comparison, prefix: str) -> Iterator[Measurement]:
    """Spearman's ρ of the arms' mean losses with each printed order, over the arms that both have."""
    for paper, printed in (("shazeer_65k", SHAZEER_65K), ("shazeer_524k", SHAZEER_524K), ("narang", NARANG)):
        ours = [arm(comparison, name).mean for name in printed]
        yield Measurement(f"{prefix}.rank_correlation_with_{paper}", spearman(ours, list(printed.values())), "1")


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing the mean of their ranks; NaN where a value is."""
    if any(math.isnan(value) for value in (*one, *other)):
        return math.nan
    ranks = [_ranks(values) for values in (one, other)]
    first, second = ([rank - _mean(group) for rank in group] for group in ranks)
    norms = math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / norms if norms else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
