"""A model of our own on disk: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..directories import OWN_MODEL_TYPE
from ..errors import ModelError
from ..schema import clean_name, in_one_line
from .config import TransformerConfig

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def save(directory: str | Path, config: TransformerConfig, weights: Mapping[str, Tensor]) -> None:
    """Write both files into a directory, which is made where there is none."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = {"model_type": OWN_MODEL_TYPE, **config.to_dict()}
    (directory / _CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / _WEIGHTS)


def load(directory: str | Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """What `save` wrote. Raises ModelError for files that cannot be read, ConfigError for bad fields."""
    directory, name = Path(directory), _named(directory)
    try:
        data = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(directory / _WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be read ({in_one_line(error)}); save the model anew") from error
    if not isinstance(data, dict) or data.pop("model_type", None) != OWN_MODEL_TYPE:
        raise ModelError(
            f"{name} is not of model_type {OWN_MODEL_TYPE!r}; give a directory that Transformer.save wrote"
        )
    config, held = TransformerConfig.from_dict(data), sum(tensor.numel() for tensor in weights.values())
    if config.depth > len(weights) or config.parameter_count() > 2 * held:  # no model of that size is even made
        raise ModelError(
            f"{_CONFIG} and {_WEIGHTS} in {name} do not fit (depth {config.depth} and {config.parameter_count():,} "
            f"parameters, {len(weights)} tensors and {held:,} numbers); save the model anew"
        )
    return config, weights


def fill(model: nn.Module, weights: Mapping[str, Tensor], directory: str | Path) -> None:
    """Put weights into a model, in their own dtype, as copies which stay what they are whatever becomes of the file.

    Raises ModelError where the two do not fit.
    """
    try:
        model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"{_CONFIG} and {_WEIGHTS} in {_named(directory)} do not fit ({in_one_line(error)}); save the model anew"
        ) from error


def _named(directory: str | Path) -> str:
    return repr(clean_name(str(directory)))
