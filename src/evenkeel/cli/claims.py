"""`evenkeel claims [ID ...]`: what the field repeats, each statement with an experiment and its measured verdict."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

from .output import file_argument, say, show, write

if TYPE_CHECKING:
    from ..ledger import Language, Ledger

SUMMARY = "test the statements this field repeats, each with an experiment and its verdict"

_LANGUAGES = ("en", "es", "pt")  # the ledger's own, here because `--help` has no use for torch


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="the page of these claims (for example C15; default: all)")
    parser.add_argument("--lang", choices=_LANGUAGES, help="language of the text (default: from LANG, else en)")
    parser.add_argument(
        "--format", choices=("text", "json", "markdown"), default="text", help="how to print (default: text)"
    )
    parser.add_argument("--out", metavar="FILE", type=file_argument, help="write there, not to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Run the experiments and print what they say; raises UsageError for an unknown id."""
    from ..ledger import claims

    ids = [re.sub(r"^C(\d)$", r"C0\1", name.upper()) for name in arguments.ids] or None
    try:
        ledger = claims(ids, progress=lambda done, total: say(f"measured {done} of {total} claims"))
    finally:
        say("")
    language = arguments.lang or _language_of_the_environment()
    if arguments.out is None:
        show(lambda width, color: _drawn(ledger, arguments.format, language, bool(ids), width))
    else:
        write(arguments.out, _drawn(ledger, arguments.format, language, bool(ids), None))
    return 0


def _drawn(ledger: Ledger, form: str, language: Language, paged: bool, width: int | None) -> str:
    from ..ledger import draw_markdown, draw_pages, draw_table

    if form == "json":
        return ledger.to_json()
    if form == "markdown":
        return draw_markdown(ledger.claims)
    draw = draw_pages if paged else draw_table
    return draw(ledger.claims, language, width)


def _language_of_the_environment() -> Language:
    """What the locale asks for, by POSIX's order of its variables; English where there is no translation."""
    settings = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    wanted = next((setting for setting in settings if setting), "")[:2].lower()
    return wanted if wanted == "es" or wanted == "pt" else "en"
