"""What rules read: the readings of a record, found by site, stat and phase. Read only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..schema import DataInfo, ModelInfo, Phase, Reading, Site, SiteKind, StepLog

Key = tuple[str, str, Phase]


@dataclass(frozen=True)
class Measurements:
    """Sites in execution order, the readings of all steps, and the log of a run (empty for a single inspection)."""

    sites: tuple[Site, ...]
    readings: tuple[Reading, ...]
    log: tuple[StepLog, ...]
    model: ModelInfo
    data: DataInfo

    @cached_property
    def _by_key(self) -> Mapping[Key, Mapping[int, Reading]]:
        found: dict[Key, dict[int, Reading]] = defaultdict(dict)
        for reading in sorted(self.readings, key=lambda reading: reading.step):
            found[reading.site, reading.stat, reading.phase][reading.step] = reading
        return found

    @cached_property
    def has_updates(self) -> bool:
        """Whether anything was read of optimizer steps."""
        return any(phase == "update" for _, _, phase in self._by_key)

    @property
    def is_of_a_run(self) -> bool:
        """Whether a run was watched: it logs its steps, or there are several, or an optimizer's was read."""
        return bool(self.log) or self.has_updates or any(reading.step for reading in self.readings)

    def of_kind(self, kind: SiteKind) -> tuple[Site, ...]:
        """The sites of one kind, in execution order."""
        return tuple(site for site in self.sites if site.kind == kind)

    def history(self, site: Site, stat: str, phase: Phase = "forward") -> tuple[tuple[int, tuple[float, ...]], ...]:
        """(step, values) of every measured step, oldest first."""
        return tuple((step, reading.values) for step, reading in self._by_key.get((site.id, stat, phase), {}).items())

    def values(self, site: Site, stat: str, phase: Phase = "forward") -> tuple[float, ...]:
        """The values of the latest step at which the site was read; empty where it never was."""
        history = self.history(site, stat, phase)
        return history[-1][1] if history else ()

    def value(self, site: Site, stat: str, phase: Phase = "forward") -> float:
        """The one value of a stat without an axis; NaN where it was not read."""
        values = self.values(site, stat, phase)
        return values[0] if len(values) == 1 else math.nan

    def named(self, stats: Iterable[str]) -> Iterable[tuple[Site, str, Phase]]:
        """Every (site, stat, phase) that was read with one of these stats, in execution order."""
        order = {site.id: (place, site) for place, site in enumerate(self.sites)}
        wanted = set(stats)
        found = [(*order[key[0]], key) for key in self._by_key if key[0] in order and key[1] in wanted]
        return [(site, key[1], key[2]) for _, site, key in sorted(found, key=lambda item: (item[0], item[2][1:]))]
