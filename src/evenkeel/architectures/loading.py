"""Loading a model directory: weights and tokenizer, as data only; no code of the directory runs, nothing is fetched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..directories import Directory, open_directory
from ..errors import EvenkeelError, ModelError
from ..schema import in_one_line
from .tokenizers import ByteTokenizer, Tokenizer

Kind = Literal["causal", "encoder_decoder", "masked", "encoder", "vision", "audio"]
"""What a model takes, and its loss: next token, next target token, masked tokens, and none for the last three."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, ready to be measured.

    tokenizer: None where the directory has none. config: config.json without the keys that name code. notes: what a
    reader of the results has to know, one line each.
    """

    model: nn.Module
    tokenizer: Tokenizer | None
    kind: Kind
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def load_directory(directory: str | Path | Directory, *, dtype: str | None = None, device: str = "cpu") -> LoadedModel:
    """Load the model of a Hugging Face directory (config.json and safetensors), or one of evenkeel's own.

    dtype: `float32`, `bfloat16`, `float16` or `float64`; by default that of config.json, else that of the weights.
    device: where the model goes, as torch names it. Weights that the checkpoint lacks are drawn with seed 0 and named
    in the notes. Raises ModelError, in one line, for whatever cannot be read safely, or at all.
    """
    opened = directory if isinstance(directory, Directory) else open_directory(directory)
    loaded = _load_own(opened, dtype) if opened.own else _load_hugging_face(opened, dtype)
    try:
        loaded.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the model cannot go to device {device!r}: {in_one_line(error)}; try --device cpu") from error
    return loaded


def quiet(directory: Directory) -> AbstractContextManager[None]:
    """In it, what runs a directory's model reaches no network and prints nothing of its own."""
    if directory.own:
        return nullcontext()
    from .offline import offline_and_quiet

    return offline_and_quiet()


def _load_own(directory: Directory, dtype: str | None) -> LoadedModel:
    from ..nn import Transformer

    try:
        model = Transformer.load(directory.path)
    except EvenkeelError:
        raise
    except Exception as error:
        raise ModelError(f"{directory.name} cannot be loaded: {in_one_line(error)}; save the model anew") from error
    if dtype is not None:
        model.to(getattr(torch, dtype))
    return LoadedModel(model.eval(), ByteTokenizer(), "causal", directory.config, directory.notes)


def _load_hugging_face(directory: Directory, dtype: str | None) -> LoadedModel:
    try:
        import transformers  # noqa: F401 (whether it is there decides what can be said)
    except ImportError as error:
        raise ModelError('Hugging Face directories need transformers: pip install "evenkeel[hf]"') from error
    from .huggingface import load

    return load(directory, dtype)
