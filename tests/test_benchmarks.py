"""The benchmarks run at a small size: every way of looking inside still works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SMALL = {"rounds": 1, "layers": 1, "width": 32, "heads": 2, "vocabulary": 64, "tokens": 16, "batch": 2}


def test_watching_prints_a_row_of_ratios_for_each_way() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "watch.py"
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
