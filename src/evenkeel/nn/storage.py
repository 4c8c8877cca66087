"""A model of our own on disk: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..directories import CONFIG_FILE, OWN_MODEL_TYPE, WEIGHTS_FILE, named
from ..errors import ModelError
from ..schema import in_one_line
from .config import TransformerConfig


def save(directory: str | Path, config: TransformerConfig, weights: Mapping[str, Tensor]) -> None:
    """Write both files into a directory, which is made where there is none."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = {"model_type": OWN_MODEL_TYPE, **config.to_dict()}
    (directory / CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / WEIGHTS_FILE)


def load(directory: str | Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """What `save` wrote. Raises ModelError for files that cannot be read, ConfigError for bad fields."""
    directory, name = Path(directory), named(Path(directory))
    try:
        data = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be read ({in_one_line(error)}); save the model anew") from error
    if not isinstance(data, dict) or data.pop("model_type", None) != OWN_MODEL_TYPE:
        raise ModelError(
            f"{name} is not of model_type {OWN_MODEL_TYPE!r}; give a directory that Transformer.save wrote"
        )
    config, held = TransformerConfig.from_dict(data), sum(tensor.numel() for tensor in weights.values())
    if config.depth > len(weights) or config.parameter_count() > 2 * held:  # no model of that size is even made
        raise ModelError(
            f"{CONFIG_FILE} and {WEIGHTS_FILE} in {name} do not fit (depth {config.depth} and "
            f"{config.parameter_count():,} parameters, {len(weights)} tensors and {held:,} numbers); save the model "
            "anew"
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
            f"{CONFIG_FILE} and {WEIGHTS_FILE} in {named(Path(directory))} do not fit ({in_one_line(error)}); save the "
            "model anew"
        ) from error
