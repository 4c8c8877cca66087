"""How tokens know where they stand: rotary angles, biases on scores, embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .config import PositionConfig, RotaryScalingConfig


class Rotation(NamedTuple):
    """Cosines and sines of rotary angles, (batch or 1, length, turned / 2) each, in the dtype of what they turn."""

    cosine: Tensor
    sine: Tensor


class Rotary(nn.Module):
    """Rotary angles t·base^(−2i/d) of positions t, for the first d = share·head_dim channels of a head.

    Maps positions (batch or 1, length) to a Rotation; angles are computed in float64.
    Raises ConfigError for an odd number of channels, or none.
    Source: Su et al. 2021, RoFormer, with LLaMA's pairing of the two halves; scaling: see RotaryScalingConfig.
    """

    def __init__(self, head_dim: int, config: PositionConfig) -> None:
        super().__init__()
        self.turned, self.base, self.scaling = config.turned(head_dim), config.base, config.scaling
        if not self.turned or self.turned % 2:
            raise ConfigError(
                f"rotary positions turn pairs of channels, and of a head dimension of {head_dim} position.share="
                f"{config.share:g} turns {self.turned}; choose both so that it is an even number"
            )

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        steps = torch.arange(0, self.turned, 2, dtype=torch.float64, device=positions.device)
        frequencies = self.base ** -(steps / self.turned)
        if self.scaling is not None:
            frequencies = _scaled(frequencies, self.scaling)
        angles = positions.double().unsqueeze(-1) * frequencies
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def _scaled(frequencies: Tensor, scaling: RotaryScalingConfig) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.context * frequencies / (2 * math.pi)  # within the context trained on
    kept = ((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class Alibi(nn.Module):
    """−slope·|t − s| for a query at t and a key at s, with slopes 2^(−8/n), 2^(−16/n), ... over n heads.

    Maps positions (batch or 1, queries) and (batch or 1, keys) to (batch or 1, heads, queries, keys).
    Source: Press et al. 2022; numbers of heads that are no power of two as there.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.slopes = _slopes(heads)

    def forward(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        slopes = torch.tensor(self.slopes, dtype=dtype, device=queries.device)
        return -slopes[:, None, None] * (keys[:, None, None, :] - queries[:, None, :, None]).abs().to(dtype)


def _slopes(heads: int) -> list[float]:
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    between = [2 ** (-4 * (2 * head + 1) / whole) for head in range(heads - whole)]
    return slopes + between


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of t − s: the first half of the buckets are single distances, the rest grow.

    Maps positions (batch or 1, queries) and (batch or 1, keys) to (batch or 1, heads, queries, keys); keys behind their
    query share bucket 0.
    Source: Raffel et al. 2020, T5 (one direction).
    """

    def __init__(self, heads: int, config: PositionConfig) -> None:
        super().__init__()
        self.farthest = config.farthest
        self.weight = nn.Parameter(torch.zeros(config.buckets, heads))

    def forward(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        distance = (queries[:, :, None] - keys[:, None, :]).clamp(min=0)
        buckets = len(self.weight)
        single = buckets // 2
        share = (distance.clamp(min=1) / single).log() / math.log(self.farthest / single)
        grown = (single + (share * (buckets - single)).long()).clamp(max=buckets - 1)
        chosen = torch.where(distance < single, distance, grown)
        return self.weight[chosen].movedim(-1, 1).to(dtype)
