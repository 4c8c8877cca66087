"""A small model with the choices of a large one: the kinds and proportions of a config.json, at a study's size."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ...architectures.describing.subjects import read_config
from ...directories import OWN_MODEL_TYPE, named
from ...errors import ConfigError, ModelError
from ...nn import AttentionConfig, FeedForwardConfig, PositionConfig, TransformerConfig
from ...nn.families import FAMILIES
from ...nn.families.family import normal
from ...schema import clean_name
from .sizes import CONTEXT, DEPTH, VOCABULARY, WIDTH

_USUAL_HEAD, _LEAST_HEAD = 32, 8


def proxy(directory: str | Path, *, depth: int = DEPTH, d_model: int = WIDTH) -> TransformerConfig:
    """The choices of a model, shrunk to bytes, the context of a study's models, and this depth and width.

    directory: holds a config.json of a known family or of evenkeel's own, or is that file; it is read as data, and
    weights need not be there. What is kept: kinds and places of everything, biases, softcaps, ties; the proportions
    d_ff / d_model, heads·head_dim / d_model, key_heads / heads, window / context; a scale of scores that is a number of
    its own stays the same multiple of 1/√d_k. Rotary angles are not slowed: the proxy is trained at its whole context.
    Raises ModelError where there is no config.json, ConfigError for a family or a field that cannot be mapped.
    """
    mapped = _mapped(directory)
    large = replace(normal(mapped), head=mapped.head)
    position = replace(large.position, scaling=None)
    small = replace(
        large,
        vocabulary=VOCABULARY,
        context=CONTEXT,
        depth=depth,
        d_model=d_model,
        position=position,
        attention=_attention(large, position, depth, d_model),
        feedforward=_feedforward(large, d_model),
    )
    return replace(small, attention=_scaled(large, small))


def _mapped(directory: str | Path) -> TransformerConfig:
    """The config that a directory's config.json means."""
    path, name = Path(directory), named(Path(directory))
    if not path.exists() and str(directory) != "demo":
        raise ModelError(f"there is no directory {name}; give one with the config.json of a Hugging Face model")
    fields, _ = read_config(directory)
    model_type = fields.pop("model_type", None)
    if model_type == OWN_MODEL_TYPE:
        return TransformerConfig.from_dict(fields)
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"config.json of {name} has model_type {clean_name(repr(model_type))}, and choices are read of "
            f"{', '.join(FAMILIES)}; write this model's as axes or under [model]"
        )
    try:
        return FAMILIES[model_type].read(fields)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be shrunk: {error}") from error


def _feedforward(large: TransformerConfig, d_model: int) -> FeedForwardConfig:
    return replace(large.feedforward, d_ff=max(1, round(large.d_ff * d_model / large.d_model)))


def _attention(large: TransformerConfig, position: PositionConfig, depth: int, d_model: int) -> AttentionConfig:
    """Heads of about 32 channels, in the groups of the large model as far as there is room for them."""
    attention = large.attention
    width = attention.heads * large.head_dim * d_model / large.d_model
    group = attention.heads // attention.groups
    if group * _LEAST_HEAD <= width:
        heads = group * max(1, round(width / _USUAL_HEAD / group))
        key_heads = heads // group
    else:
        heads, key_heads = max(1, int(width) // _LEAST_HEAD), 1
    step = 2 * Fraction(position.share).limit_denominator(1000).denominator if position.kind == "rotary" else 1
    head_dim = step * max(1, round(width / heads / step))
    every = attention.global_every
    return replace(
        attention,
        heads=heads,
        key_heads=None if key_heads == heads else key_heads,
        head_dim=None if heads * head_dim == d_model else head_dim,
        window=attention.window and max(1, round(attention.window * CONTEXT / large.context)),
        global_every=every and min(every, max(2, depth)),
    )


def _scaled(large: TransformerConfig, small: TransformerConfig) -> AttentionConfig:
    """The small model's attention with the scale that a number of the large one's means for its head dimension."""
    scale = large.attention.scale
    if isinstance(scale, str):
        return small.attention
    return replace(small.attention, scale=scale * math.sqrt(large.head_dim / small.head_dim))
