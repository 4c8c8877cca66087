"""The last resort: a small real instance of the same config, for models whose code asks for values.

It has the same widths, heads and forms, and fewer blocks, experts and tokens in its vocabulary. What it shows is told
as the whole model's: parameters are counted on the whole one, by the names that both have.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...description import PARTS, Cost, Costs
from ...errors import ModelError
from ...schema import clean_name, in_one_line
from .subjects import Subject, around

_LARGEST = 3 * 10**8  # parameters of an instance that is made in float32: 1.2 GB
_DEPTHS = "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers".split()
_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts".split()
_LAYERS, _CHOICES, _TOKENS = 2, 8, 512
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def shrunk(subject: Subject, cause: Exception) -> Subject:
    """A subject with values for one whose run on shapes alone failed; raises ModelError where there can be none."""
    refusal = f"{clean_name(subject.name)} cannot be run on shapes alone ({in_one_line(cause)})"
    if subject.config is None:
        raise ModelError(
            f"{refusal}, and there is no config to make a small instance of; check that its inputs suit it and that "
            "nothing in it asks for values"
        ) from cause
    config = copy.deepcopy(subject.config)
    for part in _parts(config):
        _reduce(part)
    try:
        with torch.device("meta"):
            size = sum(item.numel() for item in type(subject.model)(copy.deepcopy(config)).parameters())
        if size > _LARGEST:
            raise ModelError(f"a small instance of it would still have {size:,} parameters, above {_LARGEST:,}")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model = type(subject.model)(config).eval()
    except Exception as error:
        raise ModelError(f"{refusal}, nor as a small instance: {in_one_line(error)}") from error
    note = f"shapes alone did not do ({in_one_line(cause)}), so a small real instance of the same choices was run"
    return replace(around(model, subject), notes=(*subject.notes, note))


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)


def _reduce(config: Any) -> None:
    for name in _DEPTHS:
        depth = getattr(config, name, None)
        if isinstance(depth, int) and depth > _LAYERS:
            _shorten_lists(config, depth)
            setattr(config, name, _LAYERS)
    for name in _EXPERTS:
        experts = getattr(config, name, None)
        if isinstance(experts, int) and experts > _CHOICES:
            setattr(config, name, max(_CHOICES, 2 * (getattr(config, "num_experts_per_tok", None) or 1)))
    if isinstance(getattr(config, "vocab_size", None), int):
        config.vocab_size = min(config.vocab_size, _TOKENS)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if isinstance(getattr(config, name, None), int) and getattr(config, name) >= _TOKENS:
                setattr(config, name, 0)


def _shorten_lists(config: Any, depth: int) -> None:
    """What a config says layer by layer, for the layers that are left."""
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, name, value[:_LAYERS])


def enlarged(
    fields: Mapping[str, Any], owners: Mapping[str, str], small: nn.Module, whole: nn.Module
) -> dict[str, Any]:
    """The fields of a small instance's description with the whole model's blocks, vocabulary and parameters.

    owners: the part of each of the small instance's parameters. What one token goes through is not counted: the small
    instance has other numbers of experts and blocks.
    """
    own, all_of = (
        Counter(_form(name) for name, _ in model.named_modules(remove_duplicate=False)) for model in (small, whole)
    )

    def repeated(part: Any) -> Any:
        form = _form(part.paths[0])
        return replace(part, layers=part.layers * all_of[form] // max(own[form], 1))

    def on_the_whole(amount: int, before: Sequence[Any], after: Sequence[Any]) -> int:
        ratio = sum(part.layers for part in after) / max(sum(part.layers for part in before), 1)
        return round(amount * ratio)

    attentions = tuple(repeated(part) for part in fields["attentions"])
    costs: Costs = fields["costs"]
    forms = {_form(name): part for name, part in owners.items()}
    total: Counter[str] = Counter()
    for name, parameter in whole.named_parameters():
        total[forms.get(_form(clean_name(name)), "other")] += parameter.numel()
    parts = [Cost(part=part, parameters=total[part], active=None, flops=None) for part in PARTS if total[part]]
    latent = costs.latent_bytes
    counted = replace(
        costs,
        parts=tuple(parts),
        attention_flops=None,
        cached_bytes=on_the_whole(costs.cached_bytes, fields["attentions"], attentions),
        context_bytes=on_the_whole(costs.context_bytes, fields["attentions"], attentions),
        latent_bytes=None if latent is None else on_the_whole(latent, fields["attentions"], attentions),
    )
    return {
        **fields,
        "model": replace(fields["model"], parameters=counted.parameters),
        "method": "shrunk",
        "depth": fields["depth"] * len(_blocks(whole, fields)) // max(len(_blocks(small, fields)), 1),
        "attentions": attentions,
        "feedforwards": tuple(repeated(part) for part in fields["feedforwards"]),
        "head": replace(fields["head"], outputs=getattr(getattr(whole, "config", None), "vocab_size", 0)),
        "costs": counted,
    }


def _blocks(model: nn.Module, fields: Mapping[str, Any]) -> list[str]:
    """The modules at the places of the small instance's blocks."""
    forms = {_form(site.path) for site in fields["sites"] if site.kind == "residual"}
    return [name for name, _ in model.named_modules(remove_duplicate=False) if _form(name) in forms]


def _form(name: str) -> str:
    return _NUMBER.sub("*", name)
