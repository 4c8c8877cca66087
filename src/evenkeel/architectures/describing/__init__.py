"""Describing an architecture: what a model is made of and what it costs, read without weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...description import Description
from ...directories import without_code
from ...errors import UsageError
from ...report import architecture
from ...schema import clean_name
from ...settings import Settings
from .assembling import assemble
from .subjects import from_config, from_module, from_path

__all__ = ["Architecture", "describe", "describe_config"]


@dataclass(frozen=True, kw_only=True)
class Architecture(Description):
    """The document that describing returns: parts, costs, and what the rules find in them."""

    def to_text(self, width: int | None = None, color: bool = False) -> str:
        """The description for a person. width: columns, 80 if None; color: with terminal escapes."""
        return architecture.render(self, width=width, color=color)


def describe(
    model: nn.Module | str | Path,
    *,
    inputs: Any = None,
    context: int | None = None,
    settings: Settings | None = None,
) -> Architecture:
    """What a model is made of and what a token costs, from one run on tensors that have shapes and no values.

    model: a directory of a Hugging Face model or of evenkeel's own, the path of a config.json alone, "demo", a
    model_type that transformers knows (with its class defaults), or a live module, which is left as it is. inputs: for
    a module that has no config, one batch: a tensor, a tuple of positional or a dict of keyword arguments; values do
    not matter, shapes and dtypes do. context: the keys that attention is counted at, 4096 or what the model allows if
    None. settings: what is set otherwise than the rules do.
    Nothing is allocated but the tables that a model computes for itself; no code of a directory runs and no weight file
    is opened. A Hugging Face model whose code asks for values is run as a small real instance, and a note says so.
    Raises ModelError for what cannot be read or run, UsageError for a module that needs inputs, inputs for what is no
    module, or a context below 1.
    """
    if context is not None and context < 1:
        raise UsageError(f"context is {context} and must be 1 or more keys")
    if not isinstance(model, nn.Module | str | Path):
        raise UsageError(f"describe takes a module, a directory or a model_type, and was given {type(model).__name__}")
    if inputs is not None and not isinstance(model, nn.Module):
        raise UsageError(
            f"inputs are for a live module; {clean_name(str(model))!r} is read from its config: leave them out"
        )
    with _collector_at_rest():
        subject = from_module(model, inputs) if isinstance(model, nn.Module) else from_path(model)
        return Architecture(**assemble(subject, context, settings))


def describe_config(config: dict[str, Any], *, context: int | None = None) -> Architecture:
    """The same for the contents of a config.json; keys that name code are left out."""
    with _collector_at_rest():
        return Architecture(**assemble(from_config(without_code(config)[0]), context))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Python's garbage collector off: it walks a growing graph again and again, a third of the time for 126 blocks."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
