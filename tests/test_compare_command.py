"""`evenkeel compare` as it is typed: real processes, real signals, a real store."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli.main import main

TINY = ["depth=1", "d_model=16", "context=16", "attention.heads=2"]
SHORT = ["--steps", "12", "--seeds", "2", "--tuning-trials", "3"]
STUDY = ["compare", "feedforward=relu,swiglu", *TINY, *SHORT]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "evenkeel", *words]


def losses(document: dict[str, Any]) -> dict[str, float]:
    return {json.dumps(item["point"]): item["loss"] for item in document["results"]}


def test_a_study_is_run_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, out = str(tmp_path / "study.sqlite"), tmp_path / "study.json"
    assert main([*STUDY, "--storage", where, "--jobs", "1", "--out", str(out), "--methods"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    document = json.loads(out.read_text())
    assert document["wanted"] == 0 and document["finished"]
    for loss in document["arms"][0]["losses"].values():
        assert f"{loss:.3f}" in told
    assert "Student 1908" in told
    verdict = document["verdicts"][0]
    ours = document["arms"][1]["losses"]
    assert verdict["differences"] == {
        seed: pytest.approx(ours[seed] - loss) for seed, loss in document["arms"][0]["losses"].items()
    }

    assert main([*STUDY, "--storage", where, "--export", "csv"]) == 0  # the same command finds it done
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(document["results"])


def test_an_export_is_gone_on_with_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, more = tmp_path / "study.json", tmp_path / "more.json"
    assert main([*STUDY, "--storage", str(tmp_path / "one.sqlite"), "--jobs", "1", "--out", str(out)]) == 0
    elsewhere = ["--storage", str(tmp_path / "two.sqlite"), "--jobs", "1"]
    assert main(["compare", "--from", str(out), *elsewhere, "--seeds", "3", "--out", str(more)]) == 0
    before, after = json.loads(out.read_text()), json.loads(more.read_text())
    assert losses(before).items() < losses(after).items()
    assert len(after["results"]) == len(before["results"]) + len(before["arms"])
    assert "began with 2 pairs and has 3" in capsys.readouterr().out.replace("\n      ", " ")


def test_what_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert main(["compare", "--from", str(path)]) == 2
    assert "is no exported comparison" in capsys.readouterr().err


def test_a_killed_command_typed_again_ends_with_the_same_losses(tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.json" for name in ("whole", "killed")]
    subprocess.run(command(*STUDY, "--storage", str(tmp_path / "whole.sqlite"), "--out", str(outs[0])), check=True)
    again = command(*STUDY, "--storage", str(tmp_path / "killed.sqlite"), "--jobs", "2", "--out", str(outs[1]))
    process = subprocess.Popen(again, stdout=subprocess.DEVNULL)
    while not (tmp_path / "killed.sqlite").exists() and process.poll() is None:
        os.sched_yield()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(again, check=True)
    whole, killed = (json.loads(out.read_text()) for out in outs)
    assert losses(whole) == losses(killed)
    assert len(killed["results"]) == len(losses(killed))


def test_ctrl_c_leaves_a_partial_report_and_the_command_that_goes_on(tmp_path: Path) -> None:
    where = str(tmp_path / "study.sqlite")
    words = ["compare", "feedforward=relu,swiglu", *TINY, "--steps", "4000", "--seeds", "2", "--storage", where]
    process = subprocess.Popen(
        command(*words, "--jobs", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoints = Path(os.environ["EVENKEEL_CACHE"], "checkpoints")
    while not Path(where).exists() or not _running(where):
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "partial" in out
    assert f"evenkeel compare --resume --storage {where}" in errors
    assert list(checkpoints.rglob("*.pt"))  # what the trial had is kept


def _running(where: str) -> bool:
    import sqlite3

    try:
        with sqlite3.connect(where) as connection:
            return bool(connection.execute("select count(*) from trials where state = 'RUNNING'").fetchone()[0])
    except sqlite3.OperationalError:
        return False


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["feedforward=relu,gelo"], "did you mean 'gelu'"),
        (["attention.scal=sqrt,none"], "did you mean 'attention.scale'"),
        (["feedforward=relu,gelu", "--match", "flop"], "did you mean 'flops'"),
        (["feedforward=relu"], "at least two arms"),
        (["feedforward=relu,gelu", "--budget", "1s"], "give --budget"),
        (["feedforward=relu,gelu", "--baseline", "rel"], "did you mean 'relu'"),
        (["--resume"], "--storage"),
        ([], "nothing is compared"),
    ],
)
def test_a_wrong_study_is_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not list((tmp_path / "cache").rglob("*.pt"))


def test_help_names_every_export() -> None:
    from evenkeel.cli import compare
    from evenkeel.studies import EXPORTS

    assert sorted(EXPORTS) == sorted(compare._EXPORTS)


def test_a_resumed_study_that_is_another_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / "study.sqlite")
    assert main([*STUDY, "--storage", where, "--jobs", "1"]) == 0
    capsys.readouterr()
    before = Path(where).read_bytes()
    other = ["compare", "feedforward=relu,gelu", *TINY, *SHORT]
    assert main([*other, "--storage", where]) == 2
    assert "is another one (arms: " in capsys.readouterr().err
    assert Path(where).read_bytes() == before


def test_a_resumed_study_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--resume", "--storage", str(tmp_path / "none.sqlite")]) == 2
    assert "there is no study 'compare'" in capsys.readouterr().err
    assert not (tmp_path / "none.sqlite").exists()
