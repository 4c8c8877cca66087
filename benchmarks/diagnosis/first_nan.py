"""Random placements of one NaN or Inf, and whether NUM601 names the module where it begins.

A placement is in a weight, in an activation (a module's output, or a product between modules that overflows), or in a
gradient on its way back (behind a module's output, in front of its input, in a parameter's own). A weight that two
modules share belongs to both.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import evenkeel as ek

_TOKENS = 24
_VOCABULARY = 64
_SMALL: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "use_cache": False,
}


def _gpt2() -> nn.Module:
    sizes: dict[str, Any] = {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False))


def _ours() -> nn.Module:
    return ek.Transformer(ek.TransformerConfig(vocabulary=_VOCABULARY, context=64, depth=3, d_model=32))


def _t5() -> nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    sizes |= {"decoder_start_token_id": 0, "use_cache": False}
    return T5ForConditionalGeneration(T5Config(**sizes))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ours": _ours,
    "gpt2": _gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SMALL)),
    "bert": lambda: BertForMaskedLM(BertConfig(**_SMALL)),
    "t5": _t5,
}


@dataclass(frozen=True)
class Placed:
    """What was done, and the paths of the modules where it begins."""

    what: str
    expected: frozenset[str]


Placement = Callable[[nn.Module, random.Random, ExitStack], Placed]


def weight(model: nn.Module, draw: random.Random, stack: ExitStack) -> Placed:
    """One element of one parameter that takes part."""
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(path)
    name, parameter = draw.choice([item for item in model.named_parameters() if item[1].requires_grad])
    value = draw.choice((math.nan, math.inf, -math.inf))
    with torch.no_grad():
        parameter.view(-1)[draw.randrange(parameter.numel())] = value
    return Placed(f"{value} in {name}", frozenset(owners[id(parameter)]))


def activation(model: nn.Module, draw: random.Random, stack: ExitStack) -> Placed:
    """The output of a module overflows, or holds a NaN."""
    path, module = draw.choice(_ran(model))
    what = draw.choice(("overflow", "nan"))

    def spoil(_: nn.Module, __: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        spoiled = first * 1e30 * 1e30 if what == "overflow" else first.index_fill(-1, torch.tensor([0]), math.nan)
        return (spoiled, *output[1:]) if isinstance(output, tuple) else spoiled

    stack.callback(module.register_forward_hook(spoil).remove)
    return Placed(f"{what} behind {path}", _names(model, module))


def gradient_behind(model: nn.Module, draw: random.Random, stack: ExitStack) -> Placed:
    """The gradient is spoiled as it comes to a module's output."""
    path, module = draw.choice(_ran(model))
    value = draw.choice((math.nan, math.inf))

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        first.register_hook(lambda gradient: gradient.index_fill(-1, torch.tensor([0]), value))

    stack.callback(module.register_forward_hook(hook).remove)
    return Placed(f"gradient {value} at the output of {path}", _names(model, module))


def gradient_before(model: nn.Module, draw: random.Random, stack: ExitStack) -> Placed:
    """The gradient is spoiled as it leaves a module towards its input."""
    tables = [path for path, module in model.named_modules() if isinstance(module, nn.Embedding)]
    path, module = draw.choice([item for item in _ran(model) if item[0] not in tables])
    value = draw.choice((math.nan, math.inf))

    def spoil(_: nn.Module, inputs: Any, __: Any) -> Any:
        return tuple(None if item is None else torch.full_like(item, value) for item in inputs)

    stack.callback(module.register_full_backward_hook(spoil).remove)
    return Placed(f"gradient {value} at the input of {path}", _names(model, module))


def gradient_of_weight(model: nn.Module, draw: random.Random, stack: ExitStack) -> Placed:
    """The gradient of one parameter alone."""
    name, parameter = draw.choice([item for item in model.named_parameters() if item[1].requires_grad])
    stack.callback(parameter.register_hook(lambda gradient: gradient * math.inf).remove)
    owners = {
        path for path, module in model.named_modules() if any(own is parameter for own in module._parameters.values())
    }
    return Placed(f"gradient of {name}", frozenset(owners))


PLACEMENTS: tuple[Placement, ...] = (weight, activation, gradient_behind, gradient_before, gradient_of_weight)


def _names(model: nn.Module, module: nn.Module) -> frozenset[str]:
    """All paths of a module, and of those that hold a parameter of its own: shared, they are one place."""
    own = set(map(id, module._parameters.values())) - {id(None)}
    found = model.named_modules(remove_duplicate=False)
    return frozenset(path for path, item in found if item is module or own & set(map(id, item._parameters.values())))


def _ran(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with parameters that compute something of their own: leaves and blocks, by what they hand on."""
    found: list[tuple[str, nn.Module]] = []
    outputs: list[Tensor] = []

    def note(path: str, module: nn.Module, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad and not any(first is item for item in outputs):
            outputs.append(first)
            found.append((path, module))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path and next(module.parameters(), None) is not None:
                hook = module.register_forward_hook(lambda item, _, output, path=path: note(path, item, output))
                stack.callback(hook.remove)
        model(**_batch(model))
    return found


def _batch(model: nn.Module) -> dict[str, Tensor]:
    ids = torch.arange(2 * _TOKENS).reshape(2, -1) * 7 % _VOCABULARY
    return {"input_ids": ids, "labels": ids}


def named(model: nn.Module) -> str:
    """The path that NUM601 names first, of a parameter its module's; "nothing" where it finds nothing."""
    findings = [item for item in ek.inspect(model, [_batch(model)]).findings if item.code == "NUM601"]
    if not findings:
        return "nothing"
    path, _, place = findings[0].sites[0].rpartition(":")
    return path.rpartition(".")[0] if place.startswith("parameter") else path


def cases(count: int = 50, seed: int = 0) -> Iterator[tuple[str, frozenset[str], str]]:
    """(what was placed, the paths where it begins, the path that was named), models and placements in turn."""
    draw = random.Random(seed)
    for number in range(count):
        family = list(MODELS)[number % len(MODELS)]
        torch.manual_seed(seed + number)
        model = MODELS[family]().eval()
        with ExitStack() as stack:
            placed = PLACEMENTS[number // len(MODELS) % len(PLACEMENTS)](model, draw, stack)
            yield f"{family}: {placed.what}", placed.expected, named(model)


def run(count: int = 50, seed: int = 0) -> list[tuple[str, str, str]]:
    """(case, expected, named) of so many placements; equal where the right module was named."""
    return [
        (case, found if found in expected else " or ".join(sorted(expected)), found)
        for case, expected, found in cases(count, seed)
    ]


if __name__ == "__main__":
    results = run(*(int(argument) for argument in sys.argv[1:]))
    for case, expected, found in results:
        print(f"{'named' if expected == found else 'MISSED':7} {case}" + ("" if expected == found else f": {found!r}"))
    print(f"{sum(expected == found for _, expected, found in results)} of {len(results)} named")
