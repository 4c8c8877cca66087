"""An append-only registry by name: a duplicate is an error, a near miss gets a hint."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

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
    installed packages offer under that group are loaded when the catalogue is first read; flaw: says of such an entry
    under its name what makes it none, "" where nothing does. Reading raises UsageError for one that is none.
    """

    def __init__(
        self,
        kind: str,
        *,
        entry_point_group: str | None = None,
        flaw: Callable[[str, Any], str] = lambda name, entry: "",
    ) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._pending_group = entry_point_group
        self._flaw = flaw

    def add(self, name: str, entry: T) -> T:
        """Add an entry; raises UsageError if the name is taken."""
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is already in the catalogue; give the new one another name")
        self._entries[name] = entry
        return entry

    def _load_outside(self) -> None:
        group, self._pending_group = self._pending_group, None  # so that a package may read it while it is loaded
        if group is None:
            return
        before = dict(self._entries)
        try:
            for point in entry_points(group=group):
                self.add(point.name, self._loaded(point))
        except UsageError:
            self._entries, self._pending_group = before, group
            raise

    def _loaded(self, point: EntryPoint) -> T:
        package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
        remedy = "mend or uninstall that package"
        try:
            entry = point.load()
        except Exception as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(
                f"{self.kind} {point.name!r}{package} cannot be loaded from {point.value} ({cause}); {remedy}"
            ) from error
        if flaw := self._flaw(point.name, entry):
            raise UsageError(f"{self.kind} {point.name!r}{package} {flaw}; {remedy}")
        return entry

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
