"""A record loses nothing: kills, full disks and read-only paths included. All with real processes and real files."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evenkeel.errors import RecordError, RecordWarning
from evenkeel.records import Record
from evenkeel.schema import DataInfo, ModelInfo, Reading, Site, StepLog

MODEL = ModelInfo(class_name="Small", parameters=1234, dtype="float32", device="cpu", structure="0f" * 32)
DATA = DataInfo(source="training", kind="given")
SITE = Site(path="layers.0", kind="residual", op="block")

# what a child process needs: the same names, and a step of 50 readings with values that only that step has
CHILD = """
import os, sys
from evenkeel.records import Record
from evenkeel.schema import DataInfo, ModelInfo, Reading, Site, StepLog
MODEL = ModelInfo(class_name="Small", parameters=1234, dtype="float32", device="cpu", structure="0f" * 32)
SITES = [Site(path=f"layers.{i}", kind="residual", op="block") for i in range(50)]
def readings(step):
    return [Reading(site=site.id, step=step, phase="forward", stat="residual_rms", values=(step + i / 64,) * 64,
                    unit="", axis="channel") for i, site in enumerate(SITES)]
record = Record.create(sys.argv[1], MODEL, DataInfo(source="training", kind="given"))
"""


def reading(step: int = 0, *values: float, stat: str = "residual_rms", site: Site = SITE) -> Reading:
    return Reading(site=site.id, step=step, phase="forward", stat=stat, values=values, unit="", axis="head")


def bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"{len(values)}d", *values)


def assert_whole(record: Record, steps: range) -> None:
    """Every one of these steps has all its 50 readings with its own values, and nothing is there by halves."""
    found = record.steps()
    assert set(steps) <= set(found)
    for step in found:
        readings = record.readings(step)
        assert [item.values for item in readings] == [(step + i / 64,) * 64 for i in range(50)]


@given(st.lists(st.floats(width=64) | st.sampled_from([math.nan, -math.nan, math.inf, -0.0, 5e-324]), max_size=40))
def test_values_come_back_bit_for_bit(values: list[float]) -> None:
    with Record.create(None, MODEL, DATA) as record:
        record.append(0, [SITE], [reading(0, *values)])
        (found,) = record.readings()
    assert bits(found.values) == bits(tuple(values))


@given(
    *(st.none() | st.floats() for _ in range(3)),
    st.text(max_size=20),
    st.booleans(),
)
@example(math.nan, -math.inf, math.inf, "[/x]", True)
def test_step_logs_come_back(
    loss: float | None, norm: float | None, jump: float | None, batch: str, measured: bool
) -> None:
    entry = StepLog(step=7, loss=loss, gradient_norm=norm, batch=batch, measured=measured, jump=jump)
    with Record.create(None, MODEL, DATA) as record:
        record.log(entry)
        record.flush()
        (found,) = record.log_entries()
    assert repr(found) == repr(entry)  # repr, because NaN is not equal to NaN


def test_a_file_holds_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "100%?#run.sqlite"
    attention = Site(path="layers.0.attention", kind="attention", op="softmax", call=2)
    with Record.create(path, MODEL, DATA) as record:
        record.append(0, [SITE, attention], [reading(0, 1.0), reading(0, 2.0, 3.0, stat="entropy", site=attention)])
        record.append(50, [SITE], [reading(50, 4.0)])
        record.add_note("random tokens")
        record.add_note("random tokens")
        record.set_data(replace(DATA, tokens=512))
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    copy = shutil.copy(path, tmp_path / "copy")
    with Record.open(copy) as record:
        assert (record.model, record.data) == (MODEL, replace(DATA, tokens=512))
        assert record.notes == ("random tokens",)
        assert record.sites() == (SITE, attention)
        assert record.steps() == (0, 50)
        assert [item.values for item in record.readings()] == [(1.0,), (2.0, 3.0), (4.0,)]
        assert record.readings(50) == (reading(50, 4.0),)


def test_a_record_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with Record.create(tmp_path / "r", MODEL, DATA) as record:
        for step in range(3):
            record.append(step, [SITE], [reading(step, 1.0)])
            assert Record.open(tmp_path / "r").steps() == tuple(range(step + 1))


def test_measured_wins_over_every_other_status() -> None:
    early = replace(SITE, status="not_reached", reason="no data came here")
    later = replace(SITE, status="not_measured", reason="fused")
    with Record.create(None, MODEL, DATA) as record:
        for given_site, expected in ((early, early), (later, later), (SITE, SITE), (early, SITE), (later, SITE)):
            record.append(0, [given_site], [])
            assert record.sites() == (expected,)


def test_step_logs_are_held_and_written_with_the_next_step(tmp_path: Path) -> None:
    def on_file() -> list[int]:
        return [entry.step for entry in Record.open(tmp_path / "r").log_entries()]

    with Record.create(tmp_path / "r", MODEL, DATA) as record:
        for step in range(150):
            record.log(StepLog(step=step))
        assert on_file() == list(range(100))
        assert [entry.step for entry in record.log_entries()] == list(range(150))
        record.append(150, [SITE], [reading(150, 1.0)])
        assert on_file() == list(range(150))
        record.log(StepLog(step=151))
        assert on_file() == list(range(150))
    assert on_file() == [*range(150), 151]


def test_a_closed_record_says_so_instead_of_keeping_readings_to_itself(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "r", MODEL, DATA)
    record.close()
    record.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        record.append(0, [SITE], [reading(0, 1.0)])


def test_a_reading_must_belong_to_its_step_and_a_known_site(tmp_path: Path) -> None:
    with Record.create(tmp_path / "r", MODEL, DATA) as record:
        record.append(0, [SITE], [reading(0, 1.0)])
        for wrong in (reading(2, 1.0), reading(1, 1.0, site=replace(SITE, path="layers.9"))):
            with pytest.raises(RecordError, match="belongs to no known site of step 1"):
                record.append(1, [SITE], [reading(1, 1.0), wrong])
        assert record.steps() == (0,)
        assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_only_the_same_model_continues_a_record(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with Record.create(path, MODEL, DATA) as record:
        record.append(0, [SITE], [reading(0, 1.0)])
    with Record.create(path, replace(MODEL, device="cuda:0"), DATA) as record:
        record.append(1, [SITE], [reading(1, 2.0)])
        assert record.steps() == (0, 1)
    before = path.read_bytes()
    for other in (replace(MODEL, class_name="Large"), replace(MODEL, structure="ab" * 32)):
        with pytest.raises(RecordError, match=f"Small.*0f0f.*{other.class_name}.*{other.structure[:12]}.*another path"):
            Record.create(path, other, DATA)
    assert path.read_bytes() == before


def make_text(path: Path) -> None:
    path.write_text("SQLite is not in here, and it is long enough for a header of one hundred bytes " * 3)


def make_other_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE reading (step)")
    connection.commit()
    connection.close()


def make_later_version(path: Path) -> None:
    Record.create(path, MODEL, DATA).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_cut_short(path: Path) -> None:
    Record.create(path, MODEL, DATA).close()
    os.truncate(path, 5000)


@pytest.mark.parametrize("make", [make_text, make_other_database, make_later_version, make_cut_short, Path.mkdir])
def test_what_is_no_record_is_refused_and_left_alone(make, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RecordError, match="x"):
        Record.create(path, MODEL, DATA)
    with pytest.raises(RecordError, match="x"):
        Record.open(path).readings()
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_missing_or_empty_file_is_no_record_to_read_but_one_to_begin(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no file"):
        Record.open(tmp_path / "x")
    (tmp_path / "x").touch()
    with pytest.raises(RecordError, match="no record"):
        Record.open(tmp_path / "x")
    with Record.create(tmp_path / "x", MODEL, DATA) as record:
        record.append(0, [SITE], [reading(0, 1.0)])
    assert Record.open(tmp_path / "x").steps() == (0,)


HOSTILE = ["[/x]", "\x1b[31m", "'; DROP TABLE site; --", "a" * 10_000, "\udc80", "\x00", "‮", "%s{0}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_names(name: str, tmp_path: Path) -> None:
    site = Site(path=name, kind="activation", op=name, status="not_measured", reason=name)
    with Record.create(tmp_path / "r", replace(MODEL, class_name=name), replace(DATA, source=name)) as record:
        record.append(0, [SITE, site], [reading(0, 1.0, stat="s", site=site)])
        record.add_note(name)
    with Record.open(tmp_path / "r") as record:
        assert (record.model.class_name, record.data.source) == (name, name)
        kept = record.sites()[1]
        assert record.readings()[0].site == kept.id
        if name != "\udc80":  # no character in UTF-8: kept as its escape
            assert kept == site and record.notes == (name,)


def test_an_impossible_file_name_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(RecordWarning, match="cannot be written"):
        record = Record.create(tmp_path / ("a" * 10_000), MODEL, DATA)
    record.append(0, [SITE], [reading(0, 1.0)])
    assert record.steps() == (0,)
    assert list(tmp_path.iterdir()) == []


def kill_after(lines: int, path: Path, program: str) -> int:
    """Run a child until it has printed so many lines, kill it there and then; gives the last line as a number."""
    with subprocess.Popen([sys.executable, "-c", CHILD + program, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = [child.stdout.readline() for _ in range(lines)][-1]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")  # written before the kill came through
        child.wait()
        assert child.returncode == -signal.SIGKILL
        return int(rest[-2] if len(rest) > 1 else last)


def test_a_kill_in_the_middle_leaves_every_finished_step(tmp_path: Path) -> None:
    program = """
step = 0
while True:
    record.append(step, SITES, readings(step))
    print(step, flush=True)
    step += 1
"""
    for run in range(1, 7):
        path = tmp_path / f"{run}.sqlite"
        last = kill_after(run * run, path, program)
        with Record.open(path) as record:
            assert_whole(record, range(last + 1))
        with Record.open(shutil.copy(path, tmp_path / "copy")) as record:
            assert_whole(record, range(last + 1))
        with Record.create(path, MODEL, DATA) as record:
            following = max(record.steps()) + 1
            record.append(following, [SITE], [reading(following, 1.0)])


def test_a_kill_at_the_commit_leaves_one_file_with_every_finished_step(tmp_path: Path) -> None:
    program = """
import shutil, signal
for step in range(3):
    record.append(step, SITES, readings(step))
def kill_at_commit(statement):
    if statement == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)
record._connection.set_trace_callback(kill_at_commit)
shutil.copy(sys.argv[1], sys.argv[1] + ".before")
record.append(3, SITES, readings(3) * 300)  # more than SQLite's cache holds
"""
    path = tmp_path / "r"
    child = subprocess.run([sys.executable, "-c", CHILD + program, path])
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == (tmp_path / "r.before").read_bytes()
    copy = shutil.copy(path, tmp_path / "copy")
    for item in (copy, path):
        with Record.open(item) as record:
            assert record.steps() == (0, 1, 2)
            assert_whole(record, range(3))


def test_a_full_disk_is_one_warning_and_nothing_is_lost(tmp_path: Path) -> None:
    program = """
import resource, signal, warnings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in range(40):
        record.log(StepLog(step=step, loss=1.0))
        record.append(step, SITES, readings(step))
assert [item.category.__name__ for item in caught] == ["RecordWarning"], caught
assert "cannot be written" in str(caught[0].message) and sys.argv[1] in str(caught[0].message), caught[0].message
assert record.steps() == tuple(range(40)) and len(record.log_entries()) == 40
assert all([item.values for item in record.readings(step)] == [item.values for item in readings(step)]
           for step in range(40))
record.close()
print(str(caught[0].message).split("with its ")[1].split()[0])
"""
    path = tmp_path / "r"
    child = subprocess.run([sys.executable, "-c", CHILD + program, path], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    kept = int(child.stdout)
    assert 0 < kept < 40
    with Record.open(path) as record:
        assert record.steps() == tuple(range(kept))
        assert_whole(record, range(kept))


def test_a_path_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file" / "run.sqlite", Path("/proc/evenkeel/run.sqlite")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Record.create(path, MODEL, DATA) as record:
                record.log(StepLog(step=0))
                record.append(0, [SITE], [reading(0, 1.0)])
                record.add_note("note")
                assert (record.steps(), record.notes, len(record.log_entries())) == ((0,), ("note",), 1)
        assert [item.category for item in caught] == [RecordWarning]
        assert str(path) in str(caught[0].message)


@pytest.mark.parametrize(("lock", "kept"), [("IMMEDIATE", (0,)), ("EXCLUSIVE", ())])
def test_a_file_that_is_refused_later_is_continued_in_memory(lock: str, kept: tuple[int, ...], tmp_path: Path) -> None:
    """By a lock that another connection holds: it refuses the superuser as well; EXCLUSIVE cannot be read either."""
    path = tmp_path / "r"
    with Record.create(path, MODEL, DATA) as record:
        record.append(0, [SITE], [reading(0, 1.0)])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute(f"BEGIN {lock}")
        record._connection.execute("PRAGMA busy_timeout = 0")
        with pytest.warns(RecordWarning, match=f"locked.*with its {len(kept)} measured"):
            record.append(1, [SITE], [reading(1, 2.0)])
        other.execute("ROLLBACK")
        record.append(2, [SITE], [reading(2, 3.0)])
        assert record.steps() == (*kept, 1, 2) and record.sites() == (SITE,)
        assert (record.model, record.data) == (MODEL, DATA)
    assert Record.open(path).steps() == (0,)


def test_reading_never_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Record.create(path, MODEL, DATA).close()
    before = path.read_bytes()
    with Record.open(path) as record:
        assert (record.sites(), record.readings(), record.log_entries(), record.steps()) == ((), (), (), ())
        with pytest.raises(sqlite3.OperationalError):
            record._connection.execute("DELETE FROM info")
    assert path.read_bytes() == before


def test_another_thread_is_told_so_instead_of_losing_the_file(tmp_path: Path) -> None:
    found: list[BaseException] = []
    with Record.create(tmp_path / "r", MODEL, DATA) as record:

        def use() -> None:
            try:
                record.append(0, [SITE], [reading(0, 1.0)])
            except sqlite3.ProgrammingError as error:
                found.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert len(found) == 1
        record.append(0, [SITE], [reading(0, 1.0)])
    assert Record.open(tmp_path / "r").steps() == (0,)


def test_records_and_reports_load_neither_torch_nor_numba() -> None:
    program = """
import sys
import evenkeel.records, evenkeel.diagnosis, evenkeel.report.text, evenkeel.cli.report
found = {"torch", "numba", "numpy", "transformers"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True)
