"""What a transformer is made of, as data: frozen, nested by the dotted axes that a Change names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...catalogue import near_miss
from ...errors import ConfigError
from ...schema import Change
from ._checks import at_least, of_its_types, read
from .attention import AttentionConfig
from .feedforward import FeedForwardConfig
from .head import EmbeddingConfig, HeadConfig
from .norm import NormConfig
from .position import PositionConfig


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder: every choice is a field, and the nested fields are the axes that a Change and a study name.

    vocabulary: how many token ids. context: the longest sequence, in tokens. depth: blocks. d_model: width.
    Raises ConfigError where fields contradict each other.
    """

    vocabulary: int = 256
    context: int = 128
    depth: int = 4
    d_model: int = 128
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    position: PositionConfig = field(default_factory=PositionConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    feedforward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        of_its_types(self)
        for name in ("vocabulary", "context", "depth", "d_model"):
            at_least(name, getattr(self, name), 1)
        self._check_rotary()

    def _check_rotary(self) -> None:
        turned = self.position.turned(self.head_dim)
        if self.position.kind != "rotary" or (turned and turned % 2 == 0):
            return
        found = f"d_model {self.d_model} with attention.heads {self.attention.heads} gives a head dimension of"
        remedy = f"make it even, for instance d_model={self.d_model + self.attention.heads}"
        if self.attention.head_dim is not None:
            found = "attention.head_dim is"
            remedy = f"make it even, for instance attention.head_dim={self.head_dim + 1}"
        if self.position.share < 1:
            remedy = f"position.share={self.position.share:g} turns {turned} of them; choose a share of an even number"
        raise ConfigError(f"{found} {self.head_dim}, and rotary positions turn pairs of channels; {remedy}")

    @property
    def head_dim(self) -> int:
        """d_k, the size of one head's queries, keys and values."""
        return self.attention.head_size(self.d_model)

    @property
    def d_ff(self) -> int:
        """The hidden size of the feed-forward layers."""
        return self.feedforward.hidden_size(self.d_model)

    def parameters(self) -> dict[str, int]:
        """How many parameters each part has; a tied head counts as embedding."""
        norms = self.norm.parameters(self.d_model)
        return {
            "embedding": self.vocabulary * self.d_model,
            "position": self.position.parameters(self.context, self.d_model, self.attention.heads),
            "attention": self.depth * self.attention.parameters(self.d_model),
            "feedforward": self.depth * self.feedforward.parameters(self.d_model),
            "norm": (self.depth * self.norm.per_block + self.norm.before_head) * norms,
            "head": self.head.parameters(self.vocabulary, self.d_model),
        }

    def parameter_count(self) -> int:
        """How many parameters there are."""
        return sum(self.parameters().values())

    def flops(self, length: int | None = None, *, training: bool = False) -> dict[str, int]:
        """Floating-point operations per token, of matrix products alone, two for each multiply-add, by part.

        length: tokens in the sequence, by default the whole context. Decoding: one token that sees `length` of them.
        training: forward and backward, three times the products of a forward pass, of a token that sees (length + 1)/2
        on average. Windows are heeded.
        """
        length = self.context if length is None else length
        at_least("length", length, 1)
        seen = sum(_seen(length, self.attention.window_of(layer), training) for layer in range(self.depth))
        passes = 3 if training else 1
        scores = round(2 * 2 * self.attention.heads * self.head_dim * seen)
        matrices = self.depth * self.attention.matrix_sizes(self.d_model)
        return {
            "attention": passes * 2 * matrices,
            "scores": passes * scores,
            "feedforward": passes * 2 * self.depth * self.feedforward.matrix_sizes(self.d_model),
            "head": passes * 2 * self.vocabulary * self.d_model,
        }

    def flop_count(self, length: int | None = None, *, training: bool = False) -> int:
        """All that `flops` counts."""
        return sum(self.flops(length, training=training).values())

    def cache_bytes(self, element_size: int = 2) -> int:
        """Bytes of keys and values per token, of elements of this size (2 for bfloat16)."""
        return 2 * self.depth * self.attention.groups * self.head_dim * element_size

    def changed(self, change: Change) -> TransformerConfig:
        """The config with one axis at another value; raises ConfigError for an axis that there is not."""
        data = self.to_dict()
        part: Any = data
        *path, name = change.axis.split(".")
        for step in path:
            if not isinstance(part.get(step), dict):
                raise ConfigError(f"there is no axis {change.axis}; {_instead(step, part)}")
            part = part[step]
        part[name] = change.value
        return self.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """All fields as nested plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Read what `to_dict` wrote; raises ConfigError for a field that is not known or of the wrong type."""
        return read(cls, data)


def _instead(step: str, part: dict[str, Any]) -> str:
    """What to do about a step of an axis at which a config holds no fields."""
    if step not in part:
        return near_miss(step, part)
    return f"{step} is {part[step]!r} and has no fields; change {step} itself"


def _seen(length: int, window: int | None, average: bool) -> float:
    """How many tokens one sees: the last one of a sequence, or one of it on average."""
    reach = length if window is None else min(length, window)
    if not average:
        return reach
    return reach - reach * (reach - 1) / (2 * length)
