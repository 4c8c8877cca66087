"""`evenkeel report RECORD`: judges and draws the record of a run, or draws a JSON document again."""

from __future__ import annotations

import argparse

from ..errors import NothingMeasuredError
from ..schema import Document, clean_name
from .output import add_output_options, finish, read_document

SUMMARY = "show what a record or a JSON document says"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("record", metavar="RECORD", help="the record of a watched run, or a JSON document of evenkeel")
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw the report; the exit code says whether a finding counts."""
    document = read_document(arguments.record) if _is_json(arguments.record) else _judged(arguments.record)
    if not document.readings and not document.findings:
        raise NothingMeasuredError(f"{clean_name(arguments.record)} holds no measured step; watch at least one step")
    return finish(document, arguments)


def _is_json(path: str) -> bool:
    """Whether a file begins as JSON does; a record begins with its own name."""
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))
    except (OSError, ValueError):
        return False


def _judged(path: str) -> Document:
    from ..diagnosis import judge
    from ..records import Record

    with Record.open(path) as record:
        return judge(record)
