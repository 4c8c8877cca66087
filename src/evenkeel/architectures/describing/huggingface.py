"""A transformers model built from a config alone, its tensors without values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ...errors import ModelError
from ...schema import clean_name, in_one_line
from ..classes import make_config
from ..offline import offline_and_quiet
from .allocation import Sparingly

_ORDER = (
    modeling_auto.AutoModelForSeq2SeqLM,
    modeling_auto.AutoModelForMaskedLM,
    modeling_auto.AutoModelForCausalLM,
    modeling_auto.AutoModelForImageTextToText,
    modeling_auto.AutoModelForImageClassification,
    modeling_auto.AutoModel,
)


def build(data: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedConfig, tuple[str, ...]]:
    """The model that a config.json describes, on the meta device, with attention and experts spelled out."""
    with offline_and_quiet():
        config = make_config(data)
        chosen = _class_of(config)
        config = _config_for(chosen, config)
        return construct(chosen, config), config, _notes(chosen, data)


def construct(chosen: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a class, its weights on the meta device: attention by hand, and all experts in one product."""
    config._attn_implementation = "eager"
    config.use_cache = False
    try:
        with torch.random.fork_rng(devices=()), Sparingly():
            model = chosen(config)
        model.set_experts_implementation("batched_mm")
    except ModelError:
        raise
    except Exception as error:  # every model class fails in its own way
        raise ModelError(f"{chosen.__name__} cannot be built from this config: {in_one_line(error)}") from error
    return model


def spell_out(model: nn.Module) -> None:
    """Let a copy of a live model attend by hand and run all experts in one product, where it can.

    A fused call shows no mask that is longer than the row, no soft-cap and no sinks.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = "eager"
            if part._can_set_experts_implementation():
                part.set_experts_implementation("batched_mm")


def _config_for(chosen: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """The config itself, or the part of it that is the text model's where the class is one of text alone."""
    if isinstance(config, chosen.config_class or PreTrainedConfig):
        return config
    text = _text_part(config)
    return text if isinstance(text, chosen.config_class or PreTrainedConfig) else config


def _text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the text model in a model of several parts; the config itself where there is none, or several."""
    try:
        return config.get_text_config()
    except ValueError:
        return config


def _class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that the config names, if it is one for it or for its text part, else the first that there is."""
    takes = (type(config), type(_text_part(config)))
    for name in config.architectures or ():
        named = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.config_class in takes:
            return named
    found = next(_candidates(config), None)
    if found is None:
        raise ModelError(f"transformers has no model for model_type {clean_name(str(config.model_type))!r}")
    return found


def _candidates(config: PreTrainedConfig) -> Iterator[type[PreTrainedModel]]:
    for auto in _ORDER:
        found = auto._model_mapping.get(type(config), None)
        for item in found if isinstance(found, tuple | list) else (found,):
            if item is not None:
                yield item


def _notes(chosen: type[PreTrainedModel], data: dict[str, Any]) -> tuple[str, ...]:
    named = data.get("architectures")
    if isinstance(named, list) and chosen.__name__ in named:
        return ()
    said = f"names {clean_name(', '.join(map(str, named)))}" if isinstance(named, list) and named else "names no class"
    return (f"the config {said}; described as {chosen.__name__}",)
