"""Attention as a layer: maps to and from the heads, around functional.attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UsageError
from ..functional import attention, gated, rotate
from .caches import Cache
from .config import AttentionConfig, NormConfig, PositionConfig
from .linear import Linear
from .norms import RMSNorm
from .positions import Alibi, RelativeBias, Rotary, Rotation


@dataclass(frozen=True)
class Surroundings:
    """What the attention layers of one pass share.

    rotation: of queries and new keys. bias: (batch or 1, heads, queries, keys), added to the scores. visible: bool,
    broadcastable to (batch, heads, queries, keys). start: the place of the first query among the keys. cache: where
    keys and values of the tokens before stand. span: the n of a sigmoid's score − log n; None for the number of keys,
    which grows with a cache and counts padding.
    """

    rotation: Rotation | None = None
    bias: Tensor | None = None
    visible: Tensor | None = None
    start: int = 0
    cache: Cache | None = None
    span: int | None = None


class Attention(nn.Module):
    """p·v per head with p = softmax(scale·q kᵀ), and what else its config says; see functional.attention.

    Maps x (batch, length, d_model) to the same shape and dtype. memory (batch, keys, d_model): keys and values come
    from it, and every query sees all of it (cross-attention); its size is `memory_size` where that is not d_model.
    mask: bool, broadcastable to (batch, heads, length, keys), True where a query may look. causal: a token sees itself
    and those before it, without memory. position: rotary, alibi or relative positions, counted from 0, without memory.
    layer: which one it is, for windows that alternate.
    Raises ConfigError for positions that belong to the embedding, UsageError for a mask that does not fit.
    Source: Vaswani et al. 2017.
    """

    def __init__(
        self,
        d_model: int,
        config: AttentionConfig | None = None,
        *,
        causal: bool = True,
        position: PositionConfig | None = None,
        norm: NormConfig | None = None,
        memory_size: int | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        config = config or AttentionConfig()
        self.config, self.causal, self.layer = config, causal, layer
        self.head_dim = config.head_size(d_model)
        self.window = config.window_of(layer)
        inside, memory_size = config.heads * self.head_dim, memory_size or d_model
        self.query = Linear(d_model, inside, bias=config.bias)
        self.key = Linear(memory_size, config.groups * self.head_dim, bias=config.bias)
        self.value = Linear(memory_size, config.groups * self.head_dim, bias=config.bias)
        self.output = Linear(inside, d_model, bias=config.output_bias)
        self.gate = Linear(d_model, inside, bias=False) if config.output_gate else None
        self.query_norm, self.key_norm = (_head_norm(self.head_dim, norm) if config.qk_norm else None for _ in range(2))
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None
        self.rotary, self.bias = make_positions(position, config.heads, self.head_dim)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        surroundings: Surroundings | None = None,
    ) -> Tensor:
        if surroundings is None:
            surroundings = self._alone(x, memory, mask)
        source = x if memory is None else memory
        query, key, value = self._heads(self.query(x)), self._heads(self.key(source)), self._heads(self.value(source))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if surroundings.rotation is not None:
            query, key = rotate(query, *surroundings.rotation), rotate(key, *surroundings.rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if surroundings.cache is not None:
            key, value = surroundings.cache.extend(self.layer, key, value)
        attended = self._attend(query, key, value, surroundings, crossing=memory is not None)
        attended = attended.transpose(1, 2).flatten(2)
        return self.output(attended if self.gate is None else gated(self.gate(x), attended, "sigmoid"))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, surroundings: Surroundings, *, crossing: bool
    ) -> Tensor:
        causal, window = self.causal and not crossing, None if crossing else self.window
        visible, bias = surroundings.visible, surroundings.bias
        if surroundings.start:
            if query.shape[2] > 1 or visible is not None:
                visible = _both(visible, _reach(query, key, surroundings.start, window, causal))
            elif window is not None and window < key.shape[2]:  # one query sees the end of what there is
                key, value = key[:, :, -window:], value[:, :, -window:]
                bias = None if bias is None else bias[..., -window:]
            causal, window = False, None
        if self.config.normalizer == "sigmoid":
            bias = _raised(bias, query, key.shape[2], surroundings.span)
        return attention(
            query,
            key,
            value,
            scale=self.config.scale,
            causal=causal,
            mask=_joined(bias, visible),
            softcap=self.config.softcap,
            sinks=self.sinks,
            window=window,
            normalizer=self.config.normalizer,
        )

    def _alone(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Surroundings:
        if mask is not None and mask.dtype != torch.bool:
            raise UsageError(
                f"mask is {mask.dtype} and must be bool, True where a query may look; convert with .bool()"
            )
        if memory is not None:
            return Surroundings(visible=mask)
        places = torch.arange(x.shape[1], device=x.device)[None]
        return Surroundings(
            rotation=None if self.rotary is None else self.rotary(places, x.dtype),
            bias=None if self.bias is None else self.bias(places, places, x.dtype),
            visible=mask,
        )


def make_positions(
    config: PositionConfig | None, heads: int, head_dim: int
) -> tuple[Rotary | None, Alibi | RelativeBias | None]:
    """What turns queries and keys, and what is added to scores; raises ConfigError where neither is meant."""
    if config is None or config.kind == "none":
        return None, None
    if config.kind == "learned":
        raise ConfigError("position.kind is 'learned', which belongs to the embedding; add it to x before the layer")
    if config.kind == "rotary":
        return Rotary(head_dim, config), None
    return None, Alibi(heads) if config.kind == "alibi" else RelativeBias(heads, config)


def _head_norm(head_dim: int, norm: NormConfig | None) -> RMSNorm:
    norm = norm or NormConfig()
    return RMSNorm(head_dim, epsilon=norm.epsilon, offset=norm.offset)


def _reach(query: Tensor, key: Tensor, start: int, window: int | None, causal: bool) -> Tensor:
    """Which keys queries see that stand at `start` and behind: (queries, keys) bool."""
    places = torch.arange(start, start + query.shape[2], device=query.device)[:, None]
    distance = places - torch.arange(key.shape[2], device=key.device)
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)


def _raised(bias: Tensor | None, query: Tensor, keys: int, span: int | None) -> Tensor | None:
    """The bias with what makes score − log keys, as attention has it, score − log span."""
    if span is None or span == keys:
        return bias
    shift = math.log(keys / span)
    return query.new_full((1, 1), shift) if bias is None else bias + shift


def _both(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first & second


def _joined(bias: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """One mask of both: bool alone, or a bias that is −inf where nothing may be seen."""
    if bias is None or visible is None:
        return visible if bias is None else bias
    return torch.where(visible, bias, -torch.inf)
