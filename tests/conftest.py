"""Settings that hold for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same examples each time, so that a change is judged by what it changed; `make fuzz` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Test processes that run side by side share the cores; torch and numba read these when they are first imported.
    threads = str(max(1, (os.cpu_count() or 1) // int(processes)))
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, NUMBA_NUM_THREADS=threads)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN, so that what is never written shows."""
    import torch  # after the environment above is set

    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    settings.fill_uninitialized_memory = before[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A small tensor is no work for two threads, least of all where test processes run side by side."""
    from evenkeel import training

    with training.one_thread():
        yield
