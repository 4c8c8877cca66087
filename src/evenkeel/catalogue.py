"""An append-only registry by name: a duplicate is an error, a near miss gets a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from .errors import UsageError

T = TypeVar("T")


def near_miss(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to type instead of an unknown name: the one most like it, else what is said otherwise, or all there are."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"known: {', '.join(known) or 'none'}"


class Catalogue(Mapping[str, T]):
    """Named entries of one kind, in the order in which they were added.

    `kind` is the singular word used in messages ("rule"). With `entry_point_group`, entries that other
    installed packages offer under that group are loaded when the catalogue is first read.
    """

    def __init__(self, kind: str, *, entry_point_group: str | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._pending_group = entry_point_group

    def add(self, name: str, entry: T) -> T:
        """Add an entry; raises UsageError if the name is taken."""
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is already in the catalogue; give the new one another name")
        self._entries[name] = entry
        return entry

    def _load_outside(self) -> None:
        group, self._pending_group = self._pending_group, None
        if group is not None:
            for point in entry_points(group=group):
                self.add(point.name, point.load())

    def __getitem__(self, name: str) -> T:
        self._load_outside()
        if name not in self._entries:
            raise UsageError(f"no {self.kind} is called {name!r}; {near_miss(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load_outside()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load_outside()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        self._load_outside()
        return len(self._entries)
