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

    top_share: the largest of these shares. experts: how many there are; chosen_per_token: how many of them each token
    takes; tokens: how many chose. tied_share: the share of tokens that scored all experts alike, where
    scores were seen.
    """

    kind: ClassVar[SiteKind] = "router"
    LOAD_ENTROPY = Stat("load_entropy_relative", "share")
    TOP_SHARE = Stat("top_share", "share")
    EXPERTS = Stat("experts", "count")
    CHOSEN = Stat("chosen_per_token", "experts")
    TOKENS = Stat("tokens", "count")
    TIED = Stat("tied_share", "share")
    stats: ClassVar[tuple[Stat, ...]] = (LOAD_ENTROPY, TOP_SHARE, EXPERTS, CHOSEN, TOKENS, TIED)

    def __init__(self) -> None:
        self._load: Tensor | None = None
        self._tokens = 0
        self._tied: Tensor | None = None  # how many tokens scored all alike, and of how many

    def observe(self, event: Event) -> None:
        assert isinstance(event, RouterEvent)
        if event.chosen.numel() == 0:
            return
        self._tokens += event.chosen.shape[0]
        chosen = event.chosen.reshape(-1)
        load = torch.zeros(event.experts, dtype=torch.float64, device=chosen.device)
        load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
        self._load = load if self._load is None else self._load + load
        if event.scores is not None and event.scores.numel():
            tied = (event.scores.amax(-1) == event.scores.amin(-1)).double()
            self._count(torch.stack([tied.sum(), torch.ones_like(tied).sum()]))

    def _count(self, tied: Tensor) -> None:
        self._tied = tied if self._tied is None else self._tied + tied

    def merge(self, other: RouterInstrument) -> None:
        self._tokens += other._tokens
        if other._tied is not None:
            self._count(other._tied)
        if other._load is not None:
            self._load = other._load if self._load is None else self._load + other._load

    def read(self) -> Mapping[Stat, Tensor]:
        if self._load is None:
            return {}
        share = self._load / self._load.sum()
        entropy = -torch.xlogy(share, share).sum()
        experts = torch.full_like(entropy, float(max(2, share.numel())))
        tokens = torch.full_like(entropy, float(self._tokens))
        tied = {} if self._tied is None else {self.TIED: self._tied[0] / self._tied[1]}
        return {
            **tied,
            self.LOAD_ENTROPY: entropy / experts.log(),
            self.TOP_SHARE: share.max(),
            self.EXPERTS: torch.full_like(entropy, float(share.numel())),
            self.CHOSEN: self._load.sum() / tokens,
            self.TOKENS: tokens,
        }
