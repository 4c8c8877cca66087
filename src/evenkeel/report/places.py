"""Where in a model: paths with their numbered parts drawn together, and the blocks that sites lie in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..schema import Reading, Site, SiteKind, clean_name
from .quantities import count

_PLACES: tuple[SiteKind, ...] = ("activation", "gate", "attention", "router", "recurrence", "residual")
_UNNUMBERED = ("",)  # stands for all places without a number in their path

Latest = Mapping[tuple[str, str, str], tuple[float, ...]]


@dataclass(frozen=True)
class Row:
    """A block, or a place outside all blocks, with everything that lies in it."""

    label: str
    path: str
    sites: tuple[Site, ...]

    @property
    def ops(self) -> str:
        """The activations in it, else whatever else it holds besides its own output."""
        activations = [site.op for site in self.sites if site.kind == "activation"]
        others = [site.op for site in self.sites if site.kind in _PLACES and site.kind != "residual"]
        return "+".join(clean_name(op) for op in dict.fromkeys(activations or others))


@dataclass(frozen=True)
class Stack:
    """Rows of one kind: the repeated blocks of one part of a model."""

    title: str
    rows: tuple[Row, ...]


def compress(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths that differ in numbers only, as one: `layers.{0-5}.mlp`, `layers.{0,2}.experts.{0-7}`; no path is lost."""
    patterns = [tuple(frozenset((part,)) for part in path.split(".")) for path in dict.fromkeys(paths)]
    longest = max(map(len, patterns), default=0)
    for position in reversed(range(longest)):
        merged: dict[tuple[object, ...], tuple[frozenset[str], ...]] = {}
        for pattern in patterns:
            if position >= len(pattern) or not all(map(_is_number, pattern[position])):
                merged[pattern] = pattern
                continue
            key = (*pattern[:position], None, *pattern[position + 1 :])
            known = merged.get(key, pattern)
            merged[key] = (*pattern[:position], known[position] | pattern[position], *pattern[position + 1 :])
        patterns = list(merged.values())
    return tuple(clean_name(".".join(map(_part, pattern))) for pattern in patterns)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _part(choices: frozenset[str]) -> str:
    if len(choices) == 1:
        return next(iter(choices))
    runs: list[list[int]] = []
    for value in sorted(map(int, choices)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"


def where(site_ids: Iterable[str], *, most: int = 12) -> str:
    """The paths of some site ids, those that differ in numbers only as one; beyond `most` they are only counted."""
    paths = compress(site_id.rsplit(":", 1)[0] for site_id in site_ids)
    named = [path or "the whole model" for path in paths[:most]]
    rest = [count(len(paths) - len(named), "more place")] if len(paths) > len(named) else []
    return ", ".join([*named, *rest])


def latest(readings: Iterable[Reading]) -> Latest:
    """The newest values of every (site, stat, phase)."""
    return {
        (item.site, item.stat, item.phase): item.values for item in sorted(readings, key=lambda reading: reading.step)
    }


def stacks(sites: Sequence[Site]) -> tuple[Stack, ...]:
    """The blocks of a model in execution order, stack by stack; then what lies outside of them."""
    rows: dict[str, list[Site]] = {site.path: [] for site in sites if site.kind == "residual"}
    blocks = set(rows)
    for site in sites:
        place = _block_of(site.path, blocks)
        if place is None and site.kind in _PLACES:
            place = site.path
        if place is not None:
            rows.setdefault(place, []).append(site)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for path, inside in rows.items():
        parts = path.split(".")
        numbers = [part for part in parts if _is_number(part)]
        names = tuple(part for part in parts if not _is_number(part)) if numbers else _UNNUMBERED
        label = ".".join(numbers) or clean_name(path) or "(the model)"
        groups[names].append(Row(label, path, tuple(inside)))
    return tuple(
        Stack(
            "outside the blocks" if names is _UNNUMBERED else ", ".join(compress(row.path for row in group)),
            tuple(group),
        )
        for names, group in groups.items()
    )


def _block_of(path: str, blocks: set[str]) -> str | None:
    """The innermost block that a path lies in."""
    parts = path.split(".")
    around = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((candidate for candidate in around if candidate in blocks), None)
