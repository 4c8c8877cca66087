"""Attention by definition in differentiable torch functions, in O(queries·keys) memory: for second derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._dtypes import widened


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float | None,
    before: int,
    after: int,
    sigmoid: bool,
) -> Tensor:
    """The same as the operator evenkeel::attention; sinks: (batch, heads)."""
    dtype, keys = query.dtype, key.shape[2]
    group = (key.shape[1], query.shape[1] // key.shape[1])
    query, key, value = widened(query).unflatten(1, group), widened(key).unsqueeze(2), widened(value).unsqueeze(2)
    scores = (scale * (query @ key.mT)).flatten(1, 2)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(keys, device=query.device) - torch.arange(scores.shape[2], device=query.device)[:, None]
    visible = (distance <= after) & (distance >= -before)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    elif mask is not None:
        hidden = mask == -torch.inf
        scores, visible = scores + mask.masked_fill(hidden, 0).to(scores.dtype), visible & ~hidden
    if sigmoid:
        weights = (scores - math.log(max(1, keys))).sigmoid() * visible
    else:
        maximum = scores.detach().masked_fill(~visible, -torch.inf).amax(-1, keepdim=True)
        if sinks is not None:
            maximum = torch.maximum(maximum, sinks.detach().to(scores.dtype)[..., None, None])
        maximum = maximum.masked_fill(maximum == -torch.inf, 0)
        exponentials = torch.where(visible, scores - maximum, 0).exp() * visible
        total = exponentials.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + (sinks.to(scores.dtype)[..., None, None] - maximum).exp()
        weights = exponentials / total.masked_fill(total == 0, 1)
    return (weights.unflatten(1, group) @ value).flatten(1, 2).to(dtype)
