"""Tiny models of every mapped family, made by transformers with random weights, and edited copies of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from evenkeel.nn import Transformer

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
GPT = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 48}
OPT = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")}
OPT |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
S, F = "sliding_attention", "full_attention"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama biased, tied, wide heads, llama3": (
        "llama",
        SIZES
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 12}
        | {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3, "hidden_act": "gelu"},
    ),
    "llama linear": ("llama", SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}}),
    "mistral": ("mistral", SIZES | {"sliding_window": 5}),
    "mistral without a window": ("mistral", SIZES | {"sliding_window": None, "head_dim": 6}),
    "qwen2": ("qwen2", SIZES | {"tie_word_embeddings": True}),
    "qwen2 windowed": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2 in turn": (
        "qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 4, "layer_types": [S, F, S]},
    ),
    "qwen3": ("qwen3", SIZES | {"head_dim": 12}),
    "qwen3 biased": ("qwen3", SIZES | {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma": ("gemma", SIZES | {"head_dim": 12}),
    "gemma untied": ("gemma", SIZES | {"head_dim": 8, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": ("gemma2", SIZES | {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20}),
    "gemma2 with low caps": (
        "gemma2",
        SIZES
        | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8, "layer_types": [S, S, F]}
        | {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5},
    ),
    "gemma2 without caps": (
        "gemma2",
        SIZES | {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "nemotron": ("nemotron", SIZES),
    "nemotron biased": (
        "nemotron",
        SIZES
        | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}
        | {
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0, "partial_rotary_factor": 0.25}
        },
    ),
    "gpt2": ("gpt2", GPT),
    "gpt2 untied, unscaled": (
        "gpt2",
        GPT | {"tie_word_embeddings": False, "scale_attn_weights": False, "n_inner": 40, "activation_function": "relu"},
    ),
    "openai-gpt": ("openai-gpt", GPT),
    "openai-gpt silu": ("openai-gpt", GPT | {"afn": "silu", "layer_norm_epsilon": 1e-2}),
    "opt": ("opt", OPT),
    "opt behind the sum": ("opt", OPT | {"do_layer_norm_before": False, "activation_function": "gelu"}),
    "opt without biases": ("opt", OPT | {"enable_bias": False, "tie_word_embeddings": False}),
}
IDS = torch.randint(4, 61, (2, 21), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[0, :4] = 0


def made(case: str) -> Any:
    """transformers' model with random weights, norms and biases among them."""
    model_type, settings = CASES[case]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * drawn if parameter.dim() > 1 else parameter + 0.3 * drawn)
    return model


def rewrite(directory: Path, source: Path, settings: dict[str, Any], rename: Callable[[str], str | None]) -> Path:
    """A copy of a directory with another config.json, and tensors by other names; None leaves one out."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    kept = {name: tensor for name, tensor in tensors.items() if name is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def settings_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def edited(directory: Path, source: Path, **changes: Any) -> Path:
    """A copy of a directory with some fields of config.json changed, or taken out where they are `...`."""
    settings = settings_of(source) | changes
    kept = {name: value for name, value in settings.items() if value is not ...}
    return rewrite(directory, source, kept, lambda name: name)


def logits(model: Transformer) -> Tensor:
    found = model(IDS).logits
    assert found is not None
    return found


def read_back(directory: Path) -> Any:
    """What transformers makes of a directory, every tensor of which it must use."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, local_files_only=True)
    model, info = loaded
    assert not any(info.values()), info
    return model.eval()


def saved(root: Path, case: str) -> Path:
    """The directory of a case below a root, made where it is not there yet; not to be written to."""
    path = root / case.replace(" ", "-")
    if not path.exists():
        made(case).save_pretrained(path)
    return path
