"""A range shared among torch's own threads, so that no second pool spins beside it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch

_PARTS = 2  # per thread: a core that is busy elsewhere then holds up half of its share
_ALIGNED = 64  # elements; parts begin where vectors do
_LEAST = 2**15  # elements of rows worth a thread
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PARALLEL = ctypes.CFUNCTYPE(None, _WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


class Division(NamedTuple):
    """How range(length) is cut: into parts of a size, the last perhaps shorter, for a team of so many threads."""

    length: int
    size: int
    threads: int

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.length // self.size)


def divided(length: int, least: int) -> Division:
    """In parts of `least` or more for all of torch's threads; in one part for few, and in a parallel region.

    Always for all: a smaller team would make OpenMP end the other threads, and torch's next operation start them anew.
    """
    threads = torch.get_num_threads()
    if threads == 1 or length < 2 * least or _inside():
        return Division(length, max(1, length), 1)
    size = max(least, -(-length // (_PARTS * threads)))
    if size > _ALIGNED:
        size = -(-size // _ALIGNED) * _ALIGNED
    return Division(length, size, threads)


def divided_rows(rows: torch.Tensor) -> Division:
    """For the rows of a tensor (rows, V)."""
    return divided(rows.shape[0], max(1, _LEAST // max(1, rows.shape[1])))


def in_parallel(function: Callable[[int, int], object], count: int) -> None:
    """Call function(start, stop) for parts that cover range(count), each on one of torch's threads.

    For work that calls torch (see as_called_here); what is a kernel alone is spread without Python. What the function
    raises is raised here.
    """
    _, size, threads = divided(count, 1)
    if threads == 1:
        if count:
            function(0, count)
        return
    starts = iter(range(0, count, size))
    failures: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            for start in starts:  # a range's iterator hands out each start once, to whichever thread asks
                function(start, min(count, start + size))
        except BaseException as failure:  # nothing may leave through C
            failures.append(failure)

    parallel()(_WORK(work), None, threads, 0)
    if failures:
        raise failures[0]


def as_called_here(function: Callable[[int, int], object]) -> Callable[[int, int], object]:
    """The function in the caller's inference mode and without gradients: to torch these are settings of each thread."""
    inference = torch.is_inference_mode_enabled()

    def run(start: int, stop: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            function(start, stop)

    return run


@cache
def parallel() -> Any:
    """A C function (work, data, threads, flags) that calls work(data) on so many threads.

    That of the OpenMP library that torch itself is linked with, as seen through torch, or threads of our own where
    torch has another.
    """
    library = _openmp()
    if library is None:
        return _PARALLEL(_on_own_threads)
    return ctypes.cast(library.GOMP_parallel, _PARALLEL)


def _on_own_threads(work: Callable[[Any], None], data: Any, threads: int, flags: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        with contextlib.suppress(RuntimeError):  # no more threads to be had: those that there are do all of it
            for _ in range(threads - 1):
                pool.submit(work, data)
        work(data)


@cache
def _openmp() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(torch._C.__file__)
        library.omp_in_parallel.restype = ctypes.c_int
        return library if library.GOMP_parallel else None
    except (OSError, AttributeError):
        return None


def _inside() -> bool:
    library = _openmp()
    return library is not None and bool(library.omp_in_parallel())
