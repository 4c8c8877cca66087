"""Untrained attention: random queries and keys, three scales, and what the softmax makes of their scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional as F
from ._stacks import normal

KEYS = 1024

_QUERIES = 64


class Attended(NamedTuple):
    """What one head does at one scale; means over the queries.

    variance: of the scores. entropy: in nats. entropy_share: of log(keys), 1 for uniform weights. largest_weight: the
    mean of each row's largest. score_gradient: the median |∂L/∂s|. query_gradient: ‖∂L/∂q‖. The loss weighs each
    attention weight with a standard normal number.
    """

    variance: float
    entropy: float
    entropy_share: float
    largest_weight: float
    score_gradient: float
    query_gradient: float


def attend(head_dim: int, scale: F.Scale) -> Attended:
    """64 queries over 1024 keys with independent standard normal entries, in float64."""
    stream = torch.Generator().manual_seed(head_dim)
    query, key = normal(stream, _QUERIES, head_dim).requires_grad_(), normal(stream, KEYS, head_dim)
    factor = F.scale_factor(scale, head_dim)
    entropy = F.attention_statistics(query.detach()[None, None], key[None, None], scale=factor).entropy.mean().item()
    scores = factor * (query @ key.mT)
    weights = torch.softmax(scores, -1)
    by_score, by_query = torch.autograd.grad((weights * normal(stream, _QUERIES, KEYS)).sum(), (scores, query))
    return Attended(
        variance=scores.var().item(),
        entropy=entropy,
        entropy_share=entropy / math.log(KEYS),
        largest_weight=weights.amax(-1).mean().item(),
        score_gradient=by_score.abs().median().item(),
        query_gradient=by_query.norm(dim=-1).mean().item(),
    )


def matching_weight(head_dim: int, scale: F.Scale, gain: float) -> float:
    """The mean weight that a query gives the one key, of 1024, that equals it; queries and keys are `gain` as long."""
    stream = torch.Generator().manual_seed(head_dim)
    key = gain * normal(stream, KEYS, head_dim)
    scores = F.scale_factor(scale, head_dim) * (key[:_QUERIES] @ key.mT)
    return torch.softmax(scores, -1).diagonal().mean().item()


def gain_to_focus(head_dim: int, scale: F.Scale) -> float:
    """The gain at which the matching key gets half of the weight, by bisection; infinite if 100 is not enough."""
    low, high = 0.0, 100.0
    if matching_weight(head_dim, scale, high) < 0.5:
        return math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if matching_weight(head_dim, scale, middle) >= 0.5 else (middle, high)
    return high


def product_variance(query: Tensor, key: Tensor) -> float:
    """The variance of q·k over all pairs of rows, about the mean of all."""
    return (query @ key.mT).var().item()
