"""Kernels on several cores: on torch's own threads, so that no second pool spins beside it."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_PARTS = 2  # per thread: a core that is busy elsewhere then holds up half of its share
_ALIGNED = 64  # elements; parts begin where vectors do
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parallel(function: Callable[[int, int], object], count: int, least: int) -> None:
    """Call function(start, stop) for parts that cover range(count), on torch.get_num_threads() threads.

    least: the smallest part worth a thread. Serial for few items and inside a parallel region. The function should go
    straight into a kernel or another call that releases the interpreter's lock (of torch: see as_called_here). What it
    raises is raised here.
    """
    threads = min(torch.get_num_threads(), count // max(1, least))
    if threads <= 1 or _inside():
        if count:
            function(0, count)
        return
    size = max(least, -(-count // (_PARTS * threads)))
    if size > _ALIGNED:
        size = -(-size // _ALIGNED) * _ALIGNED
    starts = iter(range(0, count, size))
    failures: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            for start in starts:  # a range's iterator hands out each start once, to whichever thread asks
                function(start, min(count, start + size))
        except BaseException as failure:  # nothing may leave through C
            failures.append(failure)

    _run(work, threads)
    if failures:
        raise failures[0]


def as_called_here(function: Callable[[int, int], object]) -> Callable[[int, int], object]:
    """The function in the caller's inference mode and without gradients: to torch these are settings of each thread."""
    inference = torch.is_inference_mode_enabled()

    def run(start: int, stop: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            function(start, stop)

    return run


def over_elements(kernel: Callable[..., None], least: int, *tensors: torch.Tensor) -> None:
    """Call a kernel over the elements of contiguous tensors of one size, the results among them."""
    from ._compile import as_array  # here: threads are wanted where numba is not

    arrays = [as_array(tensor).reshape(-1) for tensor in tensors]
    in_parallel(lambda start, stop: kernel(*(array[start:stop] for array in arrays)), arrays[0].size, least)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch itself is linked with, as seen through torch; None where it has another."""
    try:
        library = ctypes.CDLL(torch._C.__file__)
        library.GOMP_parallel.argtypes = (_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
        library.omp_in_parallel.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


def _inside() -> bool:
    library = _openmp()
    return library is not None and bool(library.omp_in_parallel())


def _run(work: Callable[..., None], threads: int) -> None:
    library = _openmp()
    if library is None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in itertools.repeat(None, threads):
                pool.submit(work)
    else:
        library.GOMP_parallel(_CALLBACK(work), None, threads, 0)
