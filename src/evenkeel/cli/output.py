"""What every command that ends in a document has in common: how it is drawn, where it goes, which exit code follows."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import RecordError, UsageError
from ..schema import SEVERITIES, Document, Finding, clean_name

if TYPE_CHECKING:
    from ..report import Format
    from ..settings import Settings

T = TypeVar("T")

_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `finish` reads; their values are checked while they are parsed, before any work."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format", metavar="FORMAT", type=_argument(_format), default="text", help="text (default), json, ..."
    )
    group.add_argument("--out", metavar="FILE", type=file_argument, help="write there, not to standard output")
    group.add_argument(
        "--fail-on",
        choices=("error", "warning", "never"),
        help="exit with 1 if there is a finding of this severity or above (default: error)",
    )
    group.add_argument(
        "--ignore", metavar="CODE,...", type=_argument(_codes), help="leave out the findings of these rules"
    )
    group.add_argument(
        "--baseline",
        metavar="FILE",
        type=_argument(read_document),
        help="an earlier JSON document: only findings that it lacks count, and they are marked as new",
    )
    group.add_argument(
        "--config", metavar="FILE", help="settings in [tool.evenkeel] there (default: the nearest pyproject.toml's)"
    )


@dataclass(frozen=True)
class Policy:
    """A project's settings, and the document of its baseline where it has one."""

    settings: Settings
    baseline: Document | None


def chosen(arguments: argparse.Namespace) -> Policy:
    """The project's settings; an option takes the place of its setting. Raises UsageError, before any work."""
    from ..settings import Settings  # here, because `--help` has no use for the rules

    settings = Settings.nearest() if arguments.config is None else Settings.from_file(arguments.config)
    given = {name: getattr(arguments, name) for name in ("fail_on", "ignore")}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    baseline = arguments.baseline
    if baseline is None and settings.baseline is not None:
        baseline = read_document(str(settings.baseline))
    return Policy(settings, baseline)


def finish(document: Document, arguments: argparse.Namespace, policy: Policy) -> int:
    """Draw the document, write it, and say by the exit code whether a finding counts: 1 if so, else 0."""
    new = None if policy.baseline is None else not_in(policy.baseline, document.findings)
    if arguments.out is not None:
        write(arguments.out, arguments.format(document, new=new))
    else:
        show(lambda width, color: arguments.format(document, width=width, color=color, new=new))
    counting = document.findings if new is None else new
    return int(any(_counts(finding, policy.settings.fail_on) for finding in counting))


def read_document(path: str) -> Document:
    """A JSON document that evenkeel wrote; raises RecordError if it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{clean_name(path)} cannot be read ({error.strerror}); give a JSON document") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{clean_name(path)} is no JSON document; write one with --format json --out FILE") from error
    try:
        return Document.from_dict(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(
            f"{clean_name(path)} is JSON but no document of evenkeel; write one with --format json --out FILE"
        ) from error


def file_argument(text: str) -> Path:
    """The file that an option names, links followed; argparse refuses a directory and a missing folder."""
    return _argument(_file)(text)


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """The same reader, with its refusal told in argparse's own way."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _format(name: str) -> Format:
    from ..report import FORMATS  # here, because `--help` has no use for the drawing libraries

    return FORMATS[name]


def _codes(text: str) -> tuple[str, ...]:
    from ..rules import RULES

    codes = tuple(code.strip().upper() for code in text.split(",") if code.strip())
    for code in codes:
        RULES[code]
    return codes


def _file(text: str) -> Path:
    path = Path(os.path.realpath(text))
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{clean_name(text)} is no file in an existing folder; give one")
    return path


def without(document: Document, codes: Collection[str]) -> Document:
    """A document that was judged before, as if some rules had not been applied, with a note that says so."""
    from ..settings import ignored

    if not codes:
        return document
    return replace(
        document,
        findings=tuple(
            replace(finding, cause="" if finding.cause in codes else finding.cause)
            for finding in document.findings
            if finding.code not in codes
        ),
        rules=tuple(status for status in document.rules if status.code not in codes),
        notes=(*document.notes, ignored(codes)),
    )


def not_in(baseline: Document, findings: Collection[Finding]) -> tuple[Finding, ...]:
    """The findings of which the baseline lacks a site, or has it as less severe; causes do not matter."""
    known: dict[tuple[str, str], int] = {}
    for finding in baseline.findings:
        for site in finding.sites:
            key, rank = (finding.code, site), SEVERITIES.index(finding.severity)
            known[key] = min(rank, known.get(key, rank))

    def is_new(finding: Finding) -> bool:
        rank = SEVERITIES.index(finding.severity)
        return any(known.get((finding.code, site), len(SEVERITIES)) > rank for site in finding.sites)

    return tuple(finding for finding in findings if is_new(finding))


def _counts(finding: Finding, fail_on: str) -> bool:
    return fail_on != "never" and SEVERITIES.index(finding.severity) <= SEVERITIES.index(fail_on)


def show(draw: Callable[[int | None, bool], str]) -> None:
    """Print what `draw(width, color)` gives for standard output, with escapes for what its encoding lacks."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(_encodable(draw(width, _color()).rstrip("\n")))


def write_text(text: str) -> None:
    """Print a piece of a text from outside at once, as it is; a terminal gets nothing that it would obey."""
    print(_encodable(harmless(text) if sys.stdout.isatty() else text), end="", flush=True)


def harmless(text: str) -> str:
    """A text of any lines with every character replaced that a terminal obeys: controls, and turns of direction."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _obeyed(character) else character for character in text)


def _obeyed(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\n\t"
    return unicodedata.bidirectional(character) in _TURNS


def say(text: str) -> None:
    """One line of progress on stderr, written over the one before, "" to clear it; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\N{ESCAPE}[K{text}", end="", file=sys.stderr, flush=True)


def tell(*lines: str) -> None:
    """Lines about the result on stderr; nothing where nobody watches."""
    if sys.stderr.isatty():
        for line in lines:
            print(line, file=sys.stderr)


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; a pipe or a device is written to as it is."""
    data = (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        partial = path.with_name(f".evenkeel-{os.getpid()}")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{clean_name(str(path))} cannot be written ({error.strerror}); give another --out") from error
