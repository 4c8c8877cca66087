"""Reading the directory of a known family: JSON and safetensors, nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...catalogue import near_miss
from ...directories import Directory, open_directory
from ...errors import ConfigError, ModelError, UsageError
from ...schema import clean_name, in_one_line
from ..config import TransformerConfig
from .catalogue import FAMILIES
from .family import TOKEN_IDS, Family, Origin
from .layout import Layout, entries, full_names, ours_from, some

if TYPE_CHECKING:
    from ..transformer import Transformer

T = TypeVar("T", bound="Transformer")

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_TOO_MANY = 2**60  # times eight bytes they are more than torch counts


def read_directory(make: type[T], directory: str | Path, dtype: torch.dtype | None = None) -> T:
    """The model of a directory; see Transformer.from_directory."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype is {dtype!r}, in which no model runs; give one as torch.bfloat16, or leave it out")
    opened = open_directory(directory)
    family = _family(opened)
    _check_depth(opened, family)
    config = family.read(opened.config)
    _check_size(opened, config)
    with torch.device("meta"):
        model = make(config)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    expected, names = entries(family.layout, shapes), full_names(family.layout, opened.weights)
    copy = _head(family.layout) if config.head.tied else None
    _check_names(opened, family, expected, names, copy)
    stored = _tensors(opened, names, dtype or _dtype(opened, names.values()))
    if copy in stored:
        _check_copy(opened, copy, stored.pop(copy), stored[_embedding(family.layout)])
    weights: dict[str, Tensor] = {}
    for name, entry in expected.items():
        weights |= ours_from(entry, stored.pop(name), shapes)
    model.load_state_dict(weights, assign=True)
    model.origin = Origin(family.model_type, {name: opened.config.get(name) for name in TOKEN_IDS})
    return model


def _family(opened: Directory) -> Family:
    if opened.own:
        raise ConfigError(f"{opened.name} is a model of evenkeel's own; read it with Transformer.load")
    model_type = opened.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"config.json of {opened.name} has model_type {clean_name(repr(model_type))}, which is no known family; "
            f"{near_miss(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]


def _check_depth(opened: Directory, family: Family) -> None:
    """Raises ModelError for more layers than there are tensors, before anything is made for each of them."""
    part = next(part for part in family.parts if "depth" in part.axes)
    depth, held = part.read(opened.config)["depth"], len(opened.weights)
    if depth > held:
        raise ModelError(
            f"config.json of {opened.name} has {', '.join(part.fields)} {depth}, and the weights are {held} tensors; "
            "give the config and all the weights of one model"
        )


def _check_size(opened: Directory, config: TransformerConfig) -> None:
    """Raises ModelError for sizes that no tensor can have, not even one without memory."""
    if config.parameter_count() >= _TOO_MANY:
        held = sum(weight.elements for weight in opened.weights.values())
        raise ModelError(
            f"config.json of {opened.name} asks for {config.parameter_count():,} parameters, and the weights are "
            f"{held:,}; give the config and all the weights of one model"
        )


def _check_names(
    opened: Directory, family: Family, expected: Collection[str], names: Collection[str], copy: str | None
) -> None:
    missing, extra = set(expected) - set(names), set(names) - set(expected) - {copy}
    if missing or extra:
        said = [f"lacks {len(missing)} tensors: {some(missing)}"] if missing else []
        said += [f"has {len(extra)} that are no part of it: {some(extra)}"] if extra else []
        raise ModelError(
            f"{opened.name} is no {family.architecture} as its config.json says: it {' and '.join(said)}; give the "
            "config and all the weights of one model"
        )


def _check_copy(opened: Directory, name: str, copy: Tensor, embedding: Tensor) -> None:
    if not torch.equal(copy, embedding):
        raise ModelError(
            f"{name} of {opened.name} differs from the embedding, and config.json ties the two; set "
            "tie_word_embeddings to false there"
        )


def _dtype(opened: Directory, names: Collection[str]) -> torch.dtype:
    """The one of the files; where there are several, the narrowest that holds them all."""
    formats = {opened.weights[name].dtype for name in names}
    if unknown := formats - _DTYPES.keys():
        raise ModelError(
            f"{opened.name} holds tensors of format {some(unknown)}, in which no model runs; give the directory of the "
            "model before quantisation, or dtype"
        )
    return reduce(torch.promote_types, (_DTYPES[name] for name in sorted(formats)))


def _tensors(opened: Directory, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of the tensors, which stay what they are whatever becomes of the files."""
    wanted = {stored: name for name, stored in names.items()}
    found = {}
    try:
        for path in opened.files:
            with safe_open(opened.path / path, framework="pt") as file:
                for stored in wanted.keys() & set(file.keys()):
                    found[wanted[stored]] = file.get_tensor(stored).to(dtype, copy=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{opened.name} cannot be read ({in_one_line(error)}); copy its files anew") from error
    return found


def _head(layout: Layout) -> str:
    (name,) = entries(layout, ["head.weight"])
    return name


def _embedding(layout: Layout) -> str:
    (name,) = entries(layout, ["embedding.weight"])
    return name
