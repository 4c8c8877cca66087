"""Nemotron. Source: Parmar et al. 2024, Nemotron-4."""

from __future__ import annotations

from .family import Family
from .llama import ACTIVATIONS, ATTENTION_BIAS, HEAD_DIM, KEY_HEADS, LAYOUT, MLP_BIAS, SIZES, tied
from .parts import Choice, Field, Fixed
from .rotary import Rope

NEMOTRON = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    parts=(
        *SIZES,
        KEY_HEADS,
        HEAD_DIM,
        Rope(share=0.5),
        ATTENTION_BIAS,
        Fixed("feedforward.gated", False),
        Choice("hidden_act", "feedforward.activation", ACTIVATIONS, default="relu2"),
        MLP_BIAS,
        Fixed("norm.kind", "layer"),
        Fixed("norm.bias", True),
        Fixed("norm.offset", True),
        Field("norm_eps", ("norm.epsilon",), float, default=1e-5),
        tied(False),
    ),
    layout=LAYOUT,
)
