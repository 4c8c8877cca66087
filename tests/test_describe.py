"""Describing: every family of the table and twenty more, against hand-written parts and counts of real instances."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from architecture_cases import MORE, TABLE, Expected
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto import modeling_auto

from evenkeel.architectures.describing import Architecture
from evenkeel.architectures.describing.assembling import assemble
from evenkeel.architectures.describing.subjects import from_config

CASES = [pytest.param(*case, id=name) for name, case in {**TABLE, **MORE}.items()]
LENGTH = 14
_KNOWN: dict[str, Architecture] = {}


def described(model_type: str, settings: dict[str, Any], context: int | None = None) -> Architecture:
    key = f"{model_type} {sorted(settings.items(), key=str)} {context}"
    if key not in _KNOWN:
        _KNOWN[key] = Architecture(**assemble(from_config({"model_type": model_type, **settings}), context))
    return _KNOWN[key]


def real(model_type: str, settings: dict[str, Any]) -> nn.Module:
    """An instance with values, as transformers makes it, with attention and experts by hand."""
    config = AutoConfig.for_model(model_type, **settings)
    masked = model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    chosen = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    torch.manual_seed(0)
    model = chosen.from_config(config, attn_implementation="eager").eval()
    model.set_experts_implementation("batched_mm")
    return model


@pytest.mark.parametrize(("model_type", "settings", "expected"), CASES)
def test_the_parts_are_those_of_the_papers(model_type: str, settings: dict[str, Any], expected: Expected) -> None:
    found = described(model_type, settings)
    assert found.method == "shapes" and found.depth == 2 and found.d_model == 32
    forms = [(x.activation, x.gate, x.matrices, x.d_ff, x.experts, x.active) for x in found.feedforwards]
    assert tuple(forms) == expected.feedforwards
    assert {x.d_model for x in found.feedforwards} == {32}
    assert tuple(x.window for x in found.attentions) == expected.windows
    assert sum(x.layers for x in found.attentions) == 2
    for part in found.attentions:
        assert (part.heads, part.key_heads, part.head_dim, part.value_dim) == expected.heads
        assert part.scale == pytest.approx(expected.scale, rel=1e-6) and part.scale_rule == expected.rule
        assert (part.kind, part.normalizer, part.causal) == ("self", "softmax", expected.causal)
        assert (part.softcap, part.sinks, part.qk_norm) == (expected.softcap, expected.sinks, expected.qk_norm)
        assert part.rotary_dim == expected.rotary_dim and part.latent_values == expected.latent
    assert found.positions == expected.positions
    assert (found.norm, found.placement) == (expected.norm, expected.placement)
    head = found.head
    assert (head.outputs, head.tied, head.bias, head.softcap) == (
        96,
        expected.tied,
        expected.head_bias,
        expected.head_softcap,
    )


@pytest.mark.parametrize(("model_type", "settings", "expected"), CASES)
def test_counts_are_those_of_a_real_instance(model_type: str, settings: dict[str, Any], expected: Expected) -> None:
    found = described(model_type, settings, context=LENGTH)
    model = real(model_type, settings)
    assert found.model.parameters == sum(item.numel() for item in model.parameters())
    ids = torch.arange(LENGTH)[None] + 3
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(input_ids=ids, **({"use_cache": True} if expected.causal and model_type != "openai-gpt" else {}))
    seen = [min(LENGTH, part.window or LENGTH) for part in found.attentions]
    if min(seen) == LENGTH:  # eager attention multiplies what a short window hides as well
        assert found.costs.flops is not None
        assert found.costs.flops * LENGTH == pytest.approx(counter.get_total_flops(), rel=2e-3)
    if expected.causal and "past_key_values" in output:
        held = sum(layer.keys.numel() + layer.values.numel() for layer in output.past_key_values.layers)
        wanted = found.costs.cached_bytes if expected.latent is None else found.costs.latent_bytes
        assert wanted == 4 * held / LENGTH
    elif not expected.causal:
        assert found.costs.cached_bytes == 0


def named(model: nn.Module, *parts: str) -> int:
    return sum(item.numel() for name, item in model.named_parameters() if any(part in name for part in parts))


def test_parameters_by_part_of_a_grouped_model() -> None:
    model_type, settings, _ = TABLE["LLaMA"]
    model = real(model_type, settings)
    parts = {cost.part: cost.parameters for cost in described(model_type, settings).costs.parts}
    assert parts == {
        "embedding": named(model, "embed_tokens"),
        "attention": named(model, "self_attn"),
        "feed-forward": named(model, "mlp"),
        "norms": named(model, "norm"),
        "head": named(model, "lm_head"),
    }


def test_parameters_by_part_of_a_mixture_with_latents() -> None:
    model_type, settings, _ = TABLE["DeepSeek-V3"]
    model = real(model_type, settings)
    costs = {cost.part: cost for cost in described(model_type, settings).costs.parts}
    assert costs["router"].parameters == costs["router"].active == named(model, "mlp.gate.weight")
    assert costs["norms"].parameters == named(model, "norm")
    assert costs["attention"].parameters == named(model, "self_attn") - named(model, "a_layernorm")
    experts = named(model, "mlp.experts")
    assert costs["feed-forward"].parameters == named(model, "mlp") - named(model, "mlp.gate.weight")
    assert costs["feed-forward"].active == costs["feed-forward"].parameters - experts * 6 // 8


def test_biases_and_tied_weights_by_part() -> None:
    model_type, settings, _ = TABLE["GPT-2"]
    model = real(model_type, settings)
    parts = {cost.part: cost.parameters for cost in described(model_type, settings).costs.parts}
    assert parts == {
        "embedding": 96 * 32,
        "positions": 64 * 32,
        "attention": named(model, ".attn."),
        "feed-forward": named(model, ".mlp."),
        "norms": named(model, ".ln_"),
        "head": 0,
    }


def test_four_hundred_billion_parameters_are_described_without_making_one() -> None:
    settings = {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "dtype": "bfloat16",
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = described("llama", settings)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB; one matrix would have 3.5 GB
    layer = 2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248 + 2 * 16384
    assert found.model.parameters == found.costs.parameters == 126 * layer + 2 * 128256 * 16384 + 16384
    assert 405.85e9 < found.model.parameters < 405.86e9
    (attention,) = found.attentions
    assert (attention.layers, attention.heads, attention.key_heads, attention.head_dim) == (126, 128, 8, 128)
    assert found.costs.cached_bytes == 126 * 2 * 8 * 128 * 2
    weights = 126 * (layer - 2 * 16384) + 128256 * 16384
    assert found.costs.context == 4096
    assert found.costs.flops == pytest.approx(2 * weights + 126 * 2 * 128 * (128 + 128) * 4096, rel=1e-9)
