"""What paired differences show: intervals, tests, words and their error rates. Pure functions on sequences of floats.

A difference is loss(arm) − loss(against) of one seed, in nats per token, so below 0 the arm is better. Differences that
are too few, or not all finite, decide nothing: their interval is infinite and their p is 1. Differences that are all
equal leave no doubt: their interval is a point, and their p is 0 or 1.
Sources: Student 1908; Holm 1979; Schuirmann 1987 (two one-sided tests); Efron 1987 (BCa); Bouthillier 2021;
Wortsman 2023.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy

from ..errors import UsageError
from .comparison import Interval, VerdictWord

FAMILY_ERROR = 0.05
"""The share of studies that may hold a false word of one kind; see `decide`."""
POWER = 0.8
"""The share of studies that would decide with the pairs that `more_pairs` names."""
MOST_MORE_PAIRS = 1_000
FEWEST_RESAMPLED = 20
"""Pairs from which on a bootstrap interval is given."""
RESAMPLES = 9_999

Differences = Sequence[float]


class Decision(NamedTuple):
    """What one contrast of a family shows.

    p: of no difference. adjusted: p after Holm's steps over the family. equivalence: the p of a difference as large as
    the margin, after Holm's steps.
    """

    word: VerdictWord
    p: float
    adjusted: float
    equivalence: float


def student_interval(differences: Differences, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean difference; infinite for fewer than two pairs."""
    mean, error = _mean_and_error(differences)
    if math.isnan(error):
        return Interval(mean, -math.inf, math.inf, confidence)
    reach = float(_special().stdtrit(len(differences) - 1, (1 + confidence) / 2)) * error
    return Interval(mean, mean - reach, mean + reach, confidence)


def p_of_no_difference(differences: Differences) -> float:
    """Two-sided p of Student's paired t test: of a mean this far from 0, either way, where the true mean is 0."""
    return min(1.0, 2 * min(_p_not_above(differences, 0.0), _p_not_above(_swapped(differences), 0.0)))


def p_of_margin(differences: Differences, margin: float) -> float:
    """p of two one-sided t tests: of a mean this far inside ±margin, where the true mean is not inside."""
    return max(_p_not_above(differences, -margin), _p_not_above(_swapped(differences), -margin))


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p values, in the order given: rejecting those below α errs in at most a share α of families.

    The k-th smallest of m is multiplied by m − k + 1, and is never less than the one before it. This holds however the
    tests depend on each other, as contrasts with a shared baseline do. Raises UsageError for what is no probability.
    """
    for p in ps:
        if not 0 <= p <= 1:
            raise UsageError(f"a p value is {p} and must lie between 0 and 1")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return tuple(adjusted)


def decide(contrasts: Sequence[Differences], margin: float) -> tuple[Decision, ...]:
    """The words for a family of contrasts that was stated before any trial ran.

    - tie: shown to differ by less than the margin (two one-sided tests, Holm's steps over the family, 5%).
    - better, worse: shown to differ (two-sided test, Holm's steps over the family, 5%), and no tie.
    - undecided: neither is shown.

    A difference that is shown, and shown to be less than the margin, is a tie: the margin is the least difference that
    was said to matter, and "better" by less would answer a question that nobody asked. The interval shows its sign.

    Error rates, for differences that are normal and a number of pairs fixed beforehand, however contrasts depend:
    - of studies, at most 5% call any arm better or worse whose true mean difference is 0;
    - of studies, at most 5% call any tie where the true mean difference is the margin or more;
    - so at most 10% hold a false word of either kind; no contrast can be false both ways.
    - A true difference is called by the wrong sign in at most 2.5% of studies, for each contrast alone.
    Adding pairs after a look at the words raises the first, to 10% for a single contrast that starts with 5 pairs, and
    so does skewness of the differences: `benchmarks/intervals.py` prints by how much.
    """
    ps = [p_of_no_difference(differences) for differences in contrasts]
    equivalences = holm([p_of_margin(differences, margin) for differences in contrasts])
    return tuple(
        Decision(_word(differences, adjusted, equivalence), p, adjusted, equivalence)
        for differences, p, adjusted, equivalence in zip(contrasts, ps, holm(ps), equivalences, strict=True)
    )


def more_pairs(contrasts: Sequence[Differences], margin: float) -> tuple[int | None, ...]:
    """How many more pairs would decide each contrast with a power of about 80%, by a difference or by a tie.

    That is if the true mean and the true spread are those seen so far, and the other contrasts of the family stay as
    they are in Holm's order. None where a contrast is decided, has no spread yet, or would want more than 1,000.
    """
    ps = [p_of_no_difference(differences) for differences in contrasts]
    margins = [p_of_margin(differences, margin) for differences in contrasts]
    return tuple(
        _more_pairs(differences, margin, _level(p, ps), _level(p_margin, margins))
        if decision.word == "undecided"
        else None
        for differences, decision, p, p_margin in zip(contrasts, decide(contrasts, margin), ps, margins, strict=True)
    )


def bootstrap_interval(differences: Differences, confidence: float = 0.95) -> Interval:
    """The mean's bias-corrected and accelerated bootstrap interval, from resamples that are the same at each call.

    Raises UsageError for fewer than 20 pairs.
    """
    if len(differences) < FEWEST_RESAMPLED:
        raise UsageError(
            f"a bootstrap interval wants at least {FEWEST_RESAMPLED} pairs and there are {len(differences)}; at 3, 5 "
            "and 10 pairs one of 95% covers 76, 82 and 89%, so use student_interval"
        )
    mean, error = _mean_and_error(differences)
    if not error > 0:
        return student_interval(differences, confidence)
    special, sample = _special(), numpy.asarray(differences, dtype=float)
    chosen = numpy.random.default_rng(0).integers(len(sample), size=(RESAMPLES, len(sample)))
    means = sample[chosen].mean(axis=1)
    bias = special.ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
    centred = sample - mean
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    shifted = bias + special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = numpy.quantile(means, special.ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Interval(mean, float(low), float(high), confidence)


def probability_of_better(differences: Differences) -> float:
    """P(the arm beats the other) as the share of pairs in which it does; a tie, or two losses of NaN, counts half."""
    if not differences:
        return math.nan
    return sum(1.0 if value < 0 else 0.0 if value > 0 else 0.5 for value in differences) / len(differences)


def learning_rate_sensitivity(losses: Sequence[float], start: float, best: float) -> float:
    """Wortsman's 2023 sensitivity: the mean over learning rates of min(final loss, loss at init) − best loss.

    losses: one for each learning rate, spread evenly in the logarithm over a range. start: the loss at init, NaN where
    it is not known. All in nats per token. NaN for no losses.
    """
    if not losses:
        return math.nan
    return sum(min(loss, math.inf if math.isnan(start) else start) for loss in losses) / len(losses) - best


def _word(differences: Differences, adjusted: float, equivalence: float) -> VerdictWord:
    if equivalence < FAMILY_ERROR:
        return "tie"
    if adjusted < FAMILY_ERROR:
        return "better" if _mean_and_error(differences)[0] < 0 else "worse"
    return "undecided"


def _level(p: float, ps: Sequence[float]) -> float:
    """What Holm's step asks of a p at its place in the order."""
    return FAMILY_ERROR / sum(other >= p for other in ps)


def _more_pairs(differences: Differences, margin: float, level: float, margin_level: float) -> int | None:
    mean, error = _mean_and_error(differences)
    if math.isnan(error):
        return None
    distance, spread = abs(mean), error * math.sqrt(len(differences))

    def decided(pairs: int) -> bool:
        shown = _power(distance / spread, pairs, level / 2)
        inside = [_power((margin + side) / spread, pairs, margin_level) for side in (-distance, distance)]
        return shown >= POWER or sum(inside) - 1 >= POWER  # both one-sided tests, of which hardly any fail together

    wanted = range(len(differences) + 1, len(differences) + 1 + MOST_MORE_PAIRS)
    place = bisect_left(wanted, True, key=decided)
    return place + 1 if place < MOST_MORE_PAIRS else None


def _power(effect: float, pairs: int, level: float) -> float:
    """P(a one-sided t test at the level sees an effect, in standard deviations, with so many pairs)."""
    if effect <= 0:
        return 0.0
    special = _special()
    return 1 - float(special.nctdtr(pairs - 1, effect * math.sqrt(pairs), special.stdtrit(pairs - 1, 1 - level)))


def _p_not_above(differences: Differences, bound: float) -> float:
    """One-sided p of Student's t test: of a mean this far above the bound, where the true mean is not above it."""
    mean, error = _mean_and_error(differences)
    if math.isnan(error):
        return 1.0
    if error == 0:
        return 0.0 if mean > bound else 1.0
    return float(_special().stdtr(len(differences) - 1, (bound - mean) / error))


def _mean_and_error(differences: Differences) -> tuple[float, float]:
    """The mean and its standard error; both NaN where a difference is not finite, the error NaN for fewer than two."""
    pairs = len(differences)
    mean = sum(differences) / pairs if pairs else math.nan
    if not math.isfinite(mean):
        return math.nan, math.nan
    if pairs < 2:
        return mean, math.nan
    if min(differences) == max(differences):
        return differences[0], 0.0  # exactly, which the sum's rounding would spoil
    return mean, math.sqrt(sum((value - mean) * (value - mean) for value in differences) / (pairs - 1) / pairs)


def _swapped(differences: Differences) -> list[float]:
    """The differences as seen from the other arm."""
    return [-value for value in differences]


def _special() -> ModuleType:
    """scipy.special; imported when it is needed, as it takes longer than all the rest of evenkeel.studies."""
    try:
        from scipy import special
    except ImportError as error:
        raise UsageError(f"scipy cannot be imported ({error}); pip install 'evenkeel[compare]'") from error
    return special
