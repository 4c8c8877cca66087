"""Routers: whether the experts share the load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..schema import SiteKind
from ..tracing.events import Event, RouterEvent
from ._protocol import Stat


class RouterInstrument:
    """load_entropy_relative: the entropy of the experts' shares of all choices over log(experts).

    top_share: the largest of these shares.
    """

    kind: ClassVar[SiteKind] = "router"
    LOAD_ENTROPY = Stat("load_entropy_relative", "share")
    TOP_SHARE = Stat("top_share", "share")
    stats: ClassVar[tuple[Stat, ...]] = (LOAD_ENTROPY, TOP_SHARE)

    def __init__(self) -> None:
        self._load: Tensor | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, RouterEvent)
        if event.chosen.numel() == 0:
            return
        chosen = event.chosen.reshape(-1)
        load = torch.zeros(event.experts, dtype=torch.float64, device=chosen.device)
        load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
        self._load = load if self._load is None else self._load + load

    def merge(self, other: RouterInstrument) -> None:
        if other._load is not None:
            self._load = other._load if self._load is None else self._load + other._load

    def read(self) -> Mapping[Stat, Tensor]:
        if self._load is None:
            return {}
        share = self._load / self._load.sum()
        entropy = -torch.xlogy(share, share).sum()
        experts = torch.full_like(entropy, float(max(2, share.numel())))
        return {self.LOAD_ENTROPY: entropy / experts.log(), self.TOP_SHARE: share.max()}
