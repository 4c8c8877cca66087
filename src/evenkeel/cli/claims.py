"""`evenkeel claims [ID ...]`: what the field repeats, each statement with an experiment and its measured verdict."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UsageError
from .output import file_argument, say, show, write

if TYPE_CHECKING:
    from ..ledger import Language

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
    parser.add_argument("--out", metavar="FILE", type=file_argument, help="write there, not to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiments and print what they say; raises UsageError for an unknown id or document."""
    _check(arguments)
    language = arguments.lang or _language_of_the_environment()
    try:
        draw = _walked(arguments, language) if arguments.document is not None else _claimed(arguments, language)
    finally:
        say("")
    if arguments.out is None:
        show(lambda width, color: draw(width, color, sys.stdout.encoding or "utf-8"))
    else:
        write(arguments.out, draw(None, False, "utf-8"))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.document is not None and arguments.ids:
        raise UsageError(f"--document {arguments.document} walks all its claims; leave out {' '.join(arguments.ids)}")
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


def _claimed(arguments: argparse.Namespace, language: Language) -> Draw:
    from ..ledger import claims, draw_documents, draw_markdown, draw_pages, draw_plots, draw_table, glyphs_of

    ids = [re.sub(r"^C(\d)$", r"C0\1", name.upper()) for name in arguments.ids] or None
    ledger = claims(ids, progress=_progress)
    if arguments.format == "json":
        return lambda width, color, encoding: ledger.to_json()
    if arguments.format == "markdown":
        rest = "" if ids else f"\n\n{draw_documents()}"
        return lambda width, color, encoding: draw_markdown(ledger.claims) + rest
    if arguments.explain:
        return lambda width, color, encoding: draw_plots(
            ledger.claims, language, width, glyphs=glyphs_of(encoding), color=color
        )
    draw_text = draw_pages if ids else draw_table
    return lambda width, color, encoding: draw_text(ledger.claims, language, width)


def _language_of_the_environment() -> Language:
    """What the locale asks for, by POSIX's order of its variables; English where there is no translation."""
    settings = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    wanted = next((setting for setting in settings if setting), "")[:2].lower()
    return wanted if wanted == "es" or wanted == "pt" else "en"
