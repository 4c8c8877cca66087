"""How often intervals cover, and how often verdicts are wrong, where the truth is known: synthetic paired differences.

Families of contrasts share a baseline, so their differences correlate by a half. Numbers are shares of simulations;
with 2,000 of them the standard error of a share of 5% or 95% is 0.5%. Loads no torch.

    python benchmarks/intervals.py [--simulations 2000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy
from numpy import ndarray
from numpy.random import Generator

from evenkeel.studies.comparison import Interval, VerdictWord
from evenkeel.studies.statistics import (
    FEWEST_RESAMPLED,
    bootstrap_interval,
    decide,
    more_pairs,
    student_interval,
)

MARGIN = 0.01
PAIRS = (3, 5, 10)
FAMILIES = (1, 3, 10)
PLANTED, SPREAD = 0.1, 0.03  # nats: a difference between arms, and the deviation of the differences of pairs

Draw = Callable[[Generator, tuple[int, ...]], ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda random, size: random.standard_normal(size),
    "exponential": lambda random, size: random.standard_exponential(size) - 1,
    "lognormal": lambda random, size: random.lognormal(size=size) - numpy.exp(0.5),
}
"""Of mean 0; the deviation of the first two is 1."""

Words = list[tuple[VerdictWord, ...]]


class Row(NamedTuple):
    """A line of a table: what is counted, the range it must lie in, and its share at each size."""

    what: str
    bound: str
    shares: Sequence[float]


def coverage(
    shape: str, pairs: int, simulations: int, interval: Callable[[list[float]], Interval] = student_interval
) -> float:
    """The share of intervals of 95% that hold the true mean."""
    samples = SHAPES[shape](numpy.random.default_rng(pairs), (simulations, pairs))
    ends = [interval(sample) for sample in samples.tolist()]
    return sum(end.low <= 0 <= end.high for end in ends) / simulations


def families(truth: float, spread: float, size: int, pairs: int, simulations: int, shape: str = "normal") -> ndarray:
    """Differences of arms with one baseline: (simulations, contrasts, pairs), of a true mean and standard deviation."""
    losses = SHAPES[shape](numpy.random.default_rng([size, pairs]), (simulations, size + 1, pairs))
    return truth + spread / numpy.sqrt(2) * (losses[:, 1:] - losses[:, :1])


def words(differences: ndarray) -> Words:
    """The verdicts of each family."""
    return [tuple(decision.word for decision in decide(family, MARGIN)) for family in differences.tolist()]


def continued(differences: ndarray, pairs: int, most: int) -> Words:
    """The verdicts where all pairs that undecided contrasts ask for are added, once, up to the most in all."""
    found = []
    for family in differences:
        seen = family[:, :pairs].tolist()
        wanted = max((extra for extra in more_pairs(seen, MARGIN) if extra), default=0)
        found.append(words(family[None, :, : min(pairs + wanted, most)])[0])
    return found


def families_with(found: Words, *sought: VerdictWord) -> float:
    """The share of families that hold one of the words."""
    return sum(any(word in sought for word in family) for family in found) / len(found)


def contrasts_with(found: Words, *sought: VerdictWord) -> float:
    """The share of contrasts that are one of the words."""
    return sum(word in sought for family in found for word in family) / sum(map(len, found))


def coverage_rows(simulations: int) -> Iterator[Row]:
    """Student's interval at each number of pairs, and the bootstrap's where there is one."""
    sizes = (*PAIRS, FEWEST_RESAMPLED)
    for shape in SHAPES:
        shares = [coverage(shape, pairs, simulations) for pairs in sizes]
        yield Row(f"{shape}, Student's t", "93 to 97%" if shape == "normal" else "", shares)
        resampled = coverage(shape, FEWEST_RESAMPLED, simulations, bootstrap_interval)
        yield Row(f"{shape}, bootstrap", "", [float("nan")] * len(PAIRS) + [resampled])


def error_rows(pairs: int, simulations: int) -> Iterator[Row]:
    """What verdicts get wrong and right with so many pairs, for each size of family."""

    def row(what: str, bound: str, share: Callable[[int], float]) -> Row:
        return Row(f"{pairs} pairs: {what}", bound, [share(size) for size in FAMILIES])

    def made(truth: float, spread: float, size: int) -> Words:
        return words(families(truth, spread, size, pairs, simulations))

    yield row(
        "no difference: a better or worse in the family",
        "≤ 5%",
        lambda size: families_with(made(0, SPREAD, size), "better", "worse"),
    )
    yield row(
        "a difference of the margin: a tie in the family",
        "≤ 5%",
        lambda size: families_with(made(MARGIN, MARGIN / 4, size), "tie"),
    )
    yield row(
        "no difference, deviation half the margin: contrasts undecided",
        "",
        lambda size: contrasts_with(made(0, MARGIN / 2, size), "undecided"),
    )
    yield row(
        f"a difference of {PLANTED} nats, deviation {SPREAD}: contrasts decided",
        "",
        lambda size: contrasts_with(made(PLANTED, SPREAD, size), "worse"),
    )


def caution_rows(pairs: int, simulations: int) -> Iterator[Row]:
    """What the stated rates leave out: losses that are skewed, and pairs that are added after a look."""

    def skewed(size: int) -> float:
        random = numpy.random.default_rng([size, pairs])
        return families_with(
            words(SPREAD * SHAPES["exponential"](random, (simulations, size, pairs))), "better", "worse"
        )

    def looked(truth: float, spread: float, size: int, *sought: VerdictWord) -> float:
        most = 10 * pairs
        return families_with(continued(families(truth, spread, size, most, simulations), pairs, most), *sought)

    yield Row("exponential differences of mean 0: a better or worse", "", [skewed(size) for size in FAMILIES])
    yield Row(
        "no difference, pairs added once: a better or worse",
        "",
        [looked(0, SPREAD, size, "better", "worse") for size in FAMILIES],
    )
    yield Row(
        "a difference of the margin, pairs added once: a tie",
        "",
        [looked(MARGIN, MARGIN / 4, size, "tie") for size in FAMILIES],
    )


def table(head: str, sizes: Iterable[str], rows: Iterable[Row]) -> str:
    """Rows as Markdown."""
    columns = [head, *sizes, "bound"]
    lines = [columns, ["---", *["---:"] * (len(columns) - 2), "---"]]
    for row in rows:
        cells = ["" if numpy.isnan(share) else f"{100 * share:.1f}%" for share in row.shares]
        lines.append([row.what, *cells, row.bound])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    sizes = [f"{pairs} pairs" for pairs in (*PAIRS, FEWEST_RESAMPLED)]
    print(table("nominal 95% intervals that cover", sizes, coverage_rows(simulations)), flush=True)
    contrasts = [f"{size} contrast{'s' * (size > 1)}" for size in FAMILIES]
    errors = (row for pairs in PAIRS for row in error_rows(pairs, simulations))
    print("\n" + table("verdicts, margin 0.01", contrasts, errors), flush=True)
    print("\n" + table("what the bounds leave out, 5 pairs", contrasts, caution_rows(5, simulations)))


if __name__ == "__main__":
    main()
