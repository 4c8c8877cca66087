"""Sampling by definition: a sort of the whole vocabulary, one row at a time, slow and obvious; the oracle.

Tokens stand in the order of their logits after penalties and bias, the largest first, and equal ones by their number;
temperature does not change the order. Every filter looks at the probabilities that the one before it has left, and
keeps at least one token. A weight e^((logit − largest) / temperature) is a float64 number, and what follows from it is
exact: every float64 number is a multiple of 2^-1074, so sums and comparisons are those of integers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor

ORDERS = {
    "transformers": ("temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon"),
    "llama.cpp": ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon", "temperature"),
}
"""What is done to logits in turn, by the convention's name."""


def penalized(logits: Tensor, previous: Sequence[int], repetition: float, presence: float, frequency: float) -> Tensor:
    """Logits (V,) less what tokens that came before are charged: in float64, rounded once to the logits' precision."""
    scores = logits.double().clone()
    for token in set(previous):
        count = sum(other == token for other in previous)
        score = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
        scores[token] = score - (presence + frequency * count)
    return _rounded(scores, logits)


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits (V,) with something added to some of them: in float64, rounded once to the logits' precision."""
    scores = logits.double().clone()
    for token, added in bias.items():
        scores[token] += added
    return _rounded(scores, logits)


def _rounded(scores: Tensor, logits: Tensor) -> Tensor:
    """The precision of float64 logits is their own, that of all others is float32."""
    return scores if logits.dtype == torch.float64 else scores.float()


@dataclass(frozen=True)
class Row:
    """What is left of a vocabulary.

    tokens: in order. logits: of those tokens. temperature: what they are divided by. margin: how near the closest
    decision came to falling the other way, as a share of what was compared; where it is about 1e-14 or less, weights
    rounded in another way may decide otherwise.
    """

    tokens: list[int]
    logits: list[float]
    temperature: float = 1.0
    margin: float = math.inf

    def weights(self) -> list[float]:
        """e^((logit − largest) / temperature) of each token."""
        return [math.exp((logit - self.logits[0]) / self.temperature) for logit in self.logits]

    def only(self, places: Iterable[int], margin: float = math.inf) -> Row:
        """The tokens in some places of the order."""
        kept = sorted(places)
        tokens, logits = ([items[place] for place in kept] for items in (self.tokens, self.logits))
        return replace(self, tokens=tokens, logits=logits, margin=min(self.margin, margin))


def ranked(logits: Tensor) -> Row:
    """The possible tokens of logits (V,) in order: those above −inf, or, where some are at +inf, these, all alike."""
    numbers = logits.tolist()
    if math.inf in numbers:
        numbers = [0.0 if number == math.inf else -math.inf for number in numbers]
    possible = (token for token, number in enumerate(numbers) if number > -math.inf)
    order = sorted(possible, key=lambda token: (-numbers[token], token))
    return Row(order, [numbers[token] for token in order])


def temperature(row: Row, value: float) -> Row:
    """Logits divided by a temperature; for 0 the first token alone."""
    return row.only([0]) if value == 0 else replace(row, temperature=value)


def top_k(row: Row, k: int) -> Row:
    """The first k tokens; all of them for 0."""
    return row.only(range(min(int(k) or len(row.tokens), len(row.tokens))))


def top_p(row: Row, p: float) -> Row:
    """The shortest prefix whose mass reaches p of the whole; one token for p = 0, all of them for p = 1."""
    length, margin = _shortest(_exact(row.weights()), p)
    return row.only(range(length), margin)


def min_p(row: Row, share: float) -> Row:
    """Tokens of at least a share of the largest probability."""
    weights = row.weights()
    below = [weight for weight, logit in zip(weights, row.logits, strict=True) if logit < row.logits[0]]
    margin = min((abs(weight / share - 1) for weight in below), default=math.inf) if share else math.inf
    return row.only((place for place, weight in enumerate(weights) if weight >= share), margin)


def epsilon(row: Row, bound: float) -> Row:
    """Tokens whose probability is at least a bound, and the first one."""
    masses = _exact(row.weights())
    wanted = Fraction(bound) * sum(masses)
    least = math.ceil(wanted)
    kept = max(1, sum(mass >= least for mass in masses))
    near = (masses[place] for place in (kept - 1, kept) if 0 < place < len(masses))
    return row.only(range(kept), min((_apart(mass, wanted) for mass in near), default=math.inf))


def top_n_sigma(row: Row, n: float) -> Row:
    """Tokens whose logit is within n standard deviations, of all these tokens' logits, of the largest."""
    if n == math.inf:
        return row
    numbers = _exact(row.logits)
    below = [numbers[0] - number for number in numbers]
    count = len(below)
    variance = Fraction(sum(number**2 for number in below), count) - Fraction(sum(below), count) ** 2
    reach = math.isqrt(math.floor(Fraction(n) ** 2 * variance))
    kept = sum(number <= reach for number in below)
    unit = reach + abs(numbers[0])  # a bound on logits is as near as they and it can be told apart
    near = (below[place] for place in (kept - 1, kept) if place < count and below[place] and reach)
    apart = (float(min(Fraction(abs(number - reach), unit), 1)) for number in near)
    return row.only(range(kept), min(apart, default=math.inf))


def typical_p(row: Row, p: float) -> Row:
    """The shortest prefix whose mass reaches p, of tokens by how far −log p lies from the entropy, then by place.

    That is by how far the logit lies from the mean logit, which the entropy is the −log p of.
    """
    numbers, masses = _exact(row.logits), _exact(row.weights())
    whole = sum(masses)
    mean = sum(number * mass for number, mass in zip(numbers, masses, strict=True))
    far = [abs(number * whole - mean) for number in numbers]
    order = sorted(range(len(far)), key=far.__getitem__)
    length, margin = _shortest([masses[place] for place in order], p)
    unit = Fraction(row.temperature) * 2**1074 * whole + far[0]
    for edge in order[length - 1 : length + 1] if length < len(order) else ():
        others = (abs(far[place] - far[edge]) for place in order if numbers[place] != numbers[edge])
        margin = min(margin, float(min(others, default=unit) / unit))
    return row.only(order[:length], margin)


FILTERS = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "top_n_sigma": top_n_sigma,
    "epsilon": epsilon,
}


def _exact(numbers: Sequence[float]) -> list[int]:
    """Each number as a multiple of 2^-1074."""
    ratios = (number.as_integer_ratio() for number in numbers)
    return [numerator << (1075 - denominator.bit_length()) for numerator, denominator in ratios]


def _shortest(masses: Sequence[int], p: float) -> tuple[int, float]:
    """How long the shortest prefix is whose sum reaches p of the whole, and its margin."""
    if p >= 1:
        return len(masses), math.inf
    sums = list(accumulate(masses))
    wanted = Fraction(p) * sums[-1]
    last = bisect_left(sums, wanted)
    near = sums[max(0, last - 1) : min(last + 1, len(sums) - 1)]  # nothing comes after the last one
    return last + 1, min((float(abs(mass - wanted) / sums[-1]) for mass in near), default=math.inf)


def _apart(number: int, wanted: Fraction) -> float:
    """How far a number is from the one that it is compared with, as a share of it."""
    return float(min(abs(number - wanted) / wanted, 1)) if wanted else math.inf


def filtered(logits: Tensor, order: str = "transformers", **options: float) -> Row:
    """What temperature and filters, in the order of a convention, leave of logits (V,)."""
    row = ranked(logits)
    for step in ORDERS[order]:
        if step in options:
            row = FILTERS[step](row, options[step])
    return row


def probabilities(row: Row, count: int) -> Tensor:
    """Of `count` tokens, those of a row and 0 for all others: float64 (count,)."""
    weights = row.weights()
    result = torch.zeros(count, dtype=torch.float64)
    result[row.tokens] = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
    return result


def distribution(logits: Tensor, order: str = "transformers", **options: float) -> Tensor:
    """Probabilities (V,) after temperature and filters, in the order of a convention; temperature 0 takes the first."""
    return probabilities(filtered(logits, order, **options), len(logits))


def drawn(weights: Sequence[float], uniform: float) -> int:
    """The token that a number between 0 and 1 falls on, where weights lie side by side by number: the inverse CDF."""
    sums = list(accumulate(_exact(weights)))
    return bisect_right(sums, Fraction(uniform) * sums[-1])
