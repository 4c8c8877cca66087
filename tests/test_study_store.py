"""Trials in a real SQLite file and a real PostgreSQL: claimed once, kept, freed where their worker died."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import optuna
import pytest
from study_work import OWN, loss_of, work_on

from evenkeel.errors import RecordError, UsageError
from evenkeel.studies.comparing import begin
from evenkeel.studies.founding import Founding
from evenkeel.studies.points import Point
from evenkeel.studies.results import Evaluation, TrialResult
from evenkeel.studies.running.databases import without_password
from evenkeel.studies.running.store import Store
from evenkeel.studies.schedule import agenda

KILLS = 10


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A database of its own in the server that `.ci/postgresql` starts."""
    server = os.environ.get("EVENKEEL_POSTGRESQL")
    if server is None:
        pytest.skip("EVENKEEL_POSTGRESQL is not set: .ci/postgresql make test starts a server")
    import psycopg
    from psycopg.sql import SQL, Identifier

    name = f"study_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
        yield f"{server.rpartition('/')[0]}/{name}"
        connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Real processes that begin quickly: torch is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study_work"])
    return context


def founded(where: str) -> Store:
    store = Store(where, "work")
    store.found(
        Founding(study=OWN, plans=(), steps=1, seconds=0.0, source="", digest="", begun="2026-01-01T00:00:00+00:00")
    )
    return store


def points() -> tuple[Point, ...]:
    return agenda(OWN, []).wanted


def check_whole(where: str) -> None:
    """Every point of the study has one result, with the loss that belongs to it."""
    store = Store(where, "work")
    results = store.results()
    assert agenda(OWN, results.values()).wanted == ()
    assert len(results) == len(OWN.arms) * (OWN.tuning_trials + OWN.seeds)
    for result in results.values():
        assert result.loss == loss_of(result.point.arm, result.point.learning_rate, result.point.seed)
    study = optuna.load_study(study_name="work", storage=store._storage)
    complete = [trial.user_attrs["key"] for trial in study.trials if trial.state.name == "COMPLETE"]
    assert sorted(complete) == sorted(results)  # none twice
    assert store.running() == frozenset()


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = founded(str(tmp_path / "a.sqlite"))
    claim = store.claim(points())
    assert claim is not None
    result = TrialResult(
        point=claim.point,
        loss=float("nan"),
        start=5.5,
        diverged=True,
        evaluations=(Evaluation(step=0, loss=5.5), Evaluation(step=3, loss=float("inf"))),
        health={"dead": 0.25},
        findings=("ACT101",),
        hashes={"batches": "ab"},
        seconds=1.5,
        finished="2026-01-01T00:00:00+00:00",
    )
    store.finish(claim, result)
    again = Store(str(tmp_path / "a.sqlite"), "work").results()[claim.point.key]
    assert again.to_dict() == {**result.to_dict(), "worker": again.worker}
    assert again.worker


def test_two_workers_never_have_the_same_point(tmp_path: Path) -> None:
    where = str(tmp_path / "a.sqlite")
    one, other = founded(where), Store(where, "work")
    taken = []
    while (claim := one.claim(points())) is not None:
        taken.append(claim.point)
        claim = other.claim(points())
        if claim is not None:
            taken.append(claim.point)
    assert sorted(taken) == sorted(points())


def test_of_two_claims_on_one_point_the_older_counts(tmp_path: Path) -> None:
    store = founded(str(tmp_path / "a.sqlite"))
    point = points()[0]
    first, second = store._written(point), store._written(point)
    for claim, loss in ((second, 2.0), (first, 1.0)):
        store.finish(claim, TrialResult(point=point, loss=loss))
    assert store.results()[point.key].loss == 1.0


def test_a_trial_that_was_given_up_is_free_again(tmp_path: Path) -> None:
    store = founded(str(tmp_path / "a.sqlite"))
    claim = store.claim(points())
    assert claim is not None
    store.give_up(claim, "stopped")
    again = store.claim(points())
    assert again is not None and again.point == claim.point and again.number != claim.number


def test_who_was_taken_for_dead_still_gives_its_result_once(tmp_path: Path) -> None:
    store = founded(str(tmp_path / "a.sqlite"))
    claim = store.claim(points())
    assert claim is not None
    store.give_up(claim, "its worker died")
    again = store.claim(points())
    assert again is not None and again.point == claim.point
    store.finish(claim, TrialResult(point=claim.point, loss=1.0))
    store.finish(again, TrialResult(point=claim.point, loss=2.0))
    assert [result.loss for result in store.results().values()] == [2.0]  # the older trial


def test_a_study_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    where = str(tmp_path / "a.sqlite")
    theirs = optuna.create_study(study_name="work", storage=f"sqlite:///{where}")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(RecordError, match="is not evenkeel's"):
        Store(where, "work").founding()
    assert len(optuna.load_study(study_name="work", storage=f"sqlite:///{where}").trials) == 1


def test_a_living_worker_keeps_its_trial(tmp_path: Path) -> None:
    store = founded(str(tmp_path / "a.sqlite"))
    claim = store.claim(points())
    assert claim is not None
    store.free_the_dead()
    assert store.running() == {claim.point.key}


def test_a_study_killed_ten_times_at_random_ends_whole(tmp_path: Path, processes: ForkServerContext) -> None:
    where, log = str(tmp_path / "a.sqlite"), str(tmp_path / "log")
    draw = random.Random(5)
    killed = 0
    for _ in range(KILLS):
        process = processes.Process(target=work_on, args=(where, log, 0.1))
        process.start()
        process.join(draw.uniform(0.3, 1.2))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= KILLS // 2  # else the study was done before it was hurt
    work_on(where, log, 0.0)
    check_whole(where)


def test_two_workers_share_a_study_in_postgresql(tmp_path: Path, postgresql: str, processes: ForkServerContext) -> None:
    logs = [str(tmp_path / f"log{number}") for number in range(2)]
    workers = [processes.Process(target=work_on, args=(postgresql, log, 0.05)) for log in logs]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0]
    check_whole(postgresql)
    begun = [set(Path(log).read_text().splitlines()) for log in logs]
    assert all(begun)  # both had work
    assert begun[0].isdisjoint(begun[1])


def test_a_worker_killed_in_postgresql_is_replaced(
    tmp_path: Path, postgresql: str, processes: ForkServerContext
) -> None:
    log = tmp_path / "log"
    process = processes.Process(target=work_on, args=(postgresql, str(log), 60.0))
    process.start()
    while not log.exists():
        assert process.is_alive()
        process.join(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    work_on(postgresql, str(log), 0.0)
    check_whole(postgresql)


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table readings (value)")
    before = path.read_bytes()
    with pytest.raises(RecordError, match="something else"):
        Store(str(path), "work")
    path.write_bytes(text := b"no database at all, but a text of some length")
    with pytest.raises(RecordError, match="no store"):
        Store(str(path), "work")
    assert path.read_bytes() == text != before


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "a.sqlite")
    store = founded(where)
    about = store._trials("FAIL")[0]._trial_id
    with sqlite3.connect(where) as connection:
        connection.execute(
            "update trial_user_attributes set value_json = ? where trial_id = ?",
            (json.dumps('{"format": 99, "evenkeel": "9.0"}'), about),
        )
    with pytest.raises(RecordError, match=r"evenkeel 9\.0 in format 99"):
        Store(where, "work").founding()


def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        Store("postgresql://me:secret@127.0.0.1:1/nothing", "work")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("rate", [1e-12, 5e4])
def test_any_learning_rate_can_be_claimed(tmp_path: Path, rate: float) -> None:
    store = founded(str(tmp_path / "store.sqlite"))
    claim = store.claim([Point("relu", "tuning", rate, 0)])
    assert claim is not None and claim.point.learning_rate == rate


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me"),
        ("postgresql://host/db?password=secret&user=me", "postgresql://host/db?user=me"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("a?password=file.sqlite", "a?password=file.sqlite"),
    ],
)
def test_no_password_is_printed(url: str, printed: str) -> None:
    assert without_password(url) == printed


def test_another_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "a.sqlite")
    begin(OWN, objective=loss_of, storage=where)
    with pytest.raises(RecordError, match=r"tuning_trials: 3 there, 4 here"):
        begin(replace(OWN, tuning_trials=4), objective=loss_of, storage=where)
    assert Store(where, "compare").founding() is not None
