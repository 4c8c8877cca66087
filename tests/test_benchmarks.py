"""The benchmarks run at a small size: every way of looking inside still works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL_RUNS = {
    "attention": "--rounds 1 --length 32 --threads 1",
    "gates": "--rounds 1 --shape 4 64 --threads 1",
    "losses": "--rounds 1 --shape 8 16 50 --threads 1 --no-compile",
    "softmax": "--rounds 1 --vocabularies 100 --rows 2 --threads 1",
    "tensor_statistics": "--rounds 1 --shape 16 32 --threads 1",
}
SMALL = {"rounds": 1, "layers": 1, "width": 32, "heads": 2, "vocabulary": 64, "tokens": 16, "batch": 2}


def test_watching_prints_a_row_of_ratios_for_each_way() -> None:
    script = BENCHMARKS / "watch.py"
    options = [item for name, value in SMALL.items() for item in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^│ (.+?) +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        "bare",
        "evenkeel.watch, every step",
        "evenkeel.watch, every step, with update ratios",
        "evenkeel.watch, a step not due",
        'wandb.watch(log="all"), every step',
        "eager, output_attentions, hooks",
        "evenkeel.watch, every 50 steps*",
    ]
    assert rows[0][3:] == ("1.00", "1.00")
    assert "2 threads" in done.stdout


@pytest.mark.parametrize("name", SMALL_RUNS)
def test_every_contest_prints_its_table(name: str) -> None:
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1"
    }  # compiled peers run uncompiled here: it is the table that counts
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL_RUNS[name].split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ .*(evenkeel|statistics).* │ +[\d.]+ │ +[\d.]+ │", done.stdout), done.stdout
