"""Public families as the installed transformers has them: described from their configs, and traced as tiny models.

Descriptions are of the class's defaults, so of its real sizes; traces are of a tiny untrained instance, whose functions
can be called. Neither needs weights or a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..description import FeedForwardPart
from ..schema import Site
from ..tracing.events import ActivationEvent, Event, GateEvent
from ..tracing.structure import Structure
from ..tracing.tracer import Tracer
from ._slopes import Pointwise

_SMALL: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
"""Latent attention has head sizes of its own; the second of two layers has experts."""
TOKENS = (3, 4, 5, 6, 7, 8)


def transformers_installed() -> bool:
    """Whether the facts about public families can be measured at all."""
    return find_spec("transformers") is not None


@dataclass(frozen=True)
class Traced:
    """What one forward pass of a model showed: its sites, and for each activation and gate site its last event."""

    sites: tuple[Site, ...]
    functions: Mapping[str, Pointwise]
    gates: Mapping[str, GateEvent]

    def count(self, kind: str, op: str) -> int:
        """How many sites are of a kind and have an op."""
        return sum(site.kind == kind and site.op == op for site in self.sites)


def default_config(model_type: str) -> Any:
    """A family's config with the defaults of its class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with _transformers():
        return CONFIG_MAPPING[model_type]()


def described(model_type: str) -> tuple[FeedForwardPart, ...]:
    """What `evenkeel.describe` finds in the feed-forwards of a family's config: class defaults, but two layers."""
    from ..architectures.describing import describe

    config = {"model_type": model_type, "num_hidden_layers": 2}
    with TemporaryDirectory() as folder, _transformers():
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config), encoding="utf-8")
        return describe(file).feedforwards


def instance(model_type: str, **settings: Any) -> nn.Module:
    """A tiny causal language model of a family, with random weights; all but its sizes as its class has it.

    Raises ValueError for a family of several parts, whose sizes the settings of the whole do not reach.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with _transformers():
        defaults = default_config(model_type)
        if defaults.sub_configs:
            raise ValueError(f"{model_type} has configs for its parts, which keep their sizes; give that of its text")
        aliases = type(defaults).attribute_map
        known: dict[str, Any] = {name: size for name, size in _SMALL.items() if hasattr(defaults, name)} | settings
        config = CONFIG_MAPPING[model_type](**{aliases.get(name, name): value for name, value in known.items()})
        config.use_cache = False
        return AutoModelForCausalLM.from_config(config).eval()


def feed_forward(model_type: str, **settings: int) -> nn.Module:
    """The feed-forward of the first block of a family's tiny model, with the sizes given."""
    model = instance(model_type, **{"num_hidden_layers": 1, **settings})
    return next(module for path, module in model.named_modules() if path.endswith(".0.mlp"))


def trace(model: nn.Module) -> Traced:
    """One forward pass over six tokens."""
    functions: dict[str, Pointwise] = {}
    gates: dict[str, GateEvent] = {}

    def observe(site: Site, event: Event) -> None:
        if isinstance(event, ActivationEvent):
            functions[site.id] = event.function
        elif isinstance(event, GateEvent):
            gates[site.id] = event

    tracer = Tracer(Structure(model), observe)
    with _transformers(), torch.no_grad(), tracer:
        model(input_ids=torch.tensor([TOKENS]))
    return Traced(tracer.sites, functions, gates)


def predicted(model: nn.Module) -> tuple[float, Tensor]:
    """What a model makes of six tokens: its own loss with them as labels, and the logits before each next one."""
    tokens = torch.tensor([TOKENS])
    with _transformers(), torch.no_grad():
        found = model(input_ids=tokens, labels=tokens)
    return found.loss.item(), found.logits[0, :-1]


def deepseek_v3_routers() -> int:
    """How many routers of a tiny DeepSeek-V3 with one layer of experts are sigmoids."""
    return trace(instance("deepseek_v3", **_DEEPSEEK)).count("router", "sigmoid")


@cache
def installed_families() -> Mapping[str, tuple[Site, ...] | None]:
    """The sites of every causal language model family of transformers; None where no tiny instance could be run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {name: _sites(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


def distance(function: Pointwise, other: Pointwise) -> float:
    """The largest |f − g| over the multiples of 1/128 from −10 to 10, f in float32 and g in float64."""
    grid = torch.arange(-1280, 1281, dtype=torch.float64) / 128
    with torch.no_grad():
        found: Tensor = function(grid.float())
    return (found.double() - other(grid)).abs().max().item()


def _sites(model_type: str) -> tuple[Site, ...] | None:
    try:
        return trace(instance(model_type)).sites
    except Exception:  # each class refuses tiny sizes in its own way
        return None


@contextmanager
def _transformers() -> Iterator[None]:
    """No network and no messages; float32, and torch's generator left as it was."""
    from ..architectures.offline import offline_and_quiet

    before = torch.get_default_dtype()
    with offline_and_quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
