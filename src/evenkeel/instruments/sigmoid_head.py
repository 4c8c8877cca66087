"""A head of independent sigmoids: how many classes it has, and how many of them each row wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..schema import SiteKind
from ..tracing.events import Event, SigmoidHeadEvent
from ._protocol import Stat


class SigmoidHeadInstrument:
    """sigmoid_classes; one_positive_share: rows that want exactly one class, of the sigmoid_rows that want any."""

    kind: ClassVar[SiteKind] = "head"
    CLASSES = Stat("sigmoid_classes", "count")
    ONE_POSITIVE = Stat("one_positive_share", "share")
    ROWS = Stat("sigmoid_rows", "count")
    stats: ClassVar[tuple[Stat, ...]] = (CLASSES, ONE_POSITIVE, ROWS)

    def __init__(self) -> None:
        self._classes = 0
        self._counts: Tensor | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, SigmoidHeadEvent) and event.logits.numel():
            counts = torch.stack([(event.wanted == 1).sum(), (event.wanted > 0).sum()]).double()
            self._take_in(counts, event.logits.shape[-1])

    def merge(self, other: SigmoidHeadInstrument) -> None:
        if other._counts is not None:
            self._take_in(other._counts, other._classes)

    def _take_in(self, counts: Tensor, classes: int) -> None:
        self._counts = counts if self._counts is None else self._counts + counts
        self._classes = max(self._classes, classes)

    def read(self) -> Mapping[Stat, Tensor]:
        if self._counts is None:
            return {}
        one, some = self._counts.unbind()
        return {
            self.CLASSES: torch.full_like(one, float(self._classes)),
            self.ONE_POSITIVE: one / some,
            self.ROWS: some,
        }
