"""What a call takes of memory once it is warm, from every allocator that a Python program has.

torch tells its own allocations, tracemalloc those of Python and NumPy, and the pages that the system hands out tell
everyone's, compiled code's too: in a process of its own, whose blocks of 16 KiB and more come fresh from the system
and go back when they are freed, a block that is taken in every call costs new pages in every call.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

CALLS = 20
FRESH_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "16384"}
QUIET = {"KINETO_LOG_LEVEL": "5"}  # torch's profiler says on stderr that it starts and stops
NO_HUGE_PAGES = 41  # PR_SET_THP_DISABLE


def in_new_process(command: list[str]) -> str:
    """What a Python script prints in a process where large blocks are always new."""
    if sys.platform != "linux":
        return "memory: measured on Linux only"
    environment = os.environ | FRESH_BLOCKS
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    ).stdout


def measured(call: Callable[[], object]) -> tuple[float, float, float]:
    """KiB: torch's peak, Python's peak, and new pages of a call; what it returns is among them."""
    for _ in range(3):
        call()
    return torch_peak(call) / 1024, python_peak(call) / 1024, new_pages(call) / 1024


def torch_peak(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has handed out in a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "trace.json")
        seen.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def python_peak(call: Callable[[], object]) -> int:
    """The most bytes of Python's objects and NumPy's arrays in a call."""
    tracemalloc.start()
    call()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


def new_pages(call: Callable[[], object]) -> float:
    """Bytes of pages that the process had not, in a call; Linux only."""
    import resource

    ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / CALLS
