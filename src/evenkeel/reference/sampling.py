"""Sampling's filters by definition: a sort of the whole vocabulary, in float64, one row at a time; the oracle.

Tokens are ordered by score, which is by probability, the largest first, and equal ones by their number. Every filter
looks at the probabilities that the one before it has left, and keeps at least one token. Sums are exactly rounded
(math.fsum), so that a prefix's mass is compared with what is asked for in float64 and nothing coarser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = {
    "transformers": ("temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon"),
    "llama.cpp": ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon", "temperature"),
}
"""What is done to logits in turn, by the convention's name."""


def penalized(logits: Tensor, previous: Sequence[int], repetition: float, presence: float, frequency: float) -> Tensor:
    """Logits (V,) less what tokens that came before are charged."""
    scores = logits.double().clone()
    for token in set(previous):
        count = sum(1 for other in previous if other == token)
        scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
        scores[token] -= presence + frequency * count
    return scores


def softmax(scores: Tensor) -> Tensor:
    """Probabilities of scores (V,), of which one is finite."""
    return _weights(scores) / math.fsum(_weights(scores).tolist())


def _weights(scores: Tensor) -> Tensor:
    return torch.exp(scores - scores.max())


def ranked(scores: Tensor) -> list[int]:
    """Tokens by score, the largest first, equal ones by number."""
    return sorted(range(len(scores)), key=lambda token: (-scores[token].item(), token))


def top_k(scores: Tensor, k: int) -> set[int]:
    """The k tokens that come first; all of them for 0."""
    return set(ranked(scores)[: int(k) or len(scores)])


def top_p(scores: Tensor, p: float) -> set[int]:
    """The shortest prefix whose mass reaches p of the whole; one token for p = 0, all possible ones for p = 1."""
    return _prefix(scores, ranked(scores), p)


def min_p(scores: Tensor, share: float) -> set[int]:
    """Tokens of at least a share of the largest probability."""
    return {token for token, weight in enumerate(_weights(scores).tolist()) if weight >= share}


def typical_p(scores: Tensor, p: float) -> set[int]:
    """The shortest prefix whose mass reaches p, of tokens by how far −log p lies from the entropy, then by rank."""
    probabilities = softmax(scores)
    entropy = -math.fsum(q * math.log(q) for q in probabilities.tolist() if q > 0)
    far = [abs(-math.log(q) - entropy) if q > 0 else math.inf for q in probabilities.tolist()]
    return _prefix(scores, sorted(ranked(scores), key=far.__getitem__), p)


def top_n_sigma(scores: Tensor, n: float) -> set[int]:
    """Tokens whose score is within n standard deviations, of all possible tokens' scores, of the largest."""
    finite = scores[scores > -torch.inf]
    return {
        token
        for token, score in enumerate(scores.tolist())
        if score >= (finite.max() - n * finite.std(correction=0)).item()
    }


def epsilon(scores: Tensor, bound: float) -> set[int]:
    """Tokens whose probability is at least a bound, or the first one."""
    probabilities = softmax(scores)
    return {token for token, p in enumerate(probabilities.tolist()) if p >= bound} or {ranked(scores)[0]}


def _prefix(scores: Tensor, order: list[int], p: float) -> set[int]:
    weights = _weights(scores).tolist()
    possible = [token for token in order if weights[token] > 0]
    if p >= 1:
        return set(possible)
    wanted = p * math.fsum(weights)
    for length in range(1, len(possible)):
        if math.fsum(weights[token] for token in possible[:length]) >= wanted:
            return set(possible[:length])
    return set(possible)


FILTERS = {
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "top_n_sigma": top_n_sigma,
    "epsilon": epsilon,
}


def distribution(logits: Tensor, order: str = "transformers", temperature: float = 1.0, **filters: float) -> Tensor:
    """Probabilities (V,) after temperature and filters, in the order of a convention; temperature 0 takes the first."""
    scores = logits.double()
    for step in ORDERS[order]:
        if step == "temperature":
            scores = _only(scores, top_k(scores, 1)) if temperature == 0 else scores / temperature
        elif step in filters:
            scores = _only(scores, FILTERS[step](scores, filters[step]))
    return softmax(scores)


def _only(scores: Tensor, kept: set[int]) -> Tensor:
    return torch.tensor(
        [score if token in kept else -math.inf for token, score in enumerate(scores.tolist())], dtype=torch.float64
    )
