"""`evenkeel inspect DIR`: one model, a few batches, what is wrong and what to change."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..schema import clean_name
from .models import add_model_options, load, running
from .output import Policy, add_output_options, chosen, finish, say

if TYPE_CHECKING:
    from ..architectures import Directory
    from ..diagnosis import Diagnosis

SUMMARY = "measure one model on data, say what is wrong and what to change"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel inspect`."""
    add_model_options(parser)
    parser.add_argument("--data", metavar="FILE", help=".txt or .jsonl; by default Python's standard library sources")
    parser.add_argument("--tokens", metavar="N", type=int, help="how many tokens to measure on (default: 2048)")
    parser.add_argument("--no-backward", action="store_true", help="forward only: less memory, no gradients")
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure the model of a directory, write the report, and return the exit code."""
    from ..architectures import open_directory
    from ..data import DEFAULT_TOKENS, read_texts

    policy = chosen(arguments)
    texts = None if arguments.data is None else read_texts(arguments.data)
    tokens = DEFAULT_TOKENS if arguments.tokens is None else arguments.tokens
    directory = open_directory(arguments.directory)
    if texts is not None and not (directory.has_tokenizer or directory.own):
        raise ModelError(
            f"{directory.name} has no tokenizer, so it cannot read --data; copy its tokenizer.json there, or leave "
            "--data out to measure on random tokens"
        )
    diagnosis = _diagnose(directory, arguments, policy, texts, tokens)
    return finish(diagnosis, arguments, policy)


def _diagnose(
    directory: Directory, arguments: argparse.Namespace, policy: Policy, texts: list[str] | None, tokens: int
) -> Diagnosis:
    from ..architectures.inputs import BATCH_TOKENS
    from ..data import make_batches, standard_library_text
    from ..inspection import inspect

    backward = not arguments.no_backward
    loaded = load(directory, arguments, tokens=min(tokens, BATCH_TOKENS), backward=backward)
    source = "Python's standard library" if texts is None else clean_name(arguments.data)
    try:
        with running(loaded, directory, thrift="fewer --tokens, --no-backward, or --dtype bfloat16"):
            prepared = make_batches(loaded, texts or [standard_library_text()], source=source, tokens=tokens)
            return inspect(
                loaded.model,
                prepared.batches,
                backward=backward,
                data=prepared.info,
                notes=(*loaded.notes, *prepared.notes),
                settings=policy.settings,
                progress=lambda done, total: say(f"measured {done} of {total} batches"),
            )
    finally:
        say("")
