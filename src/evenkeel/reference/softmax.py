"""The softmax family by definition, in float64 and along the last dimension: slow, obvious, the oracle.

Every function takes logits (..., V), a temperature and a bool mask broadcastable to them, True where visible. A
probability is off by less than (V + |x|)·2^-52 of its value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _visible(logits: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    scores = logits.double() / temperature
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def softmax(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """e^(x/T) / Σ e^(x/T), zeros where nothing is visible."""
    scores = _visible(logits, temperature, mask)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return torch.where((scores > -torch.inf).any(-1, keepdim=True), weights / weights.sum(-1, keepdim=True), 0)


def logsumexp(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """log Σ e^(x/T), −inf where nothing is visible."""
    return torch.logsumexp(_visible(logits, temperature, mask), -1)


def log_softmax(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """x/T − log Σ e^(x/T), −inf where hidden."""
    scores = _visible(logits, temperature, mask)
    return torch.where(scores > -torch.inf, scores - torch.logsumexp(scores, -1, keepdim=True), -torch.inf)


def entropy(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """−Σ p log p, in nats."""
    weights = softmax(logits, temperature, mask)
    return -torch.xlogy(weights, weights).sum(-1)


def participation(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """1 / Σ p², 0 where nothing is visible."""
    squares = softmax(logits, temperature, mask).square().sum(-1)
    return torch.where(squares > 0, 1 / squares, 0)
