"""`evenkeel claims [ID ...]`: what the field repeats, each statement with an experiment and its measured verdict."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .output import file_argument, say, show, tell, write
from .working import INTERRUPTED, bar, estimate, processes, quieten_optuna, warn

if TYPE_CHECKING:
    from ..ledger import Language, Ledger
    from ..studies import Report, Run

SUMMARY = "test the statements this field repeats, each with an experiment and its verdict"

_LANGUAGES = ("en", "es", "pt")  # the ledger's own, here because `--help` has no use for torch

Draw = Callable[[int | None, bool, str], str]
"""Width in columns, whether with colours, and the encoding of what it goes to."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="the page of these claims (for example C15; default: all)")
    parser.add_argument(
        "--document", metavar="NAME", help="walk a document, sentence by sentence (002, or attention-scaling)"
    )
    parser.add_argument("--explain", action="store_true", help="draw what was measured, beside the bounds")
    parser.add_argument("--lang", choices=_LANGUAGES, help="language of the text (default: from LANG, else en)")
    parser.add_argument(
        "--format", choices=("text", "json", "markdown"), default="text", help="how to print (default: text)"
    )
    training = parser.add_argument_group("claims that rest on trained models")
    training.add_argument(
        "--train", action="store_true", help="run their studies (hours) in place of showing the stored runs"
    )
    training.add_argument("--budget", metavar="TIME", help="with --train: how long all of it may take, as in 30m or 2h")
    training.add_argument(
        "--storage", metavar="FILE|URL", help="with --train: where trials are kept (default: in the cache)"
    )
    parser.add_argument("--out", metavar="FILE", type=file_argument, help="write there, not to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiments and print what they say; 0, or 130 where Ctrl-C left a study partial.

    Raises UsageError for an unknown id or document.
    """
    _check(arguments)
    language = arguments.lang or _language_of_the_environment()
    code = 0
    try:
        if arguments.document is not None:
            draw = _walked(arguments, language)
        else:
            ledger = _ledger(arguments)
            draw = _drawing(ledger, arguments, language)
            code = INTERRUPTED if arguments.train and any(item.run.kind == "none" for item in ledger.claims) else 0
    finally:
        say("")
    if arguments.out is None:
        show(lambda width, color: draw(width, color, sys.stdout.encoding or "utf-8"))
    else:
        write(arguments.out, draw(None, False, "utf-8"))
    if code:
        print("evenkeel: stopped; the same command goes on", file=sys.stderr)
    return code


def _check(arguments: argparse.Namespace) -> None:
    if arguments.document is not None and arguments.ids:
        raise UsageError(f"--document {arguments.document} walks all its claims; leave out {' '.join(arguments.ids)}")
    if arguments.document is not None and (arguments.train or arguments.budget or arguments.storage):
        raise UsageError("--document walks what is stored; leave out --train, or train the claims that you name")
    if arguments.explain and not arguments.ids:
        raise UsageError("--explain draws the claims that you name; give ids, as in evenkeel claims C15 --explain")
    if arguments.explain and arguments.format != "text":
        raise UsageError(f"--explain draws text, not {arguments.format}; leave out --format")


def _progress(done: int, total: int) -> None:
    say(f"measured {done} of {total} claims")


def _walked(arguments: argparse.Namespace, language: Language) -> Draw:
    from ..ledger import document_named, draw_walk, draw_walk_in_markdown, walk

    found = walk(document_named(arguments.document), progress=_progress)
    if arguments.format == "json":
        return lambda width, color, encoding: found.to_json()
    if arguments.format == "markdown":
        return lambda width, color, encoding: draw_walk_in_markdown(found, language)
    return lambda width, color, encoding: draw_walk(found, language, width)


def _ledger(arguments: argparse.Namespace) -> Ledger:
    from ..ledger import claims

    ids = [re.sub(r"^C(\d)$", r"C0\1", name.upper()) for name in arguments.ids] or None
    options: dict[str, Any] = {"budget": arguments.budget, "storage": arguments.storage, "progress": _progress}
    if not arguments.train:
        return claims(ids, **options)
    quieten_optuna()
    with ExitStack() as stack:

        def watcher(name: str, run: Run) -> Report:
            stack.close()  # the bar of the study before
            left = run.remaining
            if left:
                tell(f"{name}: {estimate(run, left)}")
            return stack.enter_context(bar(run, left))

        return claims(ids, train=True, jobs=processes("cpu"), watcher=watcher, tell=warn, **options)


def _drawing(ledger: Ledger, arguments: argparse.Namespace, language: Language) -> Draw:
    from ..ledger import draw_documents, draw_markdown, draw_pages, draw_plots, draw_table, glyphs_of

    if arguments.format == "json":
        return lambda width, color, encoding: ledger.to_json()
    if arguments.format == "markdown":
        rest = "" if arguments.ids else f"\n\n{draw_documents()}"
        return lambda width, color, encoding: draw_markdown(ledger.claims) + rest
    if arguments.explain:
        return lambda width, color, encoding: draw_plots(
            ledger.claims, language, width, glyphs=glyphs_of(encoding), color=color
        )
    draw_text = draw_pages if arguments.ids else draw_table
    return lambda width, color, encoding: draw_text(ledger.claims, language, width)


def _language_of_the_environment() -> Language:
    """What the locale asks for, by POSIX's order of its variables; English where there is no translation."""
    settings = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    wanted = next((setting for setting in settings if setting), "")[:2].lower()
    return wanted if wanted == "es" or wanted == "pt" else "en"
