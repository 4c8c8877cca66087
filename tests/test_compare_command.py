"""`evenkeel compare` as it is typed: real processes, real signals, a real store."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli.main import main

TINY = ["depth=1", "d_model=16", "context=16", "attention.heads=2"]
SHORT = ["--steps", "12", "--seeds", "2", "--tuning-trials", "3"]
STUDY = ["compare", "feedforward=relu,swiglu", *TINY, *SHORT]


IGNORED = [
    ["--like", "model"],
    ["--match", "flops"],
    ["--baseline", "relu"],
    ["--budget", "1h"],
    ["--steps", "3"],
    ["--tuning-trials", "3"],
    ["--learning-rates", "1e-3", "1e-2"],
]
"""Options of a study, which one that was begun has for good."""


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

    third = ["--storage", str(tmp_path / "three.sqlite"), "--jobs", "1"]  # with all pairs, and judged otherwise
    assert main(["compare", "--from", str(more), *third, "--margin", "9", "--out", str(out)]) == 0
    again, report = json.loads(out.read_text()), capsys.readouterr().out
    assert losses(again) == losses(after) and again["study"]["seeds"] == 3
    assert again["verdicts"][0]["verdict"] == "tie" and "began with other margin" in report.replace("\n      ", " ")
    assert main(["compare", "--from", str(more), *third, "--seeds", "2"]) == 0
    assert "2 finished trials of pairs beyond the 2" in capsys.readouterr().out.replace("\n      ", " ")


def test_an_export_of_other_data_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, where = tmp_path / "study.json", ["--storage", str(tmp_path / "one.sqlite"), "--jobs", "1"]
    assert main([*STUDY, *where, "--out", str(out)]) == 0
    before = (tmp_path / "one.sqlite").read_bytes()
    document = json.loads(out.read_text())
    document["data"]["digest"] = "another"
    out.write_text(json.dumps(document))
    capsys.readouterr()
    assert main(["compare", "--from", str(out), *where]) == 2
    assert "was begun with 12 steps" in capsys.readouterr().err
    assert (tmp_path / "one.sqlite").read_bytes() == before


def test_a_study_is_gone_on_with_where_its_data_moved(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("some words of text\n" * 400)
    where = ["--storage", str(tmp_path / "one.sqlite"), "--jobs", "1"]
    assert main([*STUDY, *where, "--data", str(tmp_path / "here.txt")]) == 0
    (tmp_path / "here.txt").rename(tmp_path / "there.txt")
    assert main(["compare", "--resume", *where, "--seeds", "3"]) == 3
    assert main(["compare", "--resume", *where, "--seeds", "3", "--data", str(tmp_path / "there.txt")]) == 0
    (tmp_path / "there.txt").write_text("other words of text\n" * 400)
    assert main(["compare", "--resume", *where, "--data", str(tmp_path / "there.txt")]) == 2


def test_what_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert main(["compare", "--from", str(path)]) == 2
    assert "is no exported comparison" in capsys.readouterr().err


def test_a_command_killed_at_random_ends_as_if_it_never_was(tmp_path: Path) -> None:
    words = [*STUDY, "--steps", "50"]
    outs = [tmp_path / f"{name}.json" for name in ("whole", "killed")]
    subprocess.run(command(*words, "--storage", str(tmp_path / "whole.sqlite"), "--out", str(outs[0])), check=True)
    where, drawn = str(tmp_path / "killed.sqlite"), random.Random(7)
    again = command(*words, "--storage", where, "--jobs", "2", "--out", str(outs[1]))
    for _ in range(3):
        _kill_in_a_trial(again, where, more_done=drawn.randrange(3), seconds=drawn.uniform(0, 0.2))
        assert not outs[1].exists()
    subprocess.run(again, check=True)
    whole, killed = (json.loads(out.read_text()) for out in outs)
    assert kept(killed) == kept(whole)
    assert len(killed["results"]) == len(kept(killed))


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """What a point's trial came to and by what way, whenever it ran."""
    return {
        json.dumps(item["point"]): {name: item[name] for name in ("loss", "evaluations", "hashes")}
        for item in document["results"]
    }


def _kill_in_a_trial(words: list[str], where: str, *, more_done: int, seconds: float) -> None:
    """Run a command until so many more trials are done, then so long; and kill it while it has a trial of its own."""
    done = _count(where, "state = 'COMPLETE'")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while _count(where, "state = 'COMPLETE'") < done + more_done or not _at_work(where, process.pid):
        assert not _ended(process), "it ended before it was killed"
    assert not _ended(process, seconds), "it ended before it was killed"
    while True:  # halted first: what is seen of it then is so when it is killed
        assert not _ended(process), "it ended before it was killed"
        process.send_signal(signal.SIGSTOP)
        if _at_work(where, process.pid):
            break
        process.send_signal(signal.SIGCONT)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert _at_work(where, process.pid)


def _ended(process: subprocess.Popen[Any], seconds: float = 0.02) -> bool:
    """Whether a process ends in so short a time, which leaves the cores to it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def _at_work(where: str, number: int) -> bool:
    return number in _workers(where)


def _workers(where: str) -> set[int]:
    """Numbers of the processes that have a trial."""
    question = "select value_json from trial_user_attributes join trials using (trial_id) where state = 'RUNNING'"
    return {int(json.loads(name).split("-")[1]) for (name,) in _asked(where, f"{question} and key = 'worker'")}


def _count(where: str, condition: str) -> int:
    return len(_asked(where, f"select trial_id from trials where {condition}"))


def _asked(where: str, question: str) -> list[tuple[Any, ...]]:
    """Rows of a store; none where it is not there yet, or is being written."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{where}?mode=ro", uri=True)) as connection:
            return connection.execute(question).fetchall()
    except sqlite3.OperationalError:
        return []


def test_a_killed_worker_stops_nobody_else_and_is_told_at_the_end(tmp_path: Path) -> None:
    where, out = str(tmp_path / "study.sqlite"), tmp_path / "study.json"
    words = [*STUDY, "--steps", "600", "--storage", where, "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (others := _workers(where) - {process.pid}):
        assert not _ended(process)
    (other,) = others
    about = Path(f"/proc/{other}/cmdline")
    assert not about.exists() or where.encode() not in about.read_bytes()  # a URL may hold a password
    os.kill(other, signal.SIGKILL)
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "undecided" in told or "better" in told or "worse" in told or "tie" in told
    assert errors.count("\n") == 1 and "a worker was killed (signal 9)" in errors
    document = json.loads(out.read_text())
    assert document["wanted"] == 0 and len(document["results"]) == len(losses(document))


def test_ctrl_c_leaves_a_partial_report_and_the_command_that_goes_on(tmp_path: Path) -> None:
    where = str(tmp_path / "study.sqlite")
    words = ["compare", "feedforward=relu,swiglu", *TINY, "--steps", "4000", "--seeds", "2", "--storage", where]
    process = subprocess.Popen(
        command(*words, "--jobs", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoints = Path(os.environ["EVENKEEL_CACHE"], "checkpoints")
    while not _at_work(where, process.pid):
        assert not _ended(process)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "partial" in out
    stopping, stopped = errors.splitlines()
    assert "stopping at the next step; Ctrl-C again stops at once" in stopping
    assert f"evenkeel compare --resume --storage {where}" in stopped
    assert list(checkpoints.rglob("*.pt"))  # what the trial had is kept


def test_a_storage_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_STORAGE", str(tmp_path / "study.sqlite"))
    assert main([*STUDY, "--jobs", "1", "--name", "mine"]) == 0
    assert main(["compare", "--resume", "--name", "mine", "--storage", str(tmp_path / "study.sqlite")]) == 0
    assert main(["compare", "--resume", "--name", "mine", "--storage", str(tmp_path / "other.sqlite")]) == 2


def test_a_worker_for_another_process_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--resume", "--storage", str(tmp_path / "study.sqlite")]
    assert main([*STUDY, *words[2:], "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main([*words, "--seeds", "3", "--parent", str(os.getppid())]) == 0
    assert capsys.readouterr().out == ""
    assert main([*words, "--seeds", "3", "--export", "csv"]) == 0
    seeds = [row["seed"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["role"] == "paired"]
    assert sorted(set(seeds)) == ["0", "1", "2"]  # its work was done


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVENKEEL_STORAGE", raising=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["feedforward=relu,gelo"], "did you mean 'gelu'"),
        (["attention.scal=sqrt,none"], "did you mean 'attention.scale'"),
        (["feedforward=relu,gelu", "--match", "flop"], "did you mean 'flops'"),
        (["feedforward=relu"], "at least two arms"),
        (["feedforward=relu,gelu", "--budget", "1s"], "give --budget"),
        (["feedforward=relu,gelu", "--baseline", "rel"], "did you mean 'relu'"),
        (["feedforward=relu,gelu", "--device", "foo"], "give cpu, or a device of this machine"),
        (["feedforward=relu,gelu", "--device", "meta"], "give cpu, or a device of this machine"),
        (["feedforward=relu,gelu", "--jobs", "0"], "must be at least 1"),
        (["feedforward=relu,gelu", "--name", "mine"], "name its file or URL"),
        (["--resume"], "--storage"),
        (["--resume", "--from", "study.json", "--storage", "s.sqlite"], "leave one of them out"),
        (["--from", "study.json", "depth=2,4"], "depth=2,4 would be ignored"),
        *((["--from", "study.json", *option], f"{option[0]} would be ignored") for option in IGNORED),
        *((["--resume", "--storage", "s.sqlite", *option], f"{option[0]} would be ignored") for option in IGNORED),
        (["feedforward=relu,gelu", "--steps", "20", "--budget", "1m"], "each says how long a trial is"),
        (["feedforward=relu,gelu", "--export", "csv", "--methods"], "add --out FILE"),
        (["feedforward=relu,gelu", "--storage", "."], "no file in an existing folder"),
        (["feedforward=relu,gelu", *["--contrast", "gelu", "relu"] * 2], "is asked twice"),
        ([], "nothing is compared"),
    ],
)
def test_a_wrong_study_is_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("text", ["", " \n", "few words"])
def test_data_without_enough_text_is_one_line_and_exit_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(text)
    assert main([*STUDY, "--data", str(tmp_path / "text.txt"), "--storage", str(tmp_path / "study.sqlite")]) == 2
    told = capsys.readouterr().err
    assert "give more text" in told and told.count("\n") == 1
    assert not (tmp_path / "study.sqlite").exists()


def test_help_names_every_export() -> None:
    from evenkeel.cli import compare
    from evenkeel.studies import EXPORTS

    assert sorted(EXPORTS) == sorted(compare._EXPORTS)


def test_the_command_lets_change_what_a_study_lets_change() -> None:
    from evenkeel.cli import compare
    from evenkeel.studies.study import MAY_CHANGE

    assert {{"contrast": "contrasts"}.get(name, name) for name in compare._CHANGES} == set(MAY_CHANGE)


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
