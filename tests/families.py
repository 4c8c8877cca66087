"""Tiny, randomly initialised models of public families, and the nonlinear places that each must show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

Batch = dict[str, torch.Tensor]
Made = tuple[nn.Module, Batch]

_SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _HEADED,
    "gemma": _HEADED,
    "gemma2": _HEADED,
    "gpt2": _GPT2,
    "gpt_neox": _SIZES,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "phi": _SIZES,
    "phi3": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_HEADED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {
        **_HEADED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek_v3": {
        **_SIZES,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "nemotron": _GROUPED,
    "mamba": {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "attention_hidden_size": 32,
        "context_length": 64,
    },
    "bert": _SIZES,
    "electra": {**_SIZES, "embedding_size": 32},
    "distilbert": {
        "vocab_size": 100,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 64,
    },
    "deberta-v2": _SIZES,
    "t5": {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    },
}

_CLASSES: dict[str, Any] = dict.fromkeys(CONFIGS, AutoModelForCausalLM) | {
    "bert": AutoModelForMaskedLM,
    "electra": AutoModelForMaskedLM,
    "distilbert": AutoModelForMaskedLM,
    "deberta-v2": AutoModelForMaskedLM,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
}


def make(family: str, *, attention: str | None = None, length: int = 9) -> Made:
    """A tiny model of a family in training mode and a batch with labels; the same for every call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **CONFIGS[family])
    extra = {} if attention is None else {"attn_implementation": attention}
    model = _CLASSES[family].from_config(config, **extra)
    if family == "vit":
        return model.train(), {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
    ids = torch.randint(3, 90, (2, length))
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    if family == "t5":
        model.config.decoder_start_token_id = 0
        batch["labels"] = ids[:, :5].contiguous()
    return model.train(), batch


def _layers(prefix: str, *places: str) -> list[str]:
    return [f"{prefix}.{layer}.{place}" for layer in (0, 1) for place in places]


def _llama_like(op: str = "silu", gate: str = "swiglu", name: str = "act_fn") -> list[str]:
    return [
        *_layers("model.layers", "self_attn attention softmax", f"mlp.{name} activation {op}", f"mlp gate {gate}"),
        "lm_head head softmax",
    ]


def _experts(router: str) -> list[str]:
    return [
        *_layers(
            "model.layers",
            "self_attn attention softmax",
            f"mlp.gate router {router}",
            "mlp.experts.act_fn activation silu",
            "mlp.experts gate swiglu",
        ),
        "lm_head head softmax",
    ]


def _bert_like(prefix: str, *head: str) -> list[str]:
    return [
        *_layers(
            f"{prefix}.encoder.layer",
            "attention.self attention softmax",
            "intermediate.intermediate_act_fn activation gelu",
        ),
        *head,
    ]


def _plain(prefix: str, attention: str, activation: str, head: str = "lm_head") -> list[str]:
    return [*_layers(prefix, f"{attention} attention softmax", activation), f"{head} head softmax"]


_MASKED_HEAD = ("cls.predictions.transform.transform_act_fn activation gelu", "cls.predictions.decoder head softmax")

PLACES: dict[str, Callable[[], list[str]]] = {
    "llama": _llama_like,
    "mistral": _llama_like,
    "qwen2": _llama_like,
    "qwen3": _llama_like,
    "gemma": lambda: _llama_like("gelu_tanh", "geglu_tanh"),
    "gemma2": lambda: _llama_like("gelu_tanh", "geglu_tanh"),
    "gpt2": lambda: _plain("transformer.h", "attn", "mlp.act activation gelu_tanh"),
    "gpt_neox": lambda: _plain("gpt_neox.layers", "attention", "mlp.act activation gelu"),
    "gptj": lambda: _plain("transformer.h", "attn", "mlp.act activation gelu_tanh"),
    "opt": lambda: _plain("model.decoder.layers", "self_attn", "activation_fn activation relu"),
    "bloom": lambda: _plain("transformer.h", "self_attention", "mlp.gelu_impl activation gelu_tanh"),
    "falcon": lambda: _plain("transformer.h", "self_attention", "mlp.act activation gelu"),
    "phi": lambda: _plain("model.layers", "self_attn", "mlp.activation_fn activation gelu_tanh"),
    "phi3": lambda: _llama_like(name="activation_fn"),
    "mixtral": lambda: _experts("softmax"),
    "qwen3_moe": lambda: _experts("softmax"),
    "gpt_oss": lambda: [
        *_layers(
            "model.layers",
            "self_attn attention softmax",
            "mlp.router router softmax",
            "mlp.experts activation quick_gelu",
            "mlp.experts gate clamped_swiglu",
        ),
        "lm_head head softmax",
    ],
    "deepseek_v3": lambda: [
        *_layers(
            "model.layers",
            "self_attn attention softmax",
            "mlp.gate router sigmoid",
            "mlp.experts.act_fn activation silu",
            "mlp.experts gate swiglu",
            "mlp.shared_experts.act_fn activation silu",
            "mlp.shared_experts gate swiglu",
        ),
        "lm_head head softmax",
    ],
    "nemotron": lambda: _plain("model.layers", "self_attn", "mlp.act_fn activation relu2"),
    "mamba": lambda: [
        *_layers(
            "backbone.layers",
            "mixer activation silu",
            "mixer activation softplus",
            "mixer recurrence linear",
            "mixer activation silu @1",
            "mixer gate swiglu",
        ),
        "lm_head head softmax",
    ],
    "rwkv": lambda: [
        *_layers(
            "rwkv.blocks",
            "attention activation sigmoid",
            "attention recurrence linear",
            "attention gate glu",
            "feed_forward activation relu2",
            "feed_forward activation sigmoid",
            "feed_forward gate glu",
        ),
        "head head softmax",
    ],
    "bert": lambda: _bert_like("bert", *_MASKED_HEAD),
    "electra": lambda: _bert_like(
        "electra", "generator_predictions.activation activation gelu", "generator_lm_head head softmax"
    ),
    "distilbert": lambda: [
        *_layers("distilbert.transformer.layer", "attention attention softmax", "ffn.activation activation gelu"),
        "activation activation gelu",
        "vocab_projector head softmax",
    ],
    "deberta-v2": lambda: _bert_like("deberta", *_MASKED_HEAD),
    "t5": lambda: [
        *_layers(
            "encoder.block", "layer.0.SelfAttention attention softmax", "layer.1.DenseReluDense.act activation relu"
        ),
        *_layers(
            "decoder.block",
            "layer.0.SelfAttention attention softmax",
            "layer.1.EncDecAttention attention softmax",
            "layer.2.DenseReluDense.act activation relu",
        ),
        "lm_head head softmax",
    ],
    "vit": lambda: _plain("vit.layers", "attention", "mlp.activation_fn activation gelu", "classifier"),
}

BLOCKS: dict[str, list[str]] = {
    "llama": ["model.layers.0", "model.layers.1"],
    "mixtral": ["model.layers.0", "model.layers.1"],
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "mamba": ["backbone.layers.0", "backbone.layers.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
}
