"""More processes on one machine: each is the command that joins a study, as another machine would type it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from tempfile import TemporaryFile
from typing import IO

from ..errors import EvenkeelError


class Helpers:
    """Further processes of this machine that work on one study. words: of the command that joins it."""

    def __init__(self, words: Sequence[str], count: int) -> None:
        self._words, self._count = words, count
        self._processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Helpers:
        command = [sys.executable, "-m", "evenkeel", *self._words, "--jobs", "1", "--parent", str(os.getpid())]
        for _ in range(self._count):
            errors = TemporaryFile()
            # In a session of its own, so that the terminal's Ctrl-C reaches it through us alone, once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            self._processes.append((process, errors))
        return self

    def __exit__(self, *error: object) -> None:
        for process, errors in self._processes:
            process.terminate()
            process.wait()
            errors.close()

    def failed(self) -> bool:
        """Whether one of them ended with an error."""
        return any(process.poll() not in (None, 0) for process, _ in self._processes)

    def check(self) -> None:
        """Raises EvenkeelError with the last words of one that failed."""
        for process, errors in self._processes:
            if process.poll() not in (None, 0):
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise EvenkeelError(
                    f"a worker ended with {process.returncode}: {said.removeprefix('evenkeel: ') or 'it was killed'}; "
                    "the same command goes on"
                )
