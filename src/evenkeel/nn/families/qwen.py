"""Qwen2 and Qwen3. Source: Qwen Team 2024, 2025."""

from __future__ import annotations

from .family import Family
from .llama import ACTIVATION, ATTENTION_BIAS, EPSILON, GATED, HEAD_DIM, KEY_HEADS, LAYOUT, SIZES, tied
from .parts import Field, Fixed
from .rotary import Rope
from .windows import Windows, behind_the_first

_WINDOWS = Windows(behind_the_first, switch="use_sliding_window")

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    parts=(
        *SIZES,
        KEY_HEADS,
        HEAD_DIM,
        Rope(),
        _WINDOWS,
        Fixed("attention.bias", True),
        Fixed("attention.output_bias", False),
        GATED,
        ACTIVATION,
        EPSILON,
        tied(False),
    ),
    layout=LAYOUT,
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    parts=(
        *SIZES,
        KEY_HEADS,
        Field("head_dim", ("attention.head_dim",), default=128),
        Rope(),
        _WINDOWS,
        ATTENTION_BIAS,
        Fixed("attention.qk_norm", True),
        GATED,
        ACTIVATION,
        EPSILON,
        tied(False),
    ),
    layout=LAYOUT,
)
