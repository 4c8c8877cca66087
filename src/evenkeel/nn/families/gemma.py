"""Gemma and Gemma 2. Source: Gemma Team 2024, both reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...errors import ConfigError
from ..config import TransformerConfig
from .family import Family
from .layout import place
from .llama import ACTIVATIONS, ATTENTION_BIAS, EPSILON, GATED, KEY_HEADS, LAYOUT, SIZES, WHOLE_HEADS, tied
from .parts import Axes, Choice, Field, Fixed, Only, Part, Settings, checked
from .rotary import Rope
from .windows import Windows, alternating

_TANH = "gelu_pytorch_tanh"
_SHARED: tuple[Part, ...] = (
    *SIZES,
    KEY_HEADS,
    Field("head_dim", ("attention.head_dim",), default=256),
    Fixed("embedding.scale", "sqrt"),
    Rope(),
    ATTENTION_BIAS,
    Only("use_bidirectional_attention", False, "queries look ahead"),
    GATED,
    EPSILON,
    Fixed("norm.offset", True),
    tied(True),
)


@dataclass(frozen=True)
class QueryScale:
    """Scores are divided by the root of query_pre_attn_scalar."""

    name: str = "query_pre_attn_scalar"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def axes(self) -> tuple[str, ...]:
        return ("attention.scale",)

    def read(self, settings: Settings) -> Axes:
        scalar = checked(self.name, settings.get(self.name, 256), float)
        if not scalar > 0:
            raise ConfigError(f"config.json has {self.name} {scalar}, which must be above 0; mend the value")
        return {"attention.scale": "sqrt" if scalar == settings.get("head_dim", 256) else scalar**-0.5}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        scale = config.attention.score_scale(config.head_dim)
        return {self.name: max(1, round(scale**-2))}


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    parts=(
        *_SHARED,
        # "gelu" of the first files means the approximation
        Choice("hidden_act", "feedforward.activation", {**ACTIVATIONS, "gelu": "gelu_tanh"}, default=_TANH),
    ),
    layout=LAYOUT,
)

_SANDWICH = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "feedforward_norm",
    "post_feedforward_layernorm": "feedforward_post_norm",
}

GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    parts=(
        *_SHARED,
        WHOLE_HEADS,
        Windows(alternating),
        QueryScale(),
        Field("attn_logit_softcapping", ("attention.softcap",), float, default=50.0, null=True),
        Choice("hidden_activation", "feedforward.activation", ACTIVATIONS, default=_TANH),
        Fixed("norm.placement", "sandwich"),
        Field("final_logit_softcapping", ("head.softcap",), float, default=30.0, null=True),
    ),
    layout=replace(
        LAYOUT,
        block=(
            *(item for item in LAYOUT.block if item.theirs not in _SANDWICH),
            *(place(theirs, ours) for theirs, ours in _SANDWICH.items()),
        ),
    ),
)
