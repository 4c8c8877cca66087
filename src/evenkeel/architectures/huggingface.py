"""A directory's weights and tokenizer through transformers, which is shown data and nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..directories import Directory, data_only
from ..errors import ModelError
from ..precision import COMPUTE_FORMATS
from ..schema import clean_name, in_one_line
from .classes import kind_of, make_config, model_class
from .loading import LoadedModel
from .offline import offline_and_quiet
from .tokenizers import Tokenizer

_LAYER_NUMBER = re.compile(r"\.\d+(?=\.)")
_SEED = 0
_NAMED = 3


def load(directory: Directory, dtype: str | None) -> LoadedModel:
    """Model, tokenizer and notes of a Hugging Face directory, on the CPU."""
    if dtype is None and directory.dtype not in COMPUTE_FORMATS:
        raise ModelError(f"{directory.name} is in {directory.dtype}, in which no model runs; give --dtype float32")
    with offline_and_quiet(), data_only(directory) as staged:
        config = make_config(directory.config)
        chosen = model_class(config, directory.weights)
        model, notes = _load_model(chosen, config, directory, staged, dtype)
        tokenizer = _load_tokenizer(config, directory, staged)
    notes = [*directory.notes, *_class_notes(chosen, directory), *notes]
    return LoadedModel(model, tokenizer, kind_of(chosen, config), directory.config, tuple(notes))


def _load_model(
    chosen: type[PreTrainedModel], config: PreTrainedConfig, directory: Directory, staged: Path, dtype: str | None
) -> tuple[PreTrainedModel, list[str]]:
    config.use_cache = False  # a cache would be one more output, and nothing reads it
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0  # as T5 starts; labels need one
    optional, notes = _without_missing_pooler(chosen, directory.weights)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            loaded: Any = chosen.from_pretrained(
                staged,
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are reported, with names, instead of logged
                output_loading_info=True,
                **optional,
            )
    except Exception as error:  # every model class fails in its own way
        raise ModelError(
            f"{chosen.__name__} cannot take the weights of {directory.name}: {in_one_line(error)}; do config.json and "
            "the weights belong together?"
        ) from error
    model, info = loaded
    _check_complete(model, info["missing_keys"], info["mismatched_keys"], directory)
    return model, [*notes, *_weight_notes(model, info["missing_keys"], info["unexpected_keys"])]


def _without_missing_pooler(chosen: type[PreTrainedModel], names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Arguments that leave out the pooling layer of an encoder whose checkpoint has none."""
    if "add_pooling_layer" not in inspect.signature(chosen.__init__).parameters:
        return {}, []
    if any("pooler" in name for name in names):
        return {}, []
    return {"add_pooling_layer": False}, ["the checkpoint has no pooling layer, so the model was built without one"]


def _check_complete(
    model: PreTrainedModel, missing: Collection[str], mismatched: Collection[Any], directory: Directory
) -> None:
    """A head or a pooling layer may be missing; weights of another shape, or of one layer among its like, may not."""
    for name, found, expected in sorted(mismatched):
        raise ModelError(
            f"weight {clean_name(name)} of {directory.name} has shape {tuple(found)} and config.json asks for "
            f"{tuple(expected)}; give the config and the weights of one model"
        )
    present = {_LAYER_NUMBER.sub(".*", name) for name in model.state_dict().keys() - missing}
    lost = [name for name in missing if _LAYER_NUMBER.sub(".*", name) in present]
    if lost or not present:
        raise ModelError(
            f"{directory.name} lacks {len(lost) or len(missing)} weights of {type(model).__name__}, among them "
            f"{_some(lost or missing)}; give the config and all the weights of one model"
        )


def _weight_notes(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> list[str]:
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} weights are not in the checkpoint and were drawn at random (seed {_SEED}), so what is "
            f"measured there says nothing of the model: {_some(missing)}"
        )
    if unexpected:
        notes.append(
            f"{len(unexpected)} weights of the checkpoint are no part of {type(model).__name__}: {_some(unexpected)}"
        )
    return notes


def _class_notes(chosen: type[PreTrainedModel], directory: Directory) -> list[str]:
    named = directory.config.get("architectures")
    if isinstance(named, list) and chosen.__name__ in named:
        return []
    named = clean_name(", ".join(map(str, named))) if isinstance(named, list) else ""
    said = f"names {named}, which transformers does not have" if named else "names no class"
    return [f"config.json {said}; loaded as {chosen.__name__}"]


def _some(names: Collection[str]) -> str:
    shown = [clean_name(name) for name in sorted(names)[:_NAMED]]
    return ", ".join(shown) + (", ..." if len(names) > _NAMED else "")


def _load_tokenizer(config: PreTrainedConfig, directory: Directory, staged: Path) -> Tokenizer | None:
    if not directory.has_tokenizer:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            staged, config=config, local_files_only=True, trust_remote_code=False, verbose=False
        )
        tokens = tokenizer.encode("evenkeel", add_special_tokens=False)
    except Exception as error:  # every tokenizer class fails in its own way
        raise ModelError(
            f"the tokenizer of {directory.name} cannot be loaded: {in_one_line(error)}; copy its files anew, or remove "
            "them to measure on random tokens"
        ) from error
    if not tokens:
        raise ModelError(f"the tokenizer of {directory.name} makes no tokens of text; copy its files anew")
    return tokenizer
