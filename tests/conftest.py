"""Settings that hold for every test."""

from __future__ import annotations

import os

if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Test processes that run side by side share the cores; torch and numba read these when they are first imported.
    threads = str(max(1, (os.cpu_count() or 1) // int(processes)))
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, NUMBA_NUM_THREADS=threads)
