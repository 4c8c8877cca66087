"""Kernels on a user's machine: their cache, their absence, their threads, and what `evenkeel doctor` says of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evenkeel.functional import OPERATORS, silu
from evenkeel.kernels.cpu._spread import spread
from evenkeel.kernels.cpu._threads import Division, as_called_here, in_parallel

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
x = torch.linspace(-3, 3, 1000)
print([ek.functional.gated(x, x + 1, name).double().sum().item() for name in {names}])
"""
    names = ("relu", "sigmoid", "silu", "tanh", "mish")
    alone = [python(code.format(names=[name]), EVENKEEL_CACHE_DIR=str(tmp_path / name))[0] for name in names]
    for name in names:
        python(code.format(names=[name]), EVENKEEL_CACHE_DIR=str(tmp_path))
    found = python(code.format(names=names), EVENKEEL_CACHE_DIR=str(tmp_path))
    assert "".join(found) == f"[{','.join(one.strip('[]') for one in alone)}]"


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
        in_parallel(lambda start, stop: results.append(silu(x)), 2)
        assert all(torch.equal(result, silu(x)) for result in results)
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
found = ek.functional.softmax(x), ek.functional.attention(*torch.randn(3, 1, 4, 600, 16))
print(bool(seen))
torch.set_num_threads(1)
print(torch.equal(found[0], ek.functional.softmax(x)), bool(found[1].isfinite().all()))
"""
    assert python(code, EVENKEEL_CACHE_DIR=str(tmp_path)) == ["True"] * 3


def test_a_kernel_without_memory_says_so():
    @spread
    def greedy(start, stop, out, size):
        out[start] = np.empty(size)[start]

    out = np.zeros(4)
    greedy(Division(4, 1, 2), out, 4)
    with pytest.raises(MemoryError, match="fewer rows"):
        greedy(Division(4, 1, 2), out, 2**50)
