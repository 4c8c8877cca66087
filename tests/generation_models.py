"""Tiny random Hugging Face models in float64, their prompts, and sampling from them by definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from evenkeel.functional._uniforms import uniforms
from evenkeel.reference import sampling as reference

VOCABULARY, PAD, END, STEPS = 32, 0, 1, 10
NO_END = -1
PROMPTS = [[5, 9, 7, 22, 11, 3], [17, 5], [8, 30, 8, 2]]
SEEDS = torch.tensor([11, 2**40, 7])


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=END
        )
    )


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def mistral() -> Any:
    """Each token sees four."""
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=4,
        )
    )


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    )


FAMILIES = [gpt2, llama, mistral, t5]


@cache
def model_of(make: Callable[[], Any], *, eager: bool = False) -> Any:
    """In float64, so that a cache and padding change no token; with weights large enough that logits differ."""
    torch.manual_seed(3)
    model = make().double().eval()
    if eager:
        model.set_attn_implementation("eager")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, END
    model.generation_config.decoder_start_token_id = PAD
    return model


def inputs_of(model: Any, prompts: list[list[int]] = PROMPTS) -> dict[str, Tensor]:
    """A batch, padded on the left for a decoder and on the right for an encoder."""
    length = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        padding = length - len(prompt)
        right = model.config.is_encoder_decoder
        rows.append([*prompt, *[PAD] * padding] if right else [*[PAD] * padding, *prompt])
        masks.append([1] * len(prompt) + [0] * padding if right else [0] * padding + [1] * len(prompt))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def generated(model: Any, result: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
    return result[:, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :].tolist()


def slow_row(
    model: Any, prompt: list[int], seed: int, sampler: dict[str, Any], penalties: tuple[float, float, float]
) -> list[int]:
    """One row alone, by a full forward pass for each token, our reference and the inverse CDF in plain Python."""
    encoder, tokens = model.config.is_encoder_decoder, []
    for position in range(STEPS):
        before = [PAD, *tokens] if encoder else [*prompt, *tokens]
        inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([before])}
        with torch.no_grad():
            output = model(**(inputs if encoder else {"input_ids": torch.tensor([before])}), use_cache=False)
        scores = reference.penalized(output.logits[0, -1].float(), before, *penalties)
        wanted = uniforms(np.array([seed]), np.array([position]), 1).item()
        masses = reference.distribution(scores, **sampler).tolist()
        tokens.append(next(token for token in range(VOCABULARY) if math.fsum(masses[: token + 1]) > wanted))
        if tokens[-1] == END:
            break
    return tokens


def filled(tokens: list[int]) -> list[int]:
    return tokens + [PAD] * (STEPS - len(tokens))
