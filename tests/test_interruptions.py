"""Training that is killed, or whose disk is full, loses no finished measurement."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import evenkeel as ek

TRAINING = """
import resource, signal, sys, warnings
import torch
from torch import nn
import evenkeel as ek

torch.set_num_threads(1)
path, limit = sys.argv[1], int(sys.argv[2])
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
watch = ek.watch(model, optimizer=optimizer, every=2, record=path)
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
step = 0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    while not limit or step < 60:
        with watch.step():
            loss = model(torch.randn(4, 8)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.log(loss=loss)
        print(step, flush=True)
        step += 1
    print("warnings", len(caught), *(item.message for item in caught))
    print("diagnosed", len(watch.diagnose().readings), len(watch.record.steps()))
    watch.close()
"""


def start(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(path), str(limit)],
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("last", [0, 5, 12])
def test_a_killed_run_keeps_every_finished_measured_step(tmp_path: Path, last: int) -> None:
    process = start(tmp_path / "run.sqlite")
    assert process.stdout is not None
    finished = -1
    while finished < last:
        finished = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    finished = max([finished, *(int(line) for line in process.stdout.read().split())])
    assert process.wait() == -signal.SIGKILL
    shutil.copy(tmp_path / "run.sqlite", tmp_path / "copy.sqlite")
    for name in ("run", "copy"):
        record = ek.Record.open(tmp_path / f"{name}.sqlite")
        steps = record.steps()
        assert set(steps) >= {step for step in range(finished + 1) if step % 2 == 0}
        for step in steps:  # no step is half written
            assert {item.stat for item in record.readings(step)} >= {"entropy", "input_rms", "update_ratio"} - {
                "entropy"
            }


def test_a_full_disk_gives_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path / "run.sqlite", limit=60_000)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    lines = output.splitlines()
    warned = next(line for line in lines if line.startswith("warnings"))
    assert warned.startswith("warnings 1 ") and "run.sqlite" in warned
    assert lines[59] == "59"
    diagnosed = next(line for line in lines if line.startswith("diagnosed"))
    assert int(diagnosed.split()[-1]) >= 30  # what the file could not take is still in memory


def test_a_path_that_cannot_be_written_gives_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    process = subprocess.run(
        [sys.executable, "-W", "always", "-c", TRAINING, os.fspath(tmp_path / "file" / "run.sqlite"), "10000000"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("RecordWarning") == 1 and "run.sqlite" in process.stderr
    assert process.stdout.splitlines()[59] == "59"
