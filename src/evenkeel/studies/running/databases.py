"""The databases that hold studies: SQLite files and PostgreSQL, opened through Optuna."""

from __future__ import annotations

import re
import sqlite3
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from ...errors import RecordError, UsageError
from ...schema import clean_name, in_one_line

HEARTBEAT, GRACE = 10, 60
"""Seconds between two beats of a trial's heart, and of silence after which its worker counts as dead."""

_ATTEMPTS, _PAUSE = 20, 0.25  # seconds
_SQLITE = "sqlite:///"
_TABLES = {"studies", "trials", "version_info"}


def storage_url(where: str) -> str:
    """The URL for what a user writes: a path is a SQLite file, PostgreSQL goes through psycopg."""
    if "://" not in where:
        return f"{_SQLITE}{Path(where).expanduser().resolve()}"
    for scheme in ("postgresql://", "postgres://"):
        if where.startswith(scheme):
            return f"postgresql+psycopg://{where.removeprefix(scheme)}"
    return where


def shown(where: str) -> str:
    """A database as a message may name it."""
    return clean_name(without_password(where))


def without_password(where: str) -> str:
    """A path or URL that may be printed; PostgreSQL finds the password in PGPASSWORD or ~/.pgpass as well."""
    scheme, slashes, rest = where.partition("://")
    if not slashes:
        return where
    rest = re.sub(r"(?<=[?&])password=[^&]*&?", "", rest).rstrip("?&")
    login, at, place = rest.rpartition("@")
    return f"{scheme}://{login.partition(':')[0]}@{place}" if at else f"{scheme}://{rest}"


def is_missing(where: str) -> bool:
    """Whether a path or URL names a SQLite file that is not there."""
    url = storage_url(where)
    return url.startswith(_SQLITE) and not Path(url.removeprefix(_SQLITE)).exists()


def open_database(where: str) -> Any:
    """Optuna's storage behind a path or URL; a SQLite file is made where there is none.

    Raises UsageError where it cannot be opened or Optuna is not installed, RecordError for a file of something else.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "studies are kept by Optuna, which is not installed; pip install 'evenkeel[compare]'"
        ) from error
    url = storage_url(where)
    if url.startswith(_SQLITE):
        _check_file(Path(url.removeprefix(_SQLITE)), shown(where))
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for left in reversed(range(_ATTEMPTS)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, since 2021
                return optuna.storages.RDBStorage(
                    url, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE
                )
        except Exception as error:
            if left and "already exists" in str(error):  # another worker makes the tables at this moment
                time.sleep(_PAUSE)
                continue
            raise UsageError(
                f"{shown(where)} cannot be opened as a store of studies ({in_one_line(error)}); give a file, or "
                "postgresql://user@host/database"
            ) from error


def _check_file(path: Path, name: str) -> None:
    """A file that is there has to be a store, so that nothing else is written into."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{name} is no file in an existing folder; give one")
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error as error:
        raise RecordError(f"{name} is no store of studies ({error}); give another --storage") from error
    if tables and not tables >= _TABLES:
        raise RecordError(f"{name} is a SQLite file of something else; give another --storage")
