"""A family: a public architecture, whose config and weights are mapped to ours and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import ConfigError
from ..config import (
    AttentionConfig,
    FeedForwardConfig,
    NormConfig,
    PositionConfig,
    RotaryScalingConfig,
    TransformerConfig,
)
from ..config.axes import flat, nested
from .layout import Layout
from .parts import Axes, Part, Settings

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SCALES = ("sqrt", "dim", "none")


@dataclass(frozen=True)
class Origin:
    """Where a model came from. family: its name. token_ids: of special tokens, by the names of config.json."""

    family: str
    token_ids: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face.

    architecture: the class that config.json names in `architectures`. parts: how its fields map to axes; an axis that
    none of them names has the value that a TransformerConfig has by itself. layout: where its tensors stand.
    """

    model_type: str
    architecture: str
    parts: tuple[Part, ...]
    layout: Layout

    def read(self, settings: Settings) -> TransformerConfig:
        """The config that a config.json means; raises ConfigError, which names the field, where there is none."""
        axes: Axes = {}
        for part in self.parts:
            axes |= part.read(settings)
        return TransformerConfig.from_dict(nested(axes))

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """The fields of config.json; raises ConfigError, which names the axes, where the family has not such a model.

        What only a loss reads (head.z_loss), where weights start (attention.query_gain) and how matrices are packed are
        no part of it.
        """
        wanted = normal(config)
        settings: dict[str, Any] = {}
        try:
            for part in self.parts:
                settings |= part.write(wanted)
            differences = _differences(wanted, normal(self.read(settings)))
        except ConfigError as error:
            raise ConfigError(f"{self.model_type} has no such model: {error}") from error
        if differences:
            raise ConfigError(f"{self.model_type} has no such model: {'; '.join(differences)}")
        return settings


def normal(config: TransformerConfig) -> TransformerConfig:
    """The config of the same computation with its sizes written out, and at its default whatever has no effect."""
    d_model, depth, head_dim = config.d_model, config.depth, config.head_dim
    norm = config.norm if config.norm.placement != "none" else NormConfig(placement="none")
    if config.attention.qk_norm:
        norm = replace(norm, epsilon=config.norm.epsilon, offset=config.norm.offset)
    root = math.isclose(config.embedding.factor(d_model), math.sqrt(d_model), rel_tol=1e-12)
    return replace(
        config,
        embedding=replace(config.embedding, scale="sqrt" if root else config.embedding.factor(d_model)),
        position=_normal_position(config.position),
        attention=_normal_attention(config.attention, depth, head_dim),
        feedforward=replace(
            config.feedforward,
            d_ff=config.d_ff,
            multiple=FeedForwardConfig().multiple,
            packed=False,
        ),
        norm=norm,
        head=replace(config.head, z_loss=0.0),
    )


def _normal_position(position: PositionConfig) -> PositionConfig:
    if position.kind == "relative":
        return PositionConfig(kind="relative", buckets=position.buckets, farthest=position.farthest)
    if position.kind != "rotary":
        return PositionConfig(kind=position.kind)
    scaling = position.scaling
    if scaling is not None and scaling.kind == "linear":
        scaling = RotaryScalingConfig(kind="linear", factor=scaling.factor)
    return PositionConfig(base=position.base, share=position.share, scaling=scaling)


def _normal_attention(attention: AttentionConfig, depth: int, head_dim: int) -> AttentionConfig:
    number = attention.score_scale(head_dim)
    words = (word for word in _SCALES if math.isclose(replace(attention, scale=word).score_scale(head_dim), number))
    every, sees_all = attention.global_every, all(attention.window_of(layer) is None for layer in range(depth))
    return replace(
        attention,
        key_heads=attention.groups,
        head_dim=head_dim,
        scale=next(words, number),
        window=None if sees_all else attention.window,
        global_every=None if sees_all or every is None or every > depth else every,
        query_gain=1.0,
    )


def _differences(wanted: TransformerConfig, had: TransformerConfig) -> list[str]:
    """The axes on which two configs differ, in words."""
    ours, theirs = dict(flat(wanted.to_dict())), dict(flat(had.to_dict()))
    return [
        f"{axis} is {ours.get(axis)!r} and can only be {theirs.get(axis)!r}"
        for axis in dict.fromkeys([*ours, *theirs])
        if ours.get(axis) != theirs.get(axis)
    ]
