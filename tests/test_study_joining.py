"""Further processes that work on a study: started together, told of when they are lost, and gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evenkeel.studies.running.joining import STORAGE_VARIABLE, Helpers

NO_STORAGE = ["compare", "--resume"]  # ends at once, with exit code 2


def test_a_process_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    with Helpers(NO_STORAGE, {}, 2) as helpers:
        while not any(line.startswith("2 workers") for line in helpers.lost()):
            os.sched_yield()
        (line,) = helpers.lost()
    assert line.startswith("2 workers ended with exit code 2") and "--resume goes on with a study" in line


def test_a_process_that_is_killed_is_told_and_no_other_is_left_behind(tmp_path: Path) -> None:
    words = (
        "compare feedforward=relu,gelu depth=1 d_model=16 context=16 attention.heads=2 --steps 100 --seeds 2".split()
    )
    with Helpers(words, {"EVENKEEL_CACHE": str(tmp_path)}, 2) as helpers:
        assert helpers.lost() == []
        first, second = (process for process, _ in helpers._processes)
        first.send_signal(signal.SIGKILL)
        while first.poll() is None:
            os.sched_yield()
        assert helpers.lost() == ["a worker was killed (signal 9), and the others went on"]
    assert second.returncode in (-signal.SIGTERM, 130)  # it did not end by itself


def test_a_dead_process_is_no_zombie_while_nobody_asks() -> None:
    """Its number is free again, so that its trial is seen to be."""
    with Helpers(NO_STORAGE, {}, 1) as helpers:
        number, begun = helpers._processes[0][0].pid, time.monotonic()
        with pytest.raises(ProcessLookupError):
            while time.monotonic() - begun < 60:
                os.kill(number, 0)
                os.sched_yield()


def test_a_storage_is_told_through_the_environment() -> None:
    with Helpers(NO_STORAGE, {STORAGE_VARIABLE: "/nowhere/at/all.sqlite"}, 1) as helpers:
        while not helpers.lost():
            os.sched_yield()
        assert "there is no study 'compare' in /nowhere/at/all.sqlite" in helpers.lost()[0]


@pytest.mark.parametrize("count", [0, -1])
def test_there_may_be_none(count: int) -> None:
    with Helpers(NO_STORAGE, {}, count) as helpers:
        assert helpers._processes == [] and helpers.lost() == []


def test_where_one_cannot_be_started_none_is_left() -> None:
    code = """if True:
        import os, resource
        from evenkeel.errors import UsageError
        from evenkeel.studies.running.joining import Helpers

        used = max(map(int, os.listdir("/dev/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
        helpers = Helpers(["doctor"], {}, 40)
        try:
            with helpers:
                print("all were started")
        except UsageError as error:
            print(error)
        print(len(helpers._processes) > 1, all(process.returncode is not None for process, _ in helpers._processes))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told, ended = done.stdout.splitlines()
    assert "of 41 cannot be started (Too many open files); give fewer --jobs" in told
    assert ended == "True True", done.stderr
