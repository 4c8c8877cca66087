"""`evenkeel`: parses the command line, runs one command, turns errors into exit codes and one line on stderr."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..errors import EvenkeelError
from ..schema import in_one_line, printable

COMMANDS = ("inspect", "describe", "demo", "report", "rules", "claims", "compare", "softmax", "sample", "doctor")

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_TRACEBACK = "EVENKEEL_TRACEBACK"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a command is a module here with SUMMARY, configure(parser) and run(arguments)."""
    parser = argparse.ArgumentParser(prog="evenkeel", description="Keeps transformers on an even keel.")
    parser.add_argument("--version", action="version", version=f"evenkeel {version('evenkeel')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"{__package__}.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; with EVENKEEL_TRACEBACK=1 errors are raised instead."""
    try:
        arguments = build_parser().parse_args(argv)
        code = arguments.run(arguments)
        sys.stdout.flush()  # here, where a closed pipe can still be answered
        return code
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; stdout goes nowhere, so that the interpreter's last flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _failed("stopped by Ctrl-C", _INTERRUPTED)
    except EvenkeelError as error:
        if os.environ.get(_TRACEBACK):
            raise
        return _failed(printable(str(error)), error.exit_code)
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        return _failed(
            f"internal error: {in_one_line(error)}; set {_TRACEBACK}=1 to see where", EvenkeelError.exit_code
        )


def _failed(message: str, code: int) -> int:
    print(f"evenkeel: {message}", file=sys.stderr)
    return code
