"""Tiny configs of public architectures, and what each is made of, written down by hand from the papers and sources."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
_GPT2 |= {"eos_token_id": 2, "pad_token_id": 0}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a description must say; d is 32, and heads are 4 of 8 channels where nothing else is said.

    feedforwards: (activation, gate, matrices, d_ff, experts, active) of each kind, in order. windows: of each kind of
    attention.
    """

    feedforwards: tuple[tuple[str, str, int, int, int, int], ...]
    heads: tuple[int, int, int, int] = (4, 4, 8, 8)
    scale: float = 1 / math.sqrt(8)
    rule: str = "1/√d"
    causal: bool = True
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    sinks: bool = False
    qk_norm: str = "none"
    positions: tuple[str, ...] = ("rotary",)
    rotary_dim: int = 8
    norm: str = "rms"
    placement: str = "pre"
    tied: bool = False
    head_bias: bool = False
    head_softcap: float | None = None
    latent: int | None = None


def plain(activation: str, d_ff: int = 80, matrices: int = 2) -> tuple[str, str, int, int, int, int]:
    return (activation, "", matrices, d_ff, 0, 0)


def gated(
    activation: str = "silu", gate: str = "swiglu", d_ff: int = 80, experts: int = 0, active: int = 0
) -> tuple[str, str, int, int, int, int]:
    return (activation, gate, 3, d_ff, experts, active)


LEARNED: dict[str, Any] = {"positions": ("learned",), "rotary_dim": 0}
LAYER: dict[str, Any] = {"norm": "layer"}
GROUPED: dict[str, Any] = {"heads": (4, 2, 8, 8)}
TIED: dict[str, Any] = {"tied": True}

Case = tuple[str, dict[str, Any], Expected]

TABLE: dict[str, Case] = {
    "GPT-1": (
        "openai-gpt",
        _GPT2,
        Expected(feedforwards=(plain("gelu_tanh", 128),), placement="post", **LEARNED, **LAYER, **TIED),
    ),
    "GPT-2": ("gpt2", _GPT2, Expected(feedforwards=(plain("gelu_tanh", 128),), **LEARNED, **LAYER, **TIED)),
    "Phi-2": (
        "phi",
        {**_SIZES, "intermediate_size": 128},
        Expected(feedforwards=(plain("gelu_tanh", 128),), rotary_dim=4, head_bias=True, **LAYER),
    ),
    "OPT": (
        "opt",
        {**_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 32},
        Expected(feedforwards=(plain("relu", 128),), **LEARNED, **LAYER, **TIED),
    ),
    "BLOOM": (
        "bloom",
        {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
        Expected(feedforwards=(plain("gelu_tanh", 128),), positions=("alibi",), rotary_dim=0, **LAYER, **TIED),
    ),
    "Falcon": (
        "falcon",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1}
        | {"eos_token_id": 2},
        Expected(feedforwards=(plain("gelu", 128),), heads=(4, 1, 8, 8), **LAYER, **TIED),
    ),
    "LLaMA": ("llama", _GROUPED, Expected(feedforwards=(gated(),), **GROUPED)),
    "Mistral": (
        "mistral",
        {**_GROUPED, "sliding_window": 4096},
        Expected(feedforwards=(gated(),), windows=(4096,), **GROUPED),
    ),
    "OLMo": ("olmo", _GROUPED, Expected(feedforwards=(gated(),), **GROUPED, **LAYER)),
    "Qwen2.5": ("qwen2", _GROUPED, Expected(feedforwards=(gated(),), **GROUPED)),
    "Qwen3": ("qwen3", _HEADED, Expected(feedforwards=(gated(),), qk_norm="rms, per head", **GROUPED)),
    "Gemma 1": (
        "gemma",
        {**_HEADED, "intermediate_size": 256},
        Expected(feedforwards=(gated("gelu_tanh", "geglu_tanh", 256),), **GROUPED, **TIED),
    ),
    "Gemma 2": (
        "gemma2",
        {**_HEADED, "query_pre_attn_scalar": 16, "sliding_window": 48, "attn_logit_softcapping": 50.0},
        Expected(
            feedforwards=(gated("gelu_tanh", "geglu_tanh"),),
            scale=0.25,
            rule="other",
            windows=(48, None),
            softcap=50.0,
            placement="sandwich",
            head_softcap=30.0,
            **GROUPED,
            **TIED,
        ),
    ),
    "Gemma 3": (
        "gemma3_text",
        {**_HEADED, "query_pre_attn_scalar": 8, "sliding_window": 512}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        Expected(
            feedforwards=(gated("gelu_tanh", "geglu_tanh"),),
            windows=(512, None),
            qk_norm="rms, per head",
            placement="sandwich",
            **GROUPED,
            **TIED,
        ),
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {**_SIZES, **_LATENT},
        Expected(
            feedforwards=(gated(), gated(d_ff=24, experts=8, active=2), gated(d_ff=24)),
            heads=(4, 4, 12, 8),
            scale=1 / math.sqrt(12),
            rotary_dim=4,
            latent=16,
        ),
    ),
    "gpt-oss": (
        "gpt_oss",
        {**_HEADED, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        Expected(
            feedforwards=(gated("quick_gelu", "clamped_swiglu", 32, 4, 2),), windows=(128, None), sinks=True, **GROUPED
        ),
    ),
    "Nemotron-4": (
        "nemotron",
        {**_GROUPED, "intermediate_size": 128},
        Expected(feedforwards=(plain("relu2", 128),), rotary_dim=4, **GROUPED, **LAYER),
    ),
    "Granite": (
        "granite",
        {**_GROUPED, "attention_multiplier": 1 / 8},
        Expected(feedforwards=(gated(),), scale=1 / 8, rule="1/d", **GROUPED),
    ),
}
"""The families of public language models, as in the literature."""

MORE: dict[str, Case] = {
    "gptj": (
        "gptj",
        {**_GPT2, "rotary_dim": 4},
        Expected(feedforwards=(plain("gelu_tanh", 128),), rotary_dim=4, head_bias=True, **LAYER),
    ),
    "gpt_neox": ("gpt_neox", _SIZES, Expected(feedforwards=(plain("gelu"),), rotary_dim=2, **LAYER)),
    "gpt_neo": (
        "gpt_neo",
        {"vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 7, "bos_token_id": 1, "eos_token_id": 2},
        Expected(
            feedforwards=(plain("gelu_tanh", 128),), scale=1.0, rule="1", windows=(None, 7), **LEARNED, **LAYER, **TIED
        ),
    ),
    "gpt_bigcode": (
        "gpt_bigcode",
        _GPT2,
        Expected(feedforwards=(plain("gelu_tanh", 128),), heads=(4, 1, 8, 8), **LEARNED, **LAYER, **TIED),
    ),
    "codegen": (
        "codegen",
        {**_GPT2, "rotary_dim": 4},
        Expected(feedforwards=(plain("gelu_tanh", 128),), rotary_dim=4, head_bias=True, **LAYER),
    ),
    "mpt": (
        "mpt",
        {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
        Expected(feedforwards=(plain("gelu", 128),), positions=("alibi",), rotary_dim=0, **LAYER, **TIED),
    ),
    "phi3": ("phi3", _GROUPED, Expected(feedforwards=(gated(),), **GROUPED)),
    "stablelm": ("stablelm", _GROUPED, Expected(feedforwards=(gated(),), rotary_dim=2, **GROUPED, **LAYER)),
    "olmo2": (
        "olmo2",
        _GROUPED,
        Expected(feedforwards=(gated(),), qk_norm="rms, over all heads", placement="output", **GROUPED),
    ),
    "cohere": ("cohere", _GROUPED, Expected(feedforwards=(gated(),), **GROUPED, **LAYER, **TIED)),
    "mixtral": (
        "mixtral",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        Expected(feedforwards=(gated(experts=4, active=2),), **GROUPED),
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {**_GROUPED, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
        | {"shared_expert_intermediate_size": 40},
        Expected(feedforwards=(gated(d_ff=40), gated(d_ff=24, experts=6, active=3)), **GROUPED),
    ),
    "starcoder2": (
        "starcoder2",
        {**_GROUPED, "sliding_window": 33},
        Expected(feedforwards=(plain("gelu_tanh"),), windows=(33,), **GROUPED, **LAYER, **TIED),
    ),
    "persimmon": (
        "persimmon",
        _SIZES,
        Expected(feedforwards=(plain("relu2"),), qk_norm="layer, per head", rotary_dim=4, **LAYER),
    ),
    "biogpt": ("biogpt", _SIZES, Expected(feedforwards=(plain("gelu"),), **LEARNED, **LAYER, **TIED)),
    "xglm": (
        "xglm",
        {"vocab_size": 96, "d_model": 32, "ffn_dim": 80, "num_layers": 2, "attention_heads": 4}
        | {"max_position_embeddings": 64},
        Expected(feedforwards=(plain("gelu"),), positions=("fixed",), rotary_dim=0, **LAYER, **TIED),
    ),
    "exaone4": (
        "exaone4",
        {**_HEADED, "sliding_window": None, "sliding_window_pattern": 1, "layer_types": ["full_attention"] * 2},
        Expected(feedforwards=(gated(),), qk_norm="rms, per head", placement="output", **GROUPED),
    ),
    "glm4": (
        "glm4",
        _HEADED,
        Expected(feedforwards=(gated(),), rotary_dim=4, placement="sandwich", **GROUPED),
    ),
    "smollm3": (
        "smollm3",
        {**_GROUPED, "no_rope_layers": [1, 1]},
        Expected(feedforwards=(gated(),), **GROUPED, **TIED),
    ),
    "apertus-like seed_oss": ("seed_oss", _HEADED, Expected(feedforwards=(gated(),), **GROUPED)),
    "modernbert": (
        "modernbert",
        {**_SIZES, "global_attn_every_n_layers": 2, "local_attention": 16},
        Expected(
            feedforwards=(gated("gelu", "geglu"),),
            causal=False,
            windows=(None, 9),
            tied=True,
            head_bias=True,
            **LAYER,
        ),
    ),
    "bert": (
        "bert",
        _SIZES,
        Expected(
            feedforwards=(plain("gelu"),), causal=False, placement="post", head_bias=True, **LEARNED, **LAYER, **TIED
        ),
    ),
    "roberta": (
        "roberta",
        {**_SIZES, "pad_token_id": 1},
        Expected(
            feedforwards=(plain("gelu"),), causal=False, placement="post", head_bias=True, **LEARNED, **LAYER, **TIED
        ),
    ),
}
"""More architectures that transformers offers."""
