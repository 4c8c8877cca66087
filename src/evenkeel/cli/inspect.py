"""`evenkeel inspect DIR`: one model, a few batches, what is wrong and what to change."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import EvenkeelError, ModelError, UsageError
from ..precision import COMPUTE_FORMATS
from ..schema import clean_name, in_one_line
from .output import add_output_options, finish

if TYPE_CHECKING:
    from ..architectures import Directory
    from ..diagnosis import Diagnosis

SUMMARY = "measure one model on data, say what is wrong and what to change"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel inspect`."""
    parser.add_argument("directory", metavar="DIR", help="directory of a Hugging Face model, or `demo`")
    parser.add_argument("--data", metavar="FILE", help=".txt or .jsonl; by default Python's standard library sources")
    parser.add_argument("--tokens", metavar="N", type=int, help="how many tokens to measure on (default: 2048)")
    parser.add_argument("--dtype", choices=COMPUTE_FORMATS, help="run the model in this format (default: its own)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--no-backward", action="store_true", help="forward only: less memory, no gradients")
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure the model of a directory, write the report, and return the exit code."""
    from ..architectures import open_directory
    from ..data import DEFAULT_TOKENS, read_texts

    texts = None if arguments.data is None else read_texts(arguments.data)
    tokens = DEFAULT_TOKENS if arguments.tokens is None else arguments.tokens
    directory = open_directory(arguments.directory)
    if texts is not None and not (directory.has_tokenizer or directory.own):
        raise ModelError(
            f"{directory.name} has no tokenizer, so it cannot read --data; copy its tokenizer.json there, or leave "
            "--data out to measure on random tokens"
        )
    diagnosis = _diagnose(directory, arguments, texts, tokens)
    return finish(diagnosis, arguments)


def _diagnose(directory: Directory, arguments: argparse.Namespace, texts: list[str] | None, tokens: int) -> Diagnosis:
    from ..architectures import load_directory, quiet
    from ..architectures.inputs import BATCH_TOKENS
    from ..architectures.memory import available_memory, check_memory
    from ..data import make_batches, standard_library_text
    from ..inspection import inspect

    backward = not arguments.no_backward
    device = _device(arguments.device)
    batch = min(tokens, BATCH_TOKENS)
    check_memory(directory, available_memory(device), tokens=batch, dtype=arguments.dtype, backward=backward)
    _say("loading the model ...")
    loaded = load_directory(directory, dtype=arguments.dtype, device=device)
    source = "Python's standard library" if texts is None else clean_name(arguments.data)
    try:
        with quiet(directory):
            prepared = make_batches(loaded, texts or [standard_library_text()], source=source, tokens=tokens)
            return inspect(
                loaded.model,
                prepared.batches,
                backward=backward,
                data=prepared.info,
                notes=(*loaded.notes, *prepared.notes),
                progress=lambda done, total: _say(f"measured {done} of {total} batches"),
            )
    except EvenkeelError:
        raise
    except Exception as error:  # whatever a model or a tokenizer from outside does when it runs
        name = clean_name(type(loaded.model).__name__)
        raise ModelError(f"{name} could not be run: {in_one_line(error)}; {_remedy(error)}") from error
    finally:
        _say("")


def _remedy(error: Exception) -> str:
    """What to try after a failed run; torch reports a lack of memory in several ways."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "try fewer --tokens, --no-backward, or --dtype bfloat16"
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


def _say(text: str) -> None:
    """One line of progress, written over the one before; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\N{ESCAPE}[K{text}", end="", file=sys.stderr, flush=True)
