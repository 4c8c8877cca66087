"""`evenkeel`: parses the command line, runs one command, turns errors into exit codes and one line on stderr."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..errors import EvenkeelError

COMMANDS = ("inspect", "demo", "report", "rules")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a command is a module here with SUMMARY, configure(parser) and run(arguments)."""
    parser = argparse.ArgumentParser(prog="evenkeel", description="Keeps transformers on an even keel.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"{__package__}.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except EvenkeelError as error:
        print(f"evenkeel: {error}", file=sys.stderr)
        return error.exit_code
