"""Penalties, temperature and filters in torch: where there is no kernel for the device. Each sorts the vocabulary.

Scores are float64 (rows, V) and −inf where a token is out. A number of each row is a column (rows, 1) or (1, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._sampler import OPTIONS, PENALTIES, Sampler

ORDERS = {
    "transformers": ("temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon"),
    "llama.cpp": ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon", "temperature"),
}
"""What is done to logits in turn, by the convention's name."""

_HUGE, _SHRINKING = 1e150, 2.0**-600  # what has no square in float64, and what brings it there


def charged(logits: Tensor, sampler: Sampler, shape: torch.Size, previous: Tensor | None) -> Tensor:
    """Logits (rows, V) after penalties and bias, each rounded once to their own precision, at least float32."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.double()
    if previous is not None and sampler.charges:
        counts = torch.zeros_like(scores).scatter_add_(1, previous.clamp(min=0), (previous >= 0).double())
        columns = _columns(sampler, shape, logits.device)
        repetition, presence, frequency = (columns[name] for name in PENALTIES)
        divided = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(counts > 0, divided - (presence + frequency * counts), scores).to(precision).double()
    tokens, added = sampler.bias
    if len(tokens):
        places, amounts = (torch.from_numpy(item).to(logits.device) for item in (tokens, added))
        scores = scores.index_add(1, places, amounts.expand(len(scores), -1)).to(precision).double()
    peaks = scores == torch.inf
    return torch.where(peaks.any(-1, keepdim=True), torch.where(peaks, 0.0, -torch.inf), scores)


def filtered(scores: Tensor, sampler: Sampler, shape: torch.Size) -> Tensor:
    """Scores (rows, V) after temperature and filters, in the sampler's order."""
    columns = _columns(sampler, shape, scores.device)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices  # no filter and no temperature changes it
    for step in ORDERS[sampler.order]:
        if not torch.all(columns[step] == OPTIONS[step].neutral):
            scores = _STEPS[step](scores, columns[step], order)
    return scores


def weights(scores: Tensor) -> Tensor:
    """e^score, of which the largest is 1."""
    return torch.exp(scores - scores.amax(-1, keepdim=True))


def _columns(sampler: Sampler, shape: torch.Size, device: torch.device) -> dict[str, Tensor]:
    table = torch.from_numpy(sampler.table(shape)).to(device)
    return dict(zip(OPTIONS, table.unsqueeze(-1).unbind(1), strict=True))


def _only(scores: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, scores, -torch.inf)


def _prefix(scores: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """The tokens in some places of an order."""
    return _only(scores, torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, kept.expand(order.shape)))


def _left(scores: Tensor, order: Tensor) -> Tensor:
    """How many of the tokens that are left each token comes after, in an order."""
    inside = (scores > -torch.inf).gather(-1, order)
    return torch.where(inside, inside.cumsum(-1) - 1, scores.shape[-1])


def _heat(scores: Tensor, temperature: Tensor, order: Tensor) -> Tensor:
    cold = temperature == 0
    below = scores - scores.amax(-1, keepdim=True)  # so that no temperature overflows
    first = _prefix(scores, order, _left(scores, order) == 0)
    return torch.where(cold, first, below / torch.where(cold, 1, temperature))


def _top_k(scores: Tensor, k: Tensor, order: Tensor) -> Tensor:
    return _prefix(scores, order, (_left(scores, order) < k) | (k == 0))


def _shortest(scores: Tensor, p: Tensor, order: Tensor) -> Tensor:
    """The shortest prefix of an order whose mass reaches p of the whole."""
    masses = weights(scores).gather(-1, order).cumsum(-1)
    before = torch.nn.functional.pad(masses[:, :-1], (1, 0))
    return _prefix(scores, order, (before < p * masses[:, -1:]) | (_left(scores, order) == 0) | (p >= 1))


def _min_p(scores: Tensor, share: Tensor, order: Tensor) -> Tensor:
    return _only(scores, weights(scores) >= share)


def _typical_p(scores: Tensor, p: Tensor, order: Tensor) -> Tensor:
    """By how far a score lies from the mean score, which the entropy is the −log p of."""
    inside = scores > -torch.inf
    below = torch.where(inside, scores - scores.amax(-1, keepdim=True), 0)
    far = torch.where(inside, (below - (scores.softmax(-1) * below).sum(-1, keepdim=True)).abs(), torch.inf)
    nearest = torch.sort(far.gather(-1, order), dim=-1, stable=True).indices
    return _shortest(scores, p, order.gather(-1, nearest))


def _top_n_sigma(scores: Tensor, n: Tensor, order: Tensor) -> Tensor:
    possible = scores > -torch.inf
    scale = torch.where((scores.abs() > _HUGE) & possible, _SHRINKING, 1.0).amin(-1, keepdim=True)
    top, count = scores.amax(-1, keepdim=True), possible.sum(-1, keepdim=True)
    below = torch.where(possible, scores * scale - top * scale, 0)
    apart = torch.where(possible, below - below.sum(-1, keepdim=True) / count, 0)
    deviation = (apart.square().sum(-1, keepdim=True) / count).sqrt()
    return _only(scores, (-below <= n * deviation) & possible | (n == torch.inf))


def _epsilon(scores: Tensor, bound: Tensor, order: Tensor) -> Tensor:
    kept = _only(scores, scores.softmax(-1) >= bound)
    return torch.where((kept > -torch.inf).any(-1, keepdim=True), kept, _top_k(scores, torch.ones_like(bound), order))


_STEPS = {
    "temperature": _heat,
    "top_k": _top_k,
    "top_p": _shortest,
    "min_p": _min_p,
    "typical_p": _typical_p,
    "top_n_sigma": _top_n_sigma,
    "epsilon": _epsilon,
}
