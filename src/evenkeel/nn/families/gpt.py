"""GPT-1 and GPT-2. Source: Radford et al. 2018, 2019."""

from __future__ import annotations

from .family import Family
from .layout import TURNED, Layout, place
from .llama import ACTIVATIONS, tied
from .parts import Choice, Field, Fixed, Only, Part

_SHARED: tuple[Part, ...] = (
    Field("vocab_size", ("vocabulary",)),
    Field("n_positions", ("context",)),
    Field("n_layer", ("depth",)),
    Field("n_embd", ("d_model",)),
    Field("n_head", ("attention.heads",)),
    Fixed("position.kind", "learned"),
    Fixed("attention.bias", True),
    Fixed("attention.output_bias", True),
    Fixed("feedforward.gated", False),
    Fixed("feedforward.bias", True),
    Fixed("norm.kind", "layer"),
    Fixed("norm.bias", True),
    Field("layer_norm_epsilon", ("norm.epsilon",), float, default=1e-5),
    tied(True),
)
_BLOCK = (
    place("attn.c_attn", "attention.query", "attention.key", "attention.value", form=TURNED),
    place("attn.c_proj", "attention.output", form=TURNED),
    place("mlp.c_fc", "feedforward.up", form=TURNED),
    place("mlp.c_proj", "feedforward.down", form=TURNED),
)
_MASKS = (".attn.bias", ".attn.masked_bias")

GPT1 = Family(
    model_type="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    parts=(
        *_SHARED,
        # "gelu" means the approximation here
        Choice(
            "afn",
            "feedforward.activation",
            {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
            default="gelu",
        ),
        Fixed("feedforward.d_ff", None),
        Fixed("norm.placement", "post"),
    ),
    layout=Layout(
        prefix="transformer.",
        blocks="transformer.h",
        ends=(
            place("transformer.tokens_embed", "embedding"),
            place("transformer.positions_embed", "positions"),
            place("lm_head", "head"),
        ),
        block=(*_BLOCK, place("ln_1", "attention_post_norm"), place("ln_2", "feedforward_post_norm")),
        ignored=(*_MASKS, "position_ids"),
    ),
)

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    parts=(
        *_SHARED,
        Choice("scale_attn_weights", "attention.scale", {True: "sqrt", False: "none"}, default=True),
        Only("scale_attn_by_inverse_layer_idx", False, "a scale that differs from layer to layer"),
        Only("add_cross_attention", False, "attention to another sequence"),
        Field("n_inner", ("feedforward.d_ff",), default=None, null=True),
        Choice(
            "activation_function",
            "feedforward.activation",
            {"gelu_new": "gelu_tanh", **ACTIVATIONS},
            default="gelu_new",
        ),
    ),
    layout=Layout(
        prefix="transformer.",
        blocks="transformer.h",
        ends=(
            place("transformer.wte", "embedding"),
            place("transformer.wpe", "positions"),
            place("transformer.ln_f", "norm"),
            place("lm_head", "head"),
        ),
        block=(*_BLOCK, place("ln_1", "attention_norm"), place("ln_2", "feedforward_norm")),
        ignored=_MASKS,
    ),
)
