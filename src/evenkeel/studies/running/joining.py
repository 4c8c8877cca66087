"""More processes on one machine: each is the command that joins a study, as another machine would type it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO

from ...errors import UsageError

STORAGE_VARIABLE = "EVENKEEL_STORAGE"
"""Where studies are kept, for a command without --storage. A URL may hold a password, and anybody can read a
process's command line."""


class Helpers:
    """Further processes of this machine that work on one study; none where count is 0 or below.

    words: of the command that joins the study. environment: what it finds there beside what is in ours. Entering
    raises UsageError where one cannot be started; leaving ends those that still work.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], count: int) -> None:
        self._command = [sys.executable, "-m", "evenkeel", *words, "--jobs", "1", "--parent", str(os.getpid())]
        self._environment = {**os.environ, **environment}
        self._count = count
        self._processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._files = ExitStack()

    def __enter__(self) -> Helpers:
        try:
            for _ in range(self._count):
                errors = self._files.enter_context(TemporaryFile())
                self._processes.append((self._started(errors), errors))
        except OSError as error:
            self._end()
            raise UsageError(
                f"process {len(self._processes) + 2} of {self._count + 1} cannot be started ({error.strerror}); give "
                "fewer --jobs"
            ) from error
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def lost(self) -> list[str]:
        """A line for each way in which some of them ended before the study: killed, or with an error."""
        ended = [_ending(process.returncode, errors) for process, errors in self._processes if process.poll()]
        return [f"{'a worker' if times == 1 else f'{times} workers'} {how}" for how, times in Counter(ended).items()]

    def _started(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        # In a session of its own, so that the terminal's Ctrl-C reaches it through us alone, once.
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        # Until somebody waits for it a dead process looks alive, and its trial taken.
        threading.Thread(target=process.wait, daemon=True).start()
        return process

    def _end(self) -> None:
        for process, _ in self._processes:
            process.terminate()
        try:
            for process, _ in self._processes:
                process.wait()
        finally:  # a second Ctrl-C does not wait for them
            for process, _ in self._processes:
                process.kill()
            self._files.close()


def _ending(code: int, errors: IO[bytes]) -> str:
    """How a process ended, in its own last words where it had some."""
    if code < 0:
        return f"was killed (signal {-code}), and the others went on"
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().rpartition("\n")[2].removeprefix("evenkeel: ")
    return f"ended with exit code {code}, and the others went on{said and f': {said}'}"
