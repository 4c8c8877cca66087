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
    "generation": "--rounds 1 --layers 1 --width 16 --vocabulary 64 --tokens 2 --threads 1",
    "losses": "--rounds 1 --shape 8 16 50 --threads 1 --no-compile",
    "recurrence": "--rounds 1 --length 3 --sizes 2x8 --threads 1",
    "softmax": "--rounds 1 --vocabularies 100 --rows 2 --threads 1",
    "tensor_statistics": "--rounds 1 --shape 16 32 --threads 1",
    "transformer": "--rounds 1 --layers 1 --width 16 --vocabulary 64 --length 16 --tokens 2 --threads 1 --no-products",
}
SAMPLING = "--rounds 1 --vocabularies 2048 --rows 2 --filters 2048 --dtypes bfloat16 --exactness 2 --threads 1"
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


def printed(name: str, options: str) -> str:
    """What a benchmark prints; compiled peers run uncompiled here: it is the table that counts."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options.split()]
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SMALL_RUNS)
def test_every_contest_prints_its_table(name: str) -> None:
    output = printed(name, SMALL_RUNS[name])
    assert re.search(r"│ .*(evenkeel|statistics).* │ +[\d.]+ │ +[\d.]+ │", output), output


def test_sampling_prints_exactness_ratios_and_memory() -> None:
    output = printed("sampling", SAMPLING)

    def row(start: str) -> list[str]:
        (cells,) = re.findall(rf"^│ {start} +│ (.+) │$", output, re.MULTILINE)
        return [cell.strip() for cell in cells.split("│")]

    rows = re.findall(r"^│ (evenkeel|torch, top 1024) +│ (.+ of .+) │$", output, re.MULTILINE)
    supports = {name: [cell.strip() for cell in cells.split("│")] for name, cells in rows}
    assert supports["evenkeel"] == ["0 of 2"] * 5
    assert supports["torch, top 1024"][3:] == ["2 of 2"] * 2  # the nucleus of flat logits has more tokens
    assert all(re.fullmatch(r"[\d.]+ [\d.]+", cell) for cell in row("transformers ÷ evenkeel")[:5])
    assert len(row("repetition_penalty 1.1")) == 6
    assert len(row("bfloat16: repetition_penalty 1.1")) == 4
