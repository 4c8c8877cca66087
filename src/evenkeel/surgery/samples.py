"""A tiny made-up input, for models whose config says what they take."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..architectures import LoadedModel
from ..architectures.inputs import Rows, picture_batches, sound_batches, token_batches
from ..errors import EvenkeelError, UsageError
from ..nn.transformer import Transformer

_ROWS, _TOKENS = 2, 8


def made_up(model: nn.Module) -> Any:
    """Two rows of eight random tokens with labels, a picture or a sound, for a Hugging Face model or one of ours.

    Raises UsageError for a model that does not say what it takes.
    """
    loaded = _described(model)
    if loaded is None:
        raise UsageError(
            f"swap runs {type(model).__name__} once to find its places, and does not know what it takes; give "
            "batch=, a dict, tuple or tensor that it can be called with"
        )
    try:
        if loaded.kind == "vision":
            return picture_batches(loaded)[0]
        if loaded.kind == "audio":
            return sound_batches(loaded)[0]
        rows = Rows.of(loaded, _TOKENS)
        return token_batches(loaded, rows, rows.random(_ROWS * _TOKENS))[0]
    except EvenkeelError as error:
        raise UsageError(f"{error}; give batch=, an input that the model can be called with") from error


def _described(model: nn.Module) -> LoadedModel | None:
    if isinstance(model, Transformer):
        return LoadedModel(model, None, "causal", model.config.to_dict())
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or not hasattr(model, "main_input_name"):
        return None
    from ..architectures.classes import kind_of

    model_class: Any = type(model)
    return LoadedModel(model, None, kind_of(model_class, config), config.to_dict())
