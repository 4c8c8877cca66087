"""Configs of every kind of transformer, small ones by name and any by Hypothesis, and weights that hide nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from evenkeel.errors import ConfigError
from evenkeel.nn import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    RotaryScalingConfig,
    TransformerConfig,
)

M = TypeVar("M", bound=nn.Module)

SMALL = TransformerConfig(vocabulary=61, context=24, depth=3, d_model=32)


def small(**parts: Any) -> TransformerConfig:
    return replace(SMALL, **parts)


VARIANTS = {
    "rotary": SMALL,
    "part rotary": small(position=PositionConfig(share=0.5, base=100.0)),
    "scaled rotary": small(position=PositionConfig(scaling=RotaryScalingConfig(kind="llama3", factor=4.0, context=16))),
    "learned": small(position=PositionConfig(kind="learned"), embedding=EmbeddingConfig(scale="sqrt")),
    "alibi": small(position=PositionConfig(kind="alibi"), attention=AttentionConfig(heads=2, window=5)),
    "relative": small(position=PositionConfig(kind="relative", buckets=6, farthest=9)),
    "relative window": small(
        position=PositionConfig(kind="relative", buckets=6, farthest=9), attention=AttentionConfig(window=4)
    ),
    "no positions": small(position=PositionConfig(kind="none")),
    "window": small(attention=AttentionConfig(window=4)),
    "global every second": small(attention=AttentionConfig(window=3, global_every=2)),
    "sinks": small(attention=AttentionConfig(sinks=True)),
    "softcaps": small(attention=AttentionConfig(softcap=2.0), head=HeadConfig(softcap=3.0, tied=True)),
    "many": small(
        attention=AttentionConfig(
            heads=4, key_heads=2, head_dim=6, bias=True, output_bias=True, qk_norm=True, output_gate=True, sinks=True
        ),
        feedforward=FeedForwardConfig(packed=True, bias=True),
    ),
    "sigmoid head": small(head=HeadConfig(kind="sigmoid", bias=True)),
    "sigmoid attention": small(attention=AttentionConfig(normalizer="sigmoid", window=6, global_every=3)),
    "post-norm": small(norm=NormConfig(kind="layer", placement="post", bias=True)),
    "sandwich": small(norm=NormConfig(placement="sandwich", offset=True), attention=AttentionConfig(key_heads=1)),
    "no norms": small(norm=NormConfig(placement="none"), feedforward=FeedForwardConfig(gated=False, activation="relu")),
}


def stirred(module: M, seed: int = 0, deviation: float = 0.3) -> M:
    """The module with noise in place of every parameter, around 1 where that is 1: zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = deviation * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.copy_(noise + int(bool((parameter == 1).all())))
    return module


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def token_rows(*shape: int, vocabulary: int = 61, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """An RMS norm by its definition."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def mapped(x: Tensor, matrix: nn.Linear) -> Tensor:
    """W x + b in float64."""
    added = x @ matrix.weight.double().T
    return added if matrix.bias is None else added + matrix.bias.double()


def scalings() -> st.SearchStrategy[RotaryScalingConfig]:
    return st.builds(
        RotaryScalingConfig,
        kind=st.sampled_from(("linear", "llama3")),
        factor=st.floats(1, 32),
        low_frequency=st.floats(0.5, 2),
        high_frequency=st.floats(3, 8),
        context=st.integers(1, 10_000),
    )


@st.composite
def attentions(draw: st.DrawFn) -> AttentionConfig:
    heads = draw(st.sampled_from((1, 2, 3, 4, 6)))
    window = draw(st.one_of(st.none(), st.integers(1, 9)))
    normalizer = draw(st.sampled_from(("softmax", "sigmoid")))
    return AttentionConfig(
        heads=heads,
        key_heads=draw(st.sampled_from([None, *(count for count in range(1, heads + 1) if heads % count == 0)])),
        head_dim=draw(st.sampled_from((None, 2, 4, 6, 8))),
        scale=draw(st.sampled_from(("sqrt", "dim", "none", 0.3, 2))),
        bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        softcap=draw(st.sampled_from((None, 5.0, 30))),
        sinks=normalizer == "softmax" and draw(st.booleans()),
        window=window,
        global_every=None if window is None else draw(st.sampled_from((None, 2, 3))),
        normalizer=normalizer,
        output_gate=draw(st.booleans()),
        residual=draw(st.booleans()),
        query_gain=draw(st.sampled_from((1.0, 0.25))),
    )


@st.composite
def configs(draw: st.DrawFn) -> TransformerConfig:
    """Any valid config of a model that is quickly made."""
    attention = draw(attentions())
    gated, head_kind = draw(st.booleans()), draw(st.sampled_from(("softmax", "sigmoid")))
    norm_kind = draw(st.sampled_from(("rms", "layer")))
    try:
        return TransformerConfig(
            vocabulary=draw(st.integers(1, 50)),
            context=draw(st.integers(1, 30)),
            depth=draw(st.integers(1, 4)),
            d_model=attention.heads * draw(st.integers(1, 8)),
            embedding=EmbeddingConfig(scale=draw(st.sampled_from(("sqrt", 1.0, 3)))),
            position=PositionConfig(
                kind=draw(st.sampled_from(("rotary", "learned", "alibi", "relative", "none"))),
                base=draw(st.floats(10, 1e6)),
                share=draw(st.sampled_from((1.0, 0.5, 0.25))),
                scaling=draw(st.one_of(st.none(), scalings())),
                buckets=draw(st.integers(2, 40)),
                farthest=draw(st.integers(21, 300)),
            ),
            attention=attention,
            feedforward=FeedForwardConfig(
                activation=draw(st.sampled_from(("silu", "gelu", "relu2", "tanh"))),
                gated=gated,
                d_ff=draw(st.one_of(st.none(), st.integers(1, 40))),
                multiple=draw(st.integers(1, 16)),
                bias=draw(st.booleans()),
                packed=gated and draw(st.booleans()),
            ),
            norm=NormConfig(
                kind=norm_kind,
                placement=draw(st.sampled_from(("pre", "post", "sandwich", "none"))),
                bias=norm_kind == "layer" and draw(st.booleans()),
                offset=draw(st.booleans()),
            ),
            head=HeadConfig(
                kind=head_kind,
                tied=draw(st.booleans()),
                softcap=draw(st.sampled_from((None, 30.0))),
                z_loss=0.0 if head_kind == "sigmoid" else draw(st.sampled_from((0.0, 1e-4))),
                bias=draw(st.booleans()),
            ),
        )
    except ConfigError as error:
        assume("rotary positions turn pairs" not in str(error))
        raise
