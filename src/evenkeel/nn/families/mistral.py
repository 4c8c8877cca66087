"""Mistral. Source: Jiang et al. 2023."""

from __future__ import annotations

from .family import Family
from .llama import ACTIVATION, EPSILON, GATED, HEAD_DIM, KEY_HEADS, LAYOUT, SIZES, tied
from .parts import Field
from .rotary import Rope

WINDOW = Field("sliding_window", ("attention.window",), default=4096, null=True)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    parts=(*SIZES, KEY_HEADS, HEAD_DIM, Rope(), WINDOW, GATED, ACTIVATION, EPSILON, tied(False)),
    layout=LAYOUT,
)
