"""`evenkeel describe DIR_OR_CONFIG`: what a model is made of and what it costs, without its weights."""

from __future__ import annotations

import argparse

from .output import add_output_options, chosen, finish

SUMMARY = "read an architecture from its config, without weights"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel describe`."""
    parser.add_argument(
        "model",
        metavar="DIR_OR_CONFIG",
        help="directory of a model, its config.json alone, a model_type such as llama, or `demo`",
    )
    parser.add_argument(
        "--context", metavar="N", type=_context, help="count attention at N keys (default: 4096, or the model's most)"
    )
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Describe the model, write the description, and return the exit code."""
    from ..architectures.describing import describe
    from ..report import FORMATS, architecture

    if arguments.format is FORMATS["text"]:
        arguments.format = architecture.render
    policy = chosen(arguments)
    described = describe(arguments.model, context=arguments.context, settings=policy.settings)
    return finish(described, arguments, policy)


def _context(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of keys; give 1 or more")
    return number
