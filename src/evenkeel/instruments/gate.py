"""Gates: how often they are open, whether they choose between tokens, and how heavy-tailed their products are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import Magnitudes, Moments, absolute_maximum, by_channel, in_pieces
from ..schema import SiteKind
from ..tracing.events import Event, GateEvent
from ._protocol import Stat


class GateInstrument:
    """Of `product = a·up`, with the gate's activated values a.

    gate_open_share: |a| above half of a's rms. selectivity: the variance of a between tokens within a channel, averaged
    over channels, as a share of all variance of a. product_absmax; product_kurtosis, 3 for a normal distribution.
    dead_channel_share: channels where a is 0 for every token. tokens: values seen per channel.
    """

    kind: ClassVar[SiteKind] = "gate"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("gate_open_share", "share"),
        Stat("selectivity", "share"),
        Stat("product_absmax", "1"),
        Stat("product_kurtosis", "1"),
        Stat("dead_channel_share", "share"),
        Stat("tokens", "count"),
    )

    def __init__(self) -> None:
        self._sizes = Magnitudes()
        self._product: Moments | None = None
        self._sums: dict[str, Tensor] | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, GateEvent)
        if event.activated.numel() == 0:
            return
        self._sizes.add(event.activated)
        gate, product = (by_channel(item, event.channel_dim) for item in (event.activated, event.product))
        for a, made in in_pieces(gate, product):
            self._take_in(_sums(a.double(), made), Moments.of(made))

    def merge(self, other: GateInstrument) -> None:
        if other._sums is not None and other._product is not None:
            self._sizes.merge(other._sizes)
            self._take_in(other._sums, other._product)

    def _take_in(self, sums: dict[str, Tensor], product: Moments) -> None:
        self._product = product if self._product is None else self._product.merged(product)
        if self._sums is None:
            self._sums = sums
            return
        own = self._sums
        extremes = {name: torch.maximum(own[name], sums[name]) for name in ("largest", "absmax")}
        self._sums = {name: own[name] + sums[name] for name in sums} | extremes

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None or self._product is None:
            return {}
        tokens, total, squares = (self._sums[name] for name in ("tokens", "sum", "squares"))
        within = (squares / tokens - (total / tokens).square()).clamp(min=0).mean()
        variance = (squares.mean() / tokens - (total.mean() / tokens).square()).clamp(min=0)
        values = (
            self._sizes.share_above(0.5 * (squares.mean() / tokens).sqrt()),
            torch.where(variance == 0, 0, within / variance),
            self._sums["absmax"],
            self._product.kurtosis,
            (self._sums["largest"] == 0).double().mean(),
            tokens,
        )
        return dict(zip(self.stats, values, strict=True))


def _sums(gate: Tensor, product: Tensor) -> dict[str, Tensor]:
    return {
        "tokens": torch.full((), float(gate.shape[0]), dtype=torch.float64, device=gate.device),
        "sum": gate.sum(0),
        "squares": gate.square().sum(0),
        "largest": gate.abs().amax(0),
        "absmax": absolute_maximum(product),
    }
