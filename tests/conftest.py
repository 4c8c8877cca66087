"""Settings that hold for every test."""

from __future__ import annotations

import os

# Test processes that run side by side share the cores; these are read when torch and numba are first imported.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_threads = str(max(1, (os.cpu_count() or 1) // _processes))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, _threads)
