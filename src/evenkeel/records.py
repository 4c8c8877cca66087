"""The record of a run: its sites, readings and step logs in one SQLite file, readable without torch.

The file has a rollback journal, so what `append` returned from is in this one file: it survives a kill of the process,
and a copy of the file has it too. (Only a kill within the milliseconds of a commit leaves a second file,
`<name>-journal`: open the record once beside it, or copy both.)
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from .errors import RecordError, RecordWarning
from .schema import (
    SCHEMA_VERSION,
    DataInfo,
    ModelInfo,
    Reading,
    Site,
    StepLog,
    clean_name,
    decode_number,
    encode_number,
)

_APPLICATION_ID = 0x45564B4C  # "EVKL": tells a record from any other SQLite file
_LOGS_HELD = 100
_SECONDS_FOR_A_LOCK = 10.0

# Numbers of readings are float64, little-endian, one after the other: SQLite's own reals cannot hold a NaN. The log's
# columns have no type, so that a non-finite number can be kept as the text that JSON has for it.
_TABLES = f"""
CREATE TABLE IF NOT EXISTS info (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS note (number INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS site (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, kind TEXT NOT NULL, op TEXT NOT NULL,
    call INTEGER NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stat (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, phase TEXT NOT NULL, axis TEXT NOT NULL, unit TEXT NOT NULL,
    UNIQUE (name, phase, axis, unit));
CREATE TABLE IF NOT EXISTS reading (
    number INTEGER PRIMARY KEY, step INTEGER NOT NULL, site INTEGER NOT NULL REFERENCES site,
    stat INTEGER NOT NULL REFERENCES stat, numbers BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS reading_by_step ON reading (step);
CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, step, loss, gradient_norm, batch, measured, jump);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION}
"""


class Record:
    """The readings of one model's run: one SQLite file, or in memory.

    Make one with `create` (to write) or `open` (to read); it is used from one thread. When the file can no longer be
    written (full disk, read-only path), one RecordWarning says so, and everything goes on in memory with all that the
    file held.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, model: ModelInfo, data: DataInfo) -> None:
        self._connection = connection
        self._path = path
        self._model = model
        self._data = data
        self._held: list[StepLog] = []

    @classmethod
    def create(cls, path: str | Path | None, model: ModelInfo, data: DataInfo) -> Record:
        """A record to write to; an existing one is continued if it is of the same model.

        path: the file, made with its folders if it is missing; None keeps the record in memory.
        Raises RecordError for a record of another model or version, and for a file that is no record (never changed).
        """
        record = (
            cls._on_file(Path(path), model, data) if path is not None else cls(_connect_memory(), None, model, data)
        )
        record._write(record._prepare)
        return record

    @classmethod
    def _on_file(cls, path: Path, model: ModelInfo, data: DataInfo) -> Record:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = _connect_file(path, "rwc")
        except (OSError, ValueError, sqlite3.Error) as error:
            if os.path.exists(path):
                raise RecordError(f"{_shown(path)} is no record ({error}); give another path") from error
            record = cls(_connect_memory(), path, model, data)
            record._warn(error, kept=0)
            return record
        try:
            if _rows(connection, path, "SELECT 1 FROM sqlite_master LIMIT 1"):
                _check_is_record(connection, path)
                _check_same(path, _info(connection, path)[0], model)
        except RecordError:
            connection.close()
            raise
        return cls(connection, path, model, data)

    @classmethod
    def open(cls, path: str | Path) -> Record:
        """An existing record, to read. Raises RecordError if it is missing, no record, or of another version."""
        path = Path(path)
        if not os.path.exists(path):
            raise RecordError(f"there is no file {_shown(path)}; give the record of a watched run")
        try:
            # "rw", so that a commit cut short by a kill can be rolled back; nothing else is ever written
            connection = _connect_file(path, "rw")
        except sqlite3.Error as error:
            raise RecordError(f"{_shown(path)} is no record ({error}); give the record of a watched run") from error
        try:
            _check_is_record(connection, path)
            connection.execute("PRAGMA query_only = ON")
            return cls(connection, path, *_info(connection, path))
        except RecordError:
            connection.close()
            raise

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def data(self) -> DataInfo:
        return self._data

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know besides the numbers, oldest first."""
        return tuple(text for (text,) in self._read("SELECT text FROM note ORDER BY number"))

    def set_data(self, data: DataInfo) -> None:
        """Say what the model is measured on, once that is known better."""
        self._data = data
        self._write(self._prepare)

    def add_note(self, text: str) -> None:
        """Add a note, unless the record has it already."""
        note = _storable(text)
        if note not in self.notes:
            self._write(lambda connection: connection.execute("INSERT INTO note (text) VALUES (?)", (note,)))

    def log(self, entry: StepLog) -> None:
        """Keep the cheap numbers of a step: held until the next `append`, or until there are a hundred."""
        self._held.append(entry)
        if len(self._held) >= _LOGS_HELD:
            self.flush()

    def append(self, step: int, sites: Iterable[Site], readings: Iterable[Reading]) -> None:
        """Add a step's sites and readings; when this returns they are in the file, all or (after a kill) none.

        A known site is not repeated; "measured" replaces any other status. Readings may name any site that was ever
        given. Raises RecordError for a reading of another step or of a site that was never given.
        """
        sites, readings, held = tuple(sites), tuple(readings), tuple(self._held)

        def put(connection: sqlite3.Connection) -> None:
            _put_log(connection, held)
            _put_sites(connection, sites)
            _put_readings(connection, step, readings)

        self._write(put)
        self._held.clear()

    def flush(self) -> None:
        """Write the step logs that are still held."""
        held = tuple(self._held)
        if held:
            self._write(lambda connection: _put_log(connection, held))
            self._held.clear()

    def sites(self) -> tuple[Site, ...]:
        """Every site, in the order in which they first ran."""
        names = ("path", "kind", "op", "call", "status", "reason")
        rows = self._read(f"SELECT {', '.join(names)} FROM site ORDER BY number")
        return tuple(Site(**dict(zip(names, row, strict=True))) for row in rows)

    def readings(self, step: int | None = None) -> tuple[Reading, ...]:
        """The readings of one step, or of all, in the order in which they were added."""
        only = "" if step is None else "WHERE reading.step = ?"
        rows = self._read(
            f"""SELECT site.id, reading.step, stat.phase, stat.name, reading.numbers, stat.unit, stat.axis
                FROM reading JOIN site ON site.number = reading.site JOIN stat ON stat.number = reading.stat
                {only} ORDER BY reading.number""",
            () if step is None else (step,),
        )
        return tuple(
            Reading(site=site, step=at, phase=phase, stat=stat, values=_unpack(numbers), unit=unit, axis=axis)
            for site, at, phase, stat, numbers, unit, axis in rows
        )

    def steps(self) -> tuple[int, ...]:
        """The steps that have readings, in ascending order."""
        return tuple(step for (step,) in self._read("SELECT DISTINCT step FROM reading ORDER BY step"))

    def log_entries(self) -> tuple[StepLog, ...]:
        """The cheap numbers of every logged step, in the order in which they were logged."""
        rows = self._read("SELECT step, loss, gradient_norm, batch, measured, jump FROM log ORDER BY number")
        return (*(_log_entry(row) for row in rows), *self._held)

    def close(self) -> None:
        """Write what is still held and let go of the file; a second call does nothing."""
        self.flush()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return _rows(self._connection, self._path, query, parameters)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        info = {"model": self._model.to_dict(), "data": self._data.to_dict()}
        rows = [(key, json.dumps(value)) for key, value in info.items()]
        connection.executemany("INSERT OR REPLACE INTO info VALUES (?, ?)", rows)

    def _write(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Do all of an action or none of it; where the file refuses, do it in memory."""
        try:
            _in_transaction(self._connection, action)
        except sqlite3.DatabaseError as error:
            if self._path is None or isinstance(error, sqlite3.ProgrammingError):
                raise
            self._go_on_in_memory(error)
            _in_transaction(self._connection, action)

    def _go_on_in_memory(self, error: sqlite3.Error) -> None:
        memory = _connect_memory()
        _in_transaction(memory, self._prepare)
        with suppress(sqlite3.Error):  # a file that cannot even be read has nothing to carry along
            _in_transaction(memory, lambda target: _carry_over(self._connection, target))
        self._connection.close()
        self._connection = memory
        self._warn(error, kept=len(self.steps()))

    def _warn(self, error: Exception, kept: int) -> None:
        path, self._path = self._path, None
        warnings.warn(
            f"the record {_shown(path)} cannot be written ({error}); going on in memory with its {kept} "
            "measured steps; later ones last as long as this process",
            RecordWarning,
            stacklevel=2,
        )


def _connect_file(path: Path, mode: str) -> sqlite3.Connection:
    return _connect(f"{path.absolute().as_uri()}?mode={mode}")


def _connect_memory() -> sqlite3.Connection:
    return _connect("file::memory:")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_SECONDS_FOR_A_LOCK)
    connection.execute("PRAGMA cache_spill = OFF")  # an open transaction stays out of the file until its commit
    return connection


def _in_transaction(connection: sqlite3.Connection, action: Callable[[sqlite3.Connection], object]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        action(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors
            connection.execute("ROLLBACK")
        raise


def _carry_over(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Every row of every table (`Connection.backup` would wait for ever on a locked file)."""
    for (table,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        rows = source.execute(f"SELECT * FROM {table}").fetchall()
        if rows:
            places = ", ".join("?" * len(rows[0]))
            target.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)


def _rows(connection: sqlite3.Connection, path: Path | None, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
    try:
        return connection.execute(query, parameters).fetchall()
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise RecordError(f"{_shown(path)} cannot be read as a record ({error}); give another path") from error


def _check_is_record(connection: sqlite3.Connection, path: Path) -> None:
    application, version = (
        _rows(connection, path, f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")
    )
    if application != _APPLICATION_ID:
        raise RecordError(f"{_shown(path)} is no record of evenkeel; give another path")
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{_shown(path)} has schema version {version} and this evenkeel reads {SCHEMA_VERSION}; "
            "read it with the evenkeel that wrote it"
        )


def _check_same(path: Path, known: ModelInfo, model: ModelInfo) -> None:
    if (known.class_name, known.structure) != (model.class_name, model.structure):
        raise RecordError(
            f"{_shown(path)} is the record of {_identity(known)}, and this model is {_identity(model)}; "
            "give another path"
        )


def _identity(model: ModelInfo) -> str:
    return f"{model.class_name} ({model.parameters:,} parameters, structure {model.structure[:12] or 'unknown'})"


def _info(connection: sqlite3.Connection, path: Path) -> tuple[ModelInfo, DataInfo]:
    found = dict(_rows(connection, path, "SELECT key, value FROM info"))
    return ModelInfo.from_dict(json.loads(found["model"])), DataInfo.from_dict(json.loads(found["data"]))


def _shown(path: Path | None) -> str:
    return clean_name(str(path)) if path else "the record in memory"


def _storable(text: str) -> str:
    """Text as SQLite can hold it: what is no character in UTF-8 is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _put_sites(connection: sqlite3.Connection, sites: Iterable[Site]) -> None:
    def row(site: Site) -> tuple[Any, ...]:
        site_id, path, op, reason = map(_storable, (site.id, site.path, site.op, site.reason))
        return site_id, path, site.kind, op, site.call, site.status, reason

    connection.executemany(
        """INSERT INTO site (id, path, kind, op, call, status, reason) VALUES (?, ?, ?, ?, ?, ?, ?)
           ON CONFLICT (id) DO UPDATE SET status = excluded.status, reason = excluded.reason
           WHERE site.status != 'measured'""",
        map(row, sites),
    )


def _put_readings(connection: sqlite3.Connection, step: int, readings: Sequence[Reading]) -> None:
    stats = list(dict.fromkeys((item.stat, item.phase, item.axis, item.unit) for item in readings))
    connection.executemany("INSERT OR IGNORE INTO stat (name, phase, axis, unit) VALUES (?, ?, ?, ?)", stats)
    site_numbers = dict(connection.execute("SELECT id, number FROM site"))
    stat_numbers = {
        tuple(key): number for number, *key in connection.execute("SELECT number, name, phase, axis, unit FROM stat")
    }

    def row(item: Reading) -> tuple[int, int, int, bytes]:
        site = site_numbers.get(_storable(item.site))
        if site is None or item.step != step:
            raise RecordError(
                f"a reading of step {item.step} at {clean_name(item.site)} belongs to no known site of step {step}; "
                "give its own step, and its site with it or before it"
            )
        return step, site, stat_numbers[item.stat, item.phase, item.axis, item.unit], _pack(item.values)

    connection.executemany("INSERT INTO reading (step, site, stat, numbers) VALUES (?, ?, ?, ?)", map(row, readings))


def _put_log(connection: sqlite3.Connection, entries: Iterable[StepLog]) -> None:
    def row(entry: StepLog) -> tuple[Any, ...]:
        loss, gradient_norm, jump = map(_encode, (entry.loss, entry.gradient_norm, entry.jump))
        return entry.step, loss, gradient_norm, _storable(entry.batch), entry.measured, jump

    names = "step, loss, gradient_norm, batch, measured, jump"
    connection.executemany(f"INSERT INTO log ({names}) VALUES (?, ?, ?, ?, ?, ?)", map(row, entries))


def _log_entry(row: tuple[Any, ...]) -> StepLog:
    step, loss, gradient_norm, batch, measured, jump = row
    numbers = {"loss": _decode(loss), "gradient_norm": _decode(gradient_norm), "jump": _decode(jump)}
    return StepLog(step=step, batch=batch, measured=bool(measured), **numbers)


def _encode(value: float | None) -> float | str | None:
    return None if value is None else encode_number(value)


def _decode(value: float | str | None) -> float | None:
    return None if value is None else decode_number(value)


def _pack(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _unpack(numbers: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(numbers) // 8}d", numbers)
