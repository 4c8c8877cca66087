"""Whether earlier positions know later tokens: what `probing` saw move, at the head and behind each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..schema import SiteKind
from ..tracing.events import Event, ProbeEvent
from ._protocol import Stat


class HeadCausality:
    """future_leak: the largest move of an earlier position over the largest of the positions whose tokens changed.

    probe_noise: the same ratio for a sequence of the same batch in which nothing changed: what rounding alone does.
    """

    kind: ClassVar[SiteKind] = "head"
    LEAK = Stat("future_leak", "ratio")
    NOISE = Stat("probe_noise", "ratio")
    stats: ClassVar[tuple[Stat, ...]] = (LEAK, NOISE)

    def __init__(self) -> None:
        self._moves: Tensor | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, ProbeEvent) and event.later.numel():
            self._take_in(torch.stack([item.amax() for item in (event.earlier, event.later, event.untouched)]).double())

    def merge(self, other: HeadCausality) -> None:
        if other._moves is not None:
            self._take_in(other._moves)

    def _take_in(self, moves: Tensor) -> None:
        self._moves = moves if self._moves is None else torch.maximum(self._moves, moves)

    def read(self) -> Mapping[Stat, Tensor]:
        if self._moves is None:
            return {}
        earlier, later, untouched = self._moves.unbind()
        return {self.LEAK: earlier / later, self.NOISE: untouched / later}


class BlockCausality(HeadCausality):
    """The same of a block's output."""

    kind: ClassVar[SiteKind] = "residual"
