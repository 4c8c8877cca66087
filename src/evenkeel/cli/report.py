"""`evenkeel report RECORD`: judges and draws the record of a run, or draws a JSON document again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import NothingMeasuredError
from ..schema import Document, clean_name
from .output import add_output_options, chosen, finish, read_document, without

if TYPE_CHECKING:
    from ..settings import Settings

SUMMARY = "show what a record or a JSON document says"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("record", metavar="RECORD", help="the record of a watched run, or a JSON document of evenkeel")
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw the report; the exit code says whether a finding counts."""
    policy = chosen(arguments)
    if _is_json(arguments.record):
        document = without(read_document(arguments.record), policy.settings.ignore)
    else:
        document = _judged(arguments.record, policy.settings)
    if not document.readings and not document.findings:
        raise NothingMeasuredError(f"{clean_name(arguments.record)} holds no measured step; watch at least one step")
    return finish(document, arguments, policy)


def _is_json(path: str) -> bool:
    """Whether a file begins as JSON does; a record begins with its own name."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
    except (OSError, ValueError):
        return False


def _judged(path: str, settings: Settings) -> Document:
    from ..diagnosis import judge
    from ..records import Record

    with Record.open(path) as record:
        return judge(record, settings)
