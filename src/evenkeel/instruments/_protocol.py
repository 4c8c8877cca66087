"""What an instrument is: the accumulator of one site, mergeable, on the device, silent until it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from torch import Tensor

from ..schema import Phase, SiteKind
from ..tracing.events import Event


@dataclass(frozen=True)
class Stat:
    """One number (or one per `axis` entry) that an instrument produces."""

    name: str
    unit: str
    phase: Phase = "forward"
    axis: str = ""


class Instrument(Protocol):
    """Statistics of one site.

    `observe` takes any number of events, under `torch.no_grad()`, with autocast and function modes off. It draws no
    random numbers, never syncs with the host (it runs under FakeTensorMode), and keeps nothing as large as its inputs.
    `merge` is associative. `read` gives finished numbers on the device: 0-d, or 1-d along the stat's axis; a stat that
    nothing was seen of is left out.
    """

    kind: ClassVar[SiteKind]
    stats: ClassVar[tuple[Stat, ...]]

    def observe(self, event: Event) -> None: ...

    def merge(self, other: Self) -> None: ...

    def read(self) -> Mapping[Stat, Tensor]: ...
