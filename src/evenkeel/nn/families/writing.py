"""Writing a model as the directory of a family: JSON and safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from ...directories import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from ...errors import ConfigError, UsageError
from .catalogue import FAMILIES
from .family import TOKEN_IDS, Family
from .layout import Entry, entries, theirs_from

if TYPE_CHECKING:
    from ..transformer import Transformer

_SHARDS = "model-[0-9]*-of-[0-9]*.safetensors"


def write_directory(
    model: Transformer, directory: str | Path, family: str | None = None, max_shard_size: int | None = None
) -> None:
    """Write a model; see Transformer.save_directory."""
    if max_shard_size is not None and max_shard_size < 1:
        raise UsageError(f"max_shard_size is {max_shard_size} and must be at least 1 byte, or None for one file")
    chosen, fields = _chosen(model, family)
    ids = {} if model.origin is None else model.origin.token_ids
    settings = {
        "architectures": [chosen.architecture],
        "model_type": chosen.model_type,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        **{name: ids.get(name) for name in TOKEN_IDS},
        **fields,
    }
    weights = _unpacked(model.state_dict())
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory) as name:  # the files of before stay whole until the new ones are
        staged = Path(name)
        _write_weights(staged, entries(chosen.layout, weights).values(), weights, max_shard_size)
        _write_json(staged / CONFIG_FILE, settings)
        _replace(directory, staged)


def _chosen(model: Transformer, family: str | None) -> tuple[Family, dict[str, Any]]:
    """A family with its fields: the one that is named, else the model's own, else the first that has such a model."""
    if family is not None:
        return FAMILIES[family], FAMILIES[family].write(model.config)
    own = [] if model.origin is None else [model.origin.family]
    reasons = []
    for name in dict.fromkeys([*own, *FAMILIES]):
        try:
            return FAMILIES[name], FAMILIES[name].write(model.config)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(f"no family has such a model; write it with save instead. {'. '.join(reasons)}")


def _unpacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with the two matrices of a packed feed-forward layer apart."""
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".gate_up." in name:
            gate, up = tensor.chunk(2)
            apart |= {name.replace(".gate_up.", ".gate."): gate, name.replace(".gate_up.", ".up."): up}
        else:
            apart[name] = tensor
    return apart


def _write_weights(
    directory: Path, tensors: Iterable[Entry], weights: Mapping[str, Tensor], max_shard_size: int | None
) -> None:
    shards = _shards(tensors, weights, max_shard_size)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = [WEIGHTS_FILE] if len(shards) == 1 else names
    placed, size = {}, 0
    for name, shard in zip(names, shards, strict=True):
        held = {entry.theirs: theirs_from(entry, weights).clone() for entry in shard}
        save_file(held, directory / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(held, name)
        size += sum(tensor.nbytes for tensor in held.values())
    if len(shards) > 1:
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": placed})


def _shards(tensors: Iterable[Entry], weights: Mapping[str, Tensor], limit: int | None) -> list[list[Entry]]:
    """Tensors in order, as many to a file as its limit in bytes allows, one at least."""
    shards: list[list[Entry]] = [[]]
    room = limit
    for entry in tensors:
        size = sum(weights[name].nbytes for name in entry.ours)
        if limit is not None and room is not None:
            if shards[-1] and size > room:
                shards.append([])
                room = limit
            room -= size
        shards[-1].append(entry)
    return shards


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _replace(directory: Path, staged: Path) -> None:
    """Put the new files in the place of the old; weights of before are taken away, for readers would mix them up."""
    written = {path.name for path in staged.iterdir()}
    for old in [directory / WEIGHTS_FILE, directory / INDEX_FILE, *directory.glob(_SHARDS)]:
        if old.name not in written:
            old.unlink(missing_ok=True)
    for path in staged.iterdir():
        path.replace(directory / path.name)
