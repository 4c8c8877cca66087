"""Healthy patients for faults: our models and tiny Hugging Face ones, on bytes of Python's standard library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import families
import torch
from torch import Tensor, nn
from transformers import AutoConfig

import evenkeel as ek
from evenkeel.data import standard_library_text
from evenkeel.faults import Batch, Patient
from evenkeel.nn import AttentionConfig, FeedForwardConfig, NormConfig, PositionConfig
from evenkeel.training import adamw, byte_batches, train

_CONTEXT, _ROWS = 64, 10

_OURS: dict[str, dict[str, Any]] = {
    "ours": {"attention": AttentionConfig(heads=2)},
    "ours, QK-norm, packed": {
        "attention": AttentionConfig(heads=2, key_heads=1, qk_norm=True),
        "feedforward": FeedForwardConfig(packed=True),
    },
    "ours as GPT-2": {
        "attention": AttentionConfig(heads=2, bias=True, output_bias=True),
        "feedforward": FeedForwardConfig(activation="gelu", gated=False, bias=True),
        "norm": NormConfig(kind="layer", bias=True),
        "position": PositionConfig(kind="learned"),
    },
}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 2},
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 4},
}
HUGGING_FACE = ("gpt2", "llama", "qwen3", "gemma2", "gpt_neox", "opt", "bloom", "bert", "falcon", "t5", "mixtral")
PATIENTS = (*_OURS, *HUGGING_FACE)


@cache
def text() -> str:
    return standard_library_text(400_000)


def rows(seed: int, vocabulary: int = 256, size: int = _ROWS) -> Iterator[Tensor]:
    for batch in byte_batches(text(), context=_CONTEXT, size=size, seed=seed):
        yield batch % vocabulary


def stream(seed: int, vocabulary: int = 256) -> Iterator[Batch]:
    for ids in rows(seed, vocabulary, size=4):
        yield {"input_ids": ids, "labels": ids}


def patient(name: str) -> Patient:
    """The same model and batch for every call."""
    torch.manual_seed(0)
    if name in _OURS:
        config = ek.TransformerConfig(context=_CONTEXT, depth=4, d_model=64, **_OURS[name])
        ids = next(rows(0))
        return Patient(ek.Transformer(config, seed=0), ({"input_ids": ids, "labels": ids},))
    config = AutoConfig.for_model(name, **{**families.CONFIGS[name], **_SIZES.get(name, {})})
    model = families._CLASSES[name].from_config(config)
    ids = 3 + next(rows(0, 90))
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    if name == "t5":
        model.config.decoder_start_token_id = 0
        batch["labels"] = ids[:, :52].contiguous()
    return Patient(model, (batch,))


@cache
def _trained() -> ek.Transformer:
    config = ek.TransformerConfig(context=_CONTEXT, depth=2, d_model=64)
    model = ek.Transformer(config, seed=0)
    train(model, adamw(model, learning_rate=3e-3), rows(1), steps=60)
    return model


def trained() -> Patient:
    """Ours after some steps, a new copy for every call."""
    made = ek.Transformer(_trained().config)
    made.load_state_dict(_trained().state_dict())
    batches = tuple({"input_ids": ids, "labels": ids} for ids in islice(rows(2), 2))
    return Patient(made, batches)


def states(model: nn.Module) -> dict[str, list[Any]]:
    """All that a fault may change, by the path of the module that holds it."""
    found: dict[str, list[Any]] = {}
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, float)}
        function: Callable[..., Any] | None = vars(module).get("forward")
        held = [(name, item.detach().clone()) for name, item in module._parameters.items() if item is not None]
        found[path] = [type(module).__name__, id(module), plain, id(function) if function else None, held]
    return found


def changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> set[str]:
    """The paths whose modules are not what they were."""
    return {path for path in before | after if not _same(before.get(path), after.get(path))}


def _same(first: list[Any] | None, second: list[Any] | None) -> bool:
    if first is None or second is None or first[:4] != second[:4]:
        return False
    one, two = dict(first[4]), dict(second[4])
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
