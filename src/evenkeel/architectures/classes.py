"""Which transformers class a directory's config and weights belong to, and what kind of inputs that class takes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..catalogue import near_miss
from ..errors import ModelError
from ..schema import clean_name, in_one_line
from .loading import Kind

_WITH_HEADS = (
    modeling_auto.AutoModelForSeq2SeqLM,
    modeling_auto.AutoModelForMaskedLM,
    modeling_auto.AutoModelForCausalLM,
    modeling_auto.AutoModelForImageClassification,
)
_CAUSAL = frozenset(
    name
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    for name in mapping.values()
)
_MASKED = frozenset(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())


def make_config(data: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of a config.json that names no code; raises ModelError where it is of no known type."""
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        hint = near_miss(str(model_type), CONFIG_MAPPING.keys(), otherwise="the directory's own code is never run")
        raise ModelError(
            f"model_type {clean_name(str(model_type))!r} is unknown to transformers {transformers.__version__}; {hint}"
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(data))
    except Exception as error:  # configs validate themselves, each in its own way
        raise ModelError(
            f"config.json is no valid {model_type} config: {in_one_line(error)}; mend that value"
        ) from error


def model_class(config: PreTrainedConfig, names: Iterable[str]) -> type[PreTrainedModel]:
    """The class that `architectures` in the config names, else the one whose weights are most like the given names."""
    architectures = config.architectures if isinstance(config.architectures, list) else []
    for name in architectures:
        named = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.config_class is type(config):
            return named
    candidates = list(_candidates(config))
    if not candidates:
        raise ModelError(f"transformers has no model for model_type {config.model_type!r} that evenkeel can feed")
    given = frozenset(names)
    return min(candidates, key=lambda candidate: _difference(candidate, config, given))


def kind_of(model: type[PreTrainedModel], config: PreTrainedConfig) -> Kind:
    """What a class takes: pictures, sound or tokens, and for tokens which loss it has."""
    if model.main_input_name == "pixel_values":
        return "vision"
    if model.main_input_name in ("input_values", "input_features"):
        return "audio"
    if getattr(config, "is_encoder_decoder", False) and not model.__name__.endswith("EncoderModel"):
        return "encoder_decoder"
    if model.__name__ in _CAUSAL:
        return "causal"
    return "masked" if model.__name__ in _MASKED else "encoder"


def _candidates(config: PreTrainedConfig) -> Iterator[type[PreTrainedModel]]:
    for auto in (*_WITH_HEADS, AutoModel):
        found = auto._model_mapping.get(type(config), None)
        for item in found if isinstance(found, tuple | list) else (found,):
            if item is not None:
                yield item


def _difference(candidate: type[PreTrainedModel], config: PreTrainedConfig, given: frozenset[str]) -> int:
    """How many weights a class has that are not given, and how many are given that it has not."""
    with torch.device("meta"):
        model = candidate(copy.deepcopy(config))
    prefix = f"{candidate.base_model_prefix}."
    tied = set(model.all_tied_weights_keys)
    own = {name.removeprefix(prefix) for name in model.state_dict() if name not in tied}
    return len(own ^ {name.removeprefix(prefix) for name in given})
