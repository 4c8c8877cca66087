"""Kernels on a user's machine: their cache, their absence, their threads, and what `evenkeel doctor` says of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evenkeel.functional import OPERATORS, cross_entropy, silu, softmax
from evenkeel.functional._operators import only_the_kernel_sees
from evenkeel.kernels.cpu import losses as loss_kernels
from evenkeel.kernels.cpu import softmax as softmax_kernels
from evenkeel.kernels.cpu._spread import spread
from evenkeel.kernels.cpu._threads import Division, as_called_here, divided, in_parallel

GELU = """
import torch, evenkeel as ek
from evenkeel.kernels.cpu import activations
x = torch.linspace(-3, 3, 1000)
print(float((ek.functional.gelu(x) - torch.nn.functional.gelu(x)).abs().max()) < 1e-6)
print(sum(activations.forward("gelu", torch.float32).compiled.stats.cache_hits.values()))
"""


def python(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def doctor(*options: str, **environment: str) -> str:
    command = [sys.executable, "-m", "evenkeel", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True).stdout


def test_a_kernel_is_compiled_once_and_then_read_from_disk(tmp_path: Path):
    assert python(GELU, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True", "0"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert python(GELU, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True", "1"]


def test_a_broken_cache_file_is_compiled_anew(tmp_path: Path):
    python(GELU, EVENKEEL_CACHE_DIR=str(tmp_path))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:100])
    assert python(GELU, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True", "0"]
    assert python(GELU, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True", "1"]


def test_kernels_of_several_processes_are_not_mistaken_for_each_other(tmp_path: Path):
    """Closures of one function get one number each, in the order in which a process makes them."""
    code = """
import torch, evenkeel as ek
x = torch.linspace(-3, 3, 1000, requires_grad=True)
y = [ek.functional.gated(x, x + 1, name).sum() for name in {names}]
print([(one.item(), torch.autograd.grad(one, x)[0].sum().item()) for one in y])
"""
    names = ("relu", "sigmoid", "silu", "tanh", "mish")
    alone = [python(code.format(names=[name]), EVENKEEL_CACHE_DIR=str(tmp_path / name)) for name in names]
    for name in names:
        python(code.format(names=[name]), EVENKEEL_CACHE_DIR=str(tmp_path))
    found = python(code.format(names=names), EVENKEEL_CACHE_DIR=str(tmp_path))
    assert "".join(found) == f"[{','.join(''.join(one).strip('[]') for one in alone)}]"


def test_without_a_writable_cache_everything_works(tmp_path: Path):
    blocked = tmp_path / "a file where a directory should be"
    blocked.write_text("")
    assert python(GELU, EVENKEEL_CACHE_DIR=str(blocked)) == ["True", "0"]
    assert "EVENKEEL_CACHE_DIR to a directory that can" in doctor(EVENKEEL_CACHE_DIR=str(blocked))


def test_importing_compiles_nothing_and_does_not_load_numba(tmp_path: Path):
    code = "import sys, evenkeel.functional, evenkeel.nn; print('numba' in sys.modules)"
    assert python(code, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["False"]
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("how", ("a switch", "no numba"))
def test_without_kernels_torch_does_the_work(how: str, tmp_path: Path):
    environment = {"EVENKEEL_KERNELS": "off"}
    if how == "no numba":
        (tmp_path / "numba.py").write_text("raise ImportError('not for this platform')")
        environment = {"PYTHONPATH": str(tmp_path)}
    code = GELU.partition("print(sum")[0].replace("from evenkeel.kernels.cpu import activations\n", "")
    assert python(code, **environment) == ["True"]
    found = json.loads(doctor("--format", "json", **environment))
    assert not found["kernels"]["available"]
    assert {path for paths in found["functions"].values() for path in paths["cpu"].values()} == {"torch"}


def test_the_doctor_names_every_operator_and_its_paths():
    found = json.loads(doctor("--format", "json"))
    importlib.import_module("evenkeel.instruments")
    assert set(found["functions"]) == set(OPERATORS)
    assert found["functions"]["pointwise"]["cpu"] == {
        "float32": "kernel",
        "bfloat16": "kernel",
        "float16": "kernel",
        "float64": "torch",
    }
    text = doctor()
    platform, *lines = (line for line in text.splitlines() if found["kernels"]["cache"] not in line)
    assert all(len(line) <= 80 for line in lines) and "pointwise" in text
    assert found["platform"] in platform


def test_parts_cover_everything_once_and_errors_come_out():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for count in (0, 1, 7, 1000, 4096):
                seen: list[int] = []
                in_parallel(lambda start, stop, seen=seen: seen.extend(range(start, stop)), count)
                assert sorted(seen) == list(range(count))
        with pytest.raises(ZeroDivisionError):
            in_parallel(lambda start, stop: 1 // 0, 1000)
    finally:
        torch.set_num_threads(before)


def test_threads_are_in_the_callers_inference_mode():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for setting in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with setting:
                memory = torch.zeros(4, 100)
                in_parallel(as_called_here(lambda start, stop, memory=memory: memory[start:stop].add_(1)), 4)
                assert torch.equal(memory, torch.ones(4, 100))
    finally:
        torch.set_num_threads(before)


def test_a_kernel_inside_another_parallel_region_runs_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        x = torch.randn(100_000)
        results: list[torch.Tensor] = []
        teams: list[int] = []
        in_parallel(lambda start, stop: (results.append(silu(x)), teams.append(divided(10**6, 1).threads)), 2)
        assert all(torch.equal(result, silu(x)) for result in results)
        assert teams == [1, 1] and divided(10**6, 1).threads == 2
    finally:
        torch.set_num_threads(before)


def test_without_torchs_openmp_threads_of_our_own_do_the_work(tmp_path: Path):
    code = """
import threading, torch
from evenkeel.kernels.cpu import _threads
_threads._openmp = lambda: None
seen = set()
pool = _threads.ThreadPoolExecutor
class Watched(pool):
    def submit(self, work, *arguments):
        def watched():
            seen.add(threading.current_thread().name)
            work(*arguments)
        return super().submit(watched)
_threads.ThreadPoolExecutor = Watched
import evenkeel as ek
torch.set_num_threads(3)
x = torch.randn(7, 30_000)
found = ek.functional.softmax(x)
print(bool(seen))
seen.clear()
attended = ek.functional.attention(*torch.randn(3, 1, 4, 600, 16), softcap=5.0)
print(bool(seen), bool(attended.isfinite().all()))
def refused(self, work, *arguments):
    raise RuntimeError("cannot start new thread")
Watched.submit = refused
print(torch.equal(found, ek.functional.softmax(x)))
torch.set_num_threads(1)
print(torch.equal(found, ek.functional.softmax(x)))
"""
    assert python(code, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True"] * 5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_small_kernel_leaves_torchs_threads_alive():
    code = """
import os, torch, evenkeel as ek
torch.set_num_threads(4)
small, large = torch.randn(2**15), torch.randn(400_000)
ek.functional.silu(small), large.add(large)
before = set(os.listdir("/proc/self/task"))
for _ in range(20):
    ek.functional.silu(small), large.add(large)
print(set(os.listdir("/proc/self/task")) == before)
"""
    assert python(code) == ["True"]


def test_a_kernel_without_memory_says_so():
    @spread
    def greedy(start, stop, out, size):
        out[start] = np.empty(size)[start]

    out = np.zeros(4)
    greedy(Division(4, 1, 2), out, 4)
    with pytest.raises(MemoryError, match="fewer rows"):
        greedy(Division(4, 1, 2), out, 2**50)


def test_every_kind_of_number_meets_the_same_kernel():
    x, target = torch.randn(3, 50), torch.tensor([1, 2, 3])
    numbers: tuple[Any, ...] = (1.0, 1, np.float32(1), np.float64(1), torch.tensor(1.0))
    found = [softmax(x, temperature=number) for number in numbers]
    found += [cross_entropy(x, target, temperature=number, z_loss=number, reduction="none") for number in numbers]
    assert len({tuple(one.reshape(-1).tolist()) for one in found}) == 2
    kernels = softmax_kernels._softmax.compiled, loss_kernels._gather.compiled
    assert all({signature[-1][-2] for signature in kernel.signatures} == {numba.float64} for kernel in kernels)


class Wrapped(torch.Tensor):
    """A subclass that torch dispatches as it does any tensor."""


class Listening(TorchDispatchMode):
    """Sees every operator and does nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def under(context: Callable[[], AbstractContextManager[object]]) -> Callable[..., object]:
    def call(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> object:
        with context():
            return f(x)

    return call


@pytest.mark.parametrize(
    ("call", "alone"),
    [
        (lambda f, x: f(x), True),
        (lambda f, x: f(torch.nn.Parameter(x)), True),
        (under(torch.inference_mode), True),
        (under(Listening), False),
        (under(torch.profiler.profile), False),
        (lambda f, x: torch.jit.trace(f, x, check_trace=False), False),
        (lambda f, x: torch.func.vmap(f)(x[None]), False),
        (lambda f, x: f(x.as_subclass(Wrapped)), False),
        (lambda f, x: f(x.to("meta")), False),
        (lambda f, x: f(torch.ops.aten._neg_view(x)), False),
        (lambda f, x: f(torch.ops.aten._efficientzerotensor([3])), False),
    ],
)
def test_kernels_are_called_directly_only_where_nobody_listens(call: Callable[..., object], alone: bool):
    seen: list[bool] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(only_the_kernel_sees((x, 1.0)))
        return silu(x)

    call(f, torch.randn(3))
    assert seen == [alone]
