"""Norms of the residual stream and of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import rms_norm
from .config import NormConfig


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · w over the last dimension, (..., size) to the same shape and dtype.

    offset: w is kept less 1 in `weight`, so that weight decay draws it to 1. Low precision is computed in float32.
    Source: Zhang and Sennrich 2019; offset: Gemma.
    """

    def __init__(self, size: int, *, epsilon: float = 1e-6, offset: bool = False) -> None:
        super().__init__()
        self.epsilon, self.offset = epsilon, offset
        self.weight = nn.Parameter(torch.full((size,), 0.0 if offset else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, epsilon=self.epsilon, offset=self.offset)


class LayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · w + b over the last dimension, (..., size) to the same shape and dtype.

    bias: whether there is b. offset: w is kept less 1 in `weight`. Low precision is computed in float32.
    Source: Ba et al. 2016; offset: Nemotron.
    """

    def __init__(self, size: int, *, epsilon: float = 1e-5, bias: bool = True, offset: bool = False) -> None:
        super().__init__()
        self.epsilon, self.offset = epsilon, offset
        self.weight = nn.Parameter(torch.full((size,), 0.0 if offset else 1.0))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.offset:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        wide = torch.promote_types(x.dtype, torch.float32)  # 1 + w in a low precision would round the weight away
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.weight.shape, 1 + self.weight.to(wide), bias, self.epsilon).to(x.dtype)


def make_norm(size: int, config: NormConfig) -> nn.Module:
    """The norm of a config for vectors of this size."""
    if config.kind == "layer":
        return LayerNorm(size, epsilon=config.epsilon, bias=config.bias, offset=config.offset)
    return RMSNorm(size, epsilon=config.epsilon, offset=config.offset)
