"""Losses by definition, in float64, from the whole of the logits: slow, obvious, the oracle.

Every function takes logits (..., V) and class numbers (...), and returns a loss per token, 0 where ignored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .softmax import log_softmax, logsumexp


def _scores(logits: Tensor, temperature: float, softcap: float | None) -> Tensor:
    scores = logits.double()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores / temperature


def _one_hot(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    return (target.masked_fill(target == ignore_index, 0).unsqueeze(-1) == torch.arange(classes)).double()


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """−Σ_j q_j log p_j + z_loss·(log Σ_j e^z_j)², q the smoothed target (1 − ε)·[j = target] + ε/V."""
    scores = _scores(logits, temperature, softcap)
    wanted = (1 - label_smoothing) * _one_hot(target, scores.shape[-1], ignore_index)
    wanted = wanted + label_smoothing / scores.shape[-1]
    losses = -(wanted * log_softmax(scores)).sum(-1) + z_loss * logsumexp(scores) ** 2
    return torch.where(target == ignore_index, 0, losses)


def sigmoid_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """−log σ(z_target) − Σ_{j ≠ target} log(1 − σ(z_j))."""
    scores = _scores(logits, temperature, softcap)
    wanted = _one_hot(target, scores.shape[-1], ignore_index)
    losses = -torch.nn.functional.logsigmoid((2 * wanted - 1) * scores).sum(-1)
    return torch.where(target == ignore_index, 0, losses)
