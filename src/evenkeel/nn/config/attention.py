"""Choices of the attention layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...catalogue import near_miss
from ...errors import ConfigError
from ...functional import scale_factor
from ._checks import above_zero, at_least, divides, of_its_types, one_of

Normalizer = Literal["softmax", "sigmoid"]
ScaleRule = Literal["sqrt", "dim", "none"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal self-attention.

    heads: how many. key_heads: of keys and values, a divisor of heads (grouped queries); None = heads. head_dim: size
    of one head; None = d_model / heads. scale: what scores q·k are multiplied by: "sqrt" 1/√d_k, "dim" 1/d_k, "none" 1,
    or a number. bias: of the query, key and value maps; output_bias: of the map behind the heads. qk_norm: RMS norms of
    each head's queries and keys. softcap: c in c·tanh(score/c). sinks: a learned logit per head that takes its share of
    the softmax. window: a token sees so many, itself among them; None = all before it. global_every: every so many-th
    layer sees all tokens whatever the window. normalizer: "softmax", or "sigmoid" of each score − log n by itself, n
    being the model's context (of a layer alone: its keys). output_gate: what the heads give is multiplied by σ(W x).
    residual: whether the input is added to the output. query_gain: what the query map's first deviation is multiplied
    by; T5 has scale "none" and 1/√d_k here.
    """

    heads: int = 4
    key_heads: int | None = None
    head_dim: int | None = None
    scale: ScaleRule | float = "sqrt"
    bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    softcap: float | None = None
    sinks: bool = False
    window: int | None = None
    global_every: int | None = None
    normalizer: Normalizer = "softmax"
    output_gate: bool = False
    residual: bool = True
    query_gain: float = 1.0

    def __post_init__(self) -> None:
        of_its_types(self, "attention.")
        for name in ("heads", "key_heads", "head_dim", "window"):
            at_least(f"attention.{name}", getattr(self, name), 1)
        at_least("attention.global_every", self.global_every, 2)
        divides("attention.key_heads", self.groups, "attention.heads", self.heads)
        self._check_scale()
        above_zero("attention.softcap", self.softcap, 50)
        above_zero("attention.query_gain", self.query_gain, 1)
        one_of("attention.normalizer", self.normalizer, get_args(Normalizer))
        if self.sinks and self.normalizer == "sigmoid":
            raise ConfigError(
                "attention.sinks take a share of a softmax and attention.normalizer is 'sigmoid'; set sinks=False"
            )
        if self.global_every is not None and self.window is None:
            raise ConfigError(
                f"attention.global_every is {self.global_every} and attention.window None, so every layer sees all "
                "tokens; give a window, for instance attention.window=4096, or leave global_every out"
            )

    def _check_scale(self) -> None:
        if isinstance(self.scale, str):
            if self.scale not in get_args(ScaleRule):
                raise ConfigError(f"attention.scale is {self.scale!r}; {near_miss(self.scale, get_args(ScaleRule))}")
        elif not (math.isfinite(self.scale) and self.scale > 0):
            words = ", ".join(get_args(ScaleRule))
            raise ConfigError(f"attention.scale is {self.scale}; give {words}, or a finite number above 0")

    @property
    def groups(self) -> int:
        """How many heads of keys and values there are."""
        return self.heads if self.key_heads is None else self.key_heads

    def head_size(self, d_model: int) -> int:
        """d_k, the size of one head's queries, keys and values; raises ConfigError where d_model has no such share."""
        if self.head_dim is not None:
            return self.head_dim
        divides("attention.heads", self.heads, "d_model", d_model)
        return d_model // self.heads

    def score_scale(self, head_dim: int) -> float:
        """The factor that scores of this head dimension d_k are multiplied by."""
        return scale_factor(self.scale, head_dim)

    def window_of(self, layer: int) -> int | None:
        """How many tokens the attention of a layer, counted from 0, sees; None for all."""
        sees_all = self.global_every is not None and (layer + 1) % self.global_every == 0
        return None if sees_all else self.window

    def matrix_sizes(self, d_model: int) -> int:
        """How many weights stand in its matrices."""
        size = self.head_size(d_model)
        maps = (2 + self.output_gate) * self.heads + 2 * self.groups
        return d_model * size * maps

    def parameters(self, d_model: int) -> int:
        """How many parameters one layer has, norms of queries and keys among them."""
        size = self.head_size(d_model)
        biases = self.bias * size * (self.heads + 2 * self.groups) + self.output_bias * d_model
        return self.matrix_sizes(d_model) + biases + 2 * size * self.qk_norm + self.heads * self.sinks
