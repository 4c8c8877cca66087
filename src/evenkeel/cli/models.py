"""What commands that run the model of a DIR share: its options, how it is loaded, how its failures are told."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import EvenkeelError, ModelError, UsageError
from ..precision import COMPUTE_FORMATS
from ..schema import clean_name, in_one_line
from .output import say

if TYPE_CHECKING:
    from ..architectures import Directory, LoadedModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add DIR, --dtype and --device."""
    parser.add_argument("directory", metavar="DIR", help="directory of a Hugging Face model, or `demo`")
    parser.add_argument("--dtype", choices=COMPUTE_FORMATS, help="run the model in this format (default: its own)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def load(directory: Directory, arguments: argparse.Namespace, *, tokens: int, backward: bool) -> LoadedModel:
    """The model, if `tokens` of it at a time fit into memory, on the device that the options name."""
    from ..architectures import load_directory
    from ..architectures.memory import available_memory, check_memory

    device = _device(arguments.device)
    check_memory(directory, available_memory(device), tokens=tokens, dtype=arguments.dtype, backward=backward)
    say("loading the model ...")
    try:
        return load_directory(directory, dtype=arguments.dtype, device=device)
    finally:
        say("")


@contextmanager
def running(loaded: LoadedModel, directory: Directory, *, thrift: str) -> Iterator[None]:
    """In it, what a model or a tokenizer from outside raises becomes a ModelError; thrift: what takes less memory."""
    from ..architectures import quiet

    try:
        with quiet(directory):
            yield
    except (EvenkeelError, BrokenPipeError):
        raise
    except Exception as error:
        name = clean_name(type(loaded.model).__name__)
        raise ModelError(f"{name} could not be run: {in_one_line(error)}; {_remedy(error, thrift)}") from error


def _remedy(error: Exception, thrift: str) -> str:
    """What to try after a failed run; torch reports a lack of memory in several ways."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"try {thrift}"
    return "do config.json, the weights and the tokenizer belong together?"


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {clean_name(name)} cannot be used: {in_one_line(error)}; try cpu") from error
    return name
