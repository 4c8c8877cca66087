"""`evenkeel report` and the options that all commands with a document share."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from documents import DATA, MODEL, block, document, finding

from evenkeel.cli.main import main
from evenkeel.records import Record
from evenkeel.rules import RULES
from evenkeel.schema import Document, StepLog

COMMAND = (sys.executable, "-c", "import sys; from evenkeel.cli.main import main; sys.exit(main())", "report")


def saved(path: Path, given: Document) -> str:
    path.write_text(given.to_json())
    return str(path)


@pytest.fixture
def record(tmp_path: Path) -> str:
    """The record of a model that computes NaN, as the rule for it gives it for an example."""
    example = RULES["NUM601"].firing[0].measurements
    with Record.create(tmp_path / "run.sqlite", MODEL, DATA) as made:
        for step in sorted({item.step for item in example.readings}):
            made.append(step, example.sites, [item for item in example.readings if item.step == step])
    return str(tmp_path / "run.sqlite")


def test_a_record_is_judged_and_an_error_makes_the_exit_code_1(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", record]) == 1
    out = capsys.readouterr().out
    assert "error NUM601" in out and "1.23 M parameters" in out
    assert main(["report", record, "--format", "json"]) == 1
    printed = Document.from_dict(json.loads(capsys.readouterr().out))
    assert "NUM601" in {item.code for item in printed.findings} and printed.model == MODEL
    assert main(["report", record, "--fail-on", "never"]) == 0


def test_a_document_is_drawn_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "d.json", document())
    for fail_on, expected in (("error", 0), ("warning", 1), ("never", 0)):
        assert main(["report", path, "--fail-on", fail_on]) == expected
        assert "! warning ACT101" in capsys.readouterr().out
    assert main(["report", path, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == document().to_dict()


def test_ignored_codes_neither_count_nor_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "d.json", document())
    assert main(["report", path, "--fail-on", "warning", "--ignore", "ACT102, ACT101"]) == 0
    out = capsys.readouterr().out
    assert "no findings; 2 rules passed" in out and "ignored on request: ACT102, ACT101" in out
    assert main(["report", path, "--fail-on", "warning", "--ignore", "ACT102"]) == 1


def test_only_what_a_baseline_lacks_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = document()
    elsewhere = finding("ACT101", block(1)[1])
    now = saved(tmp_path / "now.json", replace(old, findings=(*old.findings, elsewhere)))
    same = saved(tmp_path / "same.json", replace(old, findings=(elsewhere, *old.findings)))
    before = saved(tmp_path / "before.json", old)
    assert main(["report", now, "--fail-on", "warning", "--baseline", same]) == 0
    assert "(new)" not in capsys.readouterr().out
    assert main(["report", now, "--fail-on", "warning", "--baseline", before]) == 1
    headings = [line for line in capsys.readouterr().out.split("\n") if line.startswith("! warning")]
    assert [line.endswith("(new)") for line in headings] == [False, True]
    assert main(["report", now, "--format", "json", "--baseline", before]) == 0
    assert [item["new"] for item in json.loads(capsys.readouterr().out)["findings"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ignore", "ACT11"], "did you mean 'ACT101'"),
        (["--format", "jsn"], "did you mean 'json'"),
        (["--baseline", "{missing}"], "cannot be read"),
        (["--baseline", "{text}"], "no JSON document"),
        (["--baseline", "{other}"], "schema_version None"),
        (["--out", "{folder}"], "no file in an existing folder"),
        (["--out", "{folder}/a/b"], "no file in an existing folder"),
        (["--fail-on", "often"], "invalid choice"),
    ],
)
def test_wrong_options_are_told_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("[not json")
    (tmp_path / "other").write_text("{}")
    places = {
        "missing": tmp_path / "missing",
        "text": tmp_path / "text",
        "other": tmp_path / "other",
        "folder": tmp_path,
    }
    with pytest.raises(SystemExit) as stop:
        main(["report", "no such record", *(argument.format(**places) for argument in arguments)])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and message in shown.err and "Traceback" not in shown.err and not shown.out


NO_RECORDS = {
    "empty": b"",
    "text": b"step,loss\n0,1.0\n" * 20,
    "cut": b"SQLite format 3\x00" + b"\x00" * 50,
    "open": b'{"schema_version": 1',
    "deep": b"[" * 200_000,
    "other": b'{"schema_version": 1, "tool": "x"}',
    "list": b"[1, 2]",
    "later": b'{"schema_version": 2}',
    "latin": b'{"tool": "\xff"}',
}


@pytest.mark.parametrize("name", NO_RECORDS)
def test_what_is_no_record_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(NO_RECORDS[name])
    assert main(["report", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("evenkeel: ") and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize("name", ["missing", "a" * 5000, "\x1b[31m[/x]", "folder"])
def test_a_missing_record_is_one_clean_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["report", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert shown.endswith("\n") and shown[:-1].isprintable() and len(shown) < 400


def test_a_record_without_a_measured_step_is_exit_code_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Record.create(tmp_path / "r", MODEL, DATA) as record:
        record.log(StepLog(step=0, loss=1.0))
    assert main(["report", str(tmp_path / "r")]) == 5
    assert "no measured step" in capsys.readouterr().err


def test_out_is_whole_and_alone_and_follows_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "d.json", document())
    target, link, folder = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "new"
    target.write_text("old")
    link.symlink_to(target)
    folder.mkdir()
    for out in (link, folder / ("n" * 250)):
        assert main(["report", path, "--format", "json", "--out", str(out)]) == 0
        assert json.loads(out.read_text()) == document().to_dict()
    assert link.is_symlink() and json.loads(target.read_text()) == document().to_dict()
    assert capsys.readouterr().out == ""
    assert {item.name for item in tmp_path.iterdir()} == {"d.json", "real.json", "link.json", "new"}


def test_out_to_a_pipe_leaves_the_pipe(tmp_path: Path) -> None:
    path, pipe = saved(tmp_path / "d.json", document()), tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert main(["report", path, "--out", str(pipe)]) == 0
    assert b"ACT101" in os.read(reader, 65536) and pipe.is_fifo()
    os.close(reader)


def test_a_full_disk_keeps_the_old_report(tmp_path: Path) -> None:
    path, out = saved(tmp_path / "d.json", document(50)), tmp_path / "out.json"
    out.write_text("old")
    program = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from evenkeel.cli.main import main
sys.exit(main(["report", {path!r}, "--out", {str(out)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1
    assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def seen_on_a_terminal(path: str, **variables: str) -> str:
    """What a terminal of 100 columns gets to see."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "TERM")}
    environment |= {"COLUMNS": "100", "TERM": "xterm"} | variables
    with subprocess.Popen((*COMMAND, path), stdout=theirs, env=environment) as child:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += (part := os.read(ours, 65536))
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
        child.wait()
    os.close(ours)
    return seen.decode().replace("\r\n", "\n")


def test_color_on_a_terminal_only_and_not_against_the_users_will(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.json", document())
    assert "\x1b[" in seen_on_a_terminal(path)
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = seen_on_a_terminal(path, **variables)
        assert "\x1b" not in plain and "1 warning; 2 rules passed" in plain
    piped = subprocess.run((*COMMAND, path), capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert "\x1b" not in piped.stdout and max(map(len, piped.stdout.split("\n"))) <= 80


def test_an_ascii_pipe_and_a_closed_one_are_no_errors(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.json", document())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run((*COMMAND, path), capture_output=True, env=environment)
    assert done.returncode == 0 and done.stdout.isascii() and rb"25\u201375%" in done.stdout
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run((*COMMAND, path), stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert done.stderr == ""


def test_reporting_loads_neither_torch_nor_numba(record: str) -> None:
    program = """
import sys
from evenkeel.cli.main import main
code = main(["report", sys.argv[1]])
found = {"torch", "numba", "numpy", "transformers"} & set(sys.modules)
assert code == 1 and not found, (code, found)
"""
    done = subprocess.run([sys.executable, "-c", program, record], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"error NUM601", done.stdout)
