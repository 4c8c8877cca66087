"""`evenkeel sample DIR "prompt"`: a model continues a text, and says with --explain why it chose each token."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import DataError, UsageError
from ..schema import SCHEMA_VERSION, encode_number
from .filters import add_sampler_options, chosen_sampler, given
from .models import add_model_options, load, running
from .output import say, tell, write_text

if TYPE_CHECKING:
    from ..architectures import LoadedModel
    from .generating import Continuation, Step

SUMMARY = "continue a text with a model, and say why each token was chosen"

_TOKENS = 100
_SEEDS = 2**63


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel sample`."""
    add_model_options(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from standard input")
    parser.add_argument(
        "--tokens", metavar="N", type=int, default=_TOKENS, help=f"how many to add at most (default: {_TOKENS})"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="each gives a text of its own, always the same (default: 0)"
    )
    add_sampler_options(parser, penalties=True)
    parser.add_argument(
        "--explain", action="store_true", help="per token its probability, the entropy, the candidates before and after"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(arguments: argparse.Namespace) -> int:
    """Write the continuation as it grows, or one JSON document at its end."""
    from ..architectures import open_directory

    _check(arguments)
    sampler, prompt = chosen_sampler(arguments), _prompt(arguments.prompt)
    directory = open_directory(arguments.directory)
    loaded = load(directory, arguments, tokens=1, backward=False)
    with running(loaded, directory, thrift="--dtype bfloat16"):
        from .generating import Continuation

        continuation = Continuation.of(loaded, directory, prompt)
        tell(*(f"note: {note}" for note in loaded.notes))
        start = perf_counter()
        write = partial(
            continuation.write,
            loaded,
            sampler,
            seed=arguments.seed,
            tokens=arguments.tokens,
            explained=arguments.explain,
        )
        say("choosing the first token; kernels are compiled once on a machine ...")
        try:
            if arguments.format == "json":
                write(on_step=lambda step: None)
            else:
                _show(continuation, write, arguments)
        finally:
            if arguments.format == "json" or not continuation.steps:
                say("")
        if arguments.format == "json":
            print(json.dumps(_document(continuation, loaded, arguments), indent=2, allow_nan=False))
    tell(_summary(continuation, arguments, perf_counter() - start))
    return 0


def _show(continuation: Continuation, write: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Write the text, or with --explain a block per token and then the text; a line's end behind whatever came."""

    def show(step: Step) -> None:
        if len(continuation.steps) == 1:
            say("")
        write_text(_shown(continuation, step, arguments))

    try:
        write(on_step=show)
        write_text(f"\n{continuation.text}" if arguments.explain else continuation.rest)
    finally:
        if continuation.steps:
            write_text("\n")


def _shown(continuation: Continuation, step: Step, arguments: argparse.Namespace) -> str:
    from ..architectures.texts import token_name
    from .explaining import draw, draw_legend

    if step.explanation is None:
        return step.text
    number = len(continuation.steps)
    block = draw(step.explanation, number, partial(token_name, continuation.tokenizer))
    if number > 1:
        return block
    return draw_legend([f"{name.replace('_', '-')} {value + 0:g}" for name, value in _asked(arguments).items()]) + block


def _document(continuation: Continuation, loaded: LoadedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    from ..architectures.texts import token_text
    from ..watching import model_info

    text = partial(token_text, continuation.tokenizer)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": f"evenkeel {version('evenkeel')}",
        "model": model_info(loaded.model).to_dict(),
        "sampler": {
            "order": arguments.order,
            **{name: encode_number(value) for name, value in _asked(arguments).items()},
        },
        "seed": arguments.seed,
        "prompt_tokens": continuation.prompt,
        "text": continuation.text,
        "stopped_by": continuation.stopped_by,
        "steps": [
            {"token": step.token, "text": text(step.token)}
            | ({} if step.explanation is None else step.explanation.to_dict(text))
            for step in continuation.steps
        ],
        "notes": list(loaded.notes),
    }


def _asked(arguments: argparse.Namespace) -> dict[str, float]:
    """Temperature, filters and penalties that were asked for."""
    return {"temperature": arguments.temperature, **given(arguments)}


def _summary(continuation: Continuation, arguments: argparse.Namespace, seconds: float) -> str:
    count = len(continuation.steps)
    return (
        f"{count} token{'s' * (count != 1)}, {count / seconds:.1f} a second, seed {arguments.seed}; "
        f"stopped by {continuation.stopped_by.replace('_', ' ')}"
    )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1:
        raise UsageError(f"--tokens is {arguments.tokens} and must be at least 1")
    if not 0 <= arguments.seed < _SEEDS:
        raise UsageError(f"--seed is {arguments.seed} and must lie from 0 to 2^63 - 1")


def _prompt(text: str) -> str:
    """The text, or that of standard input without the line's end that closes it."""
    try:
        if text == "-":
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        text.encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise DataError(f"the prompt is no text in UTF-8 ({error.reason}); convert it to UTF-8") from error
    return text
