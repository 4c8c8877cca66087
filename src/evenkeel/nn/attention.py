"""Causal self-attention with rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rotary(nn.Module):
    """Rotary positions: channels i and i + d/2 of position t turn by the angle t·base^(−2i/d).

    Maps (batch, heads, length, d) to the same shape and dtype; d is even, length at most `context`.
    Source: Su et al. 2021, RoFormer, with LLaMA's pairing of the two halves.
    """

    def __init__(self, head_dim: int, context: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        cosine, sine = self.get_buffer("cosine")[:length], self.get_buffer("sine")[:length]
        first, second = x.chunk(2, dim=-1)
        return x * cosine.to(x.dtype) + torch.cat((-second, first), dim=-1) * sine.to(x.dtype)


class Attention(nn.Module):
    """softmax(scale · q kᵀ) v per head, each position seeing itself and those before it; no biases.

    Maps (batch, length, d_model) to the same shape and dtype. scale: what the scores are multiplied by.
    Source: Vaswani et al. 2017.
    """

    def __init__(self, d_model: int, *, heads: int, scale: float, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.rotary = Rotary(d_model // heads, context)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(
            self.rotary(query), self.rotary(key), value, is_causal=True, scale=self.scale
        )
        return self.output(attended.transpose(1, 2).flatten(2))
