"""Gates: how often they are open, whether they choose between tokens, and how heavy-tailed their products are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import Magnitudes, TensorStatistics, tensor_statistics
from ..schema import SiteKind
from ..tracing.events import Event, GateEvent
from ._protocol import Stat


class GateInstrument:
    """Of `product = a·up`, with the gate's activated values a.

    gate_open_share: |a| above half of a's rms. selectivity: the variance of a between tokens within a channel, averaged
    over channels, as a share of all variance of a; token_share: the same as a share of a's energy E[a^2], of which
    activated_rms is the root. product_absmax; product_kurtosis, 3 for a normal distribution. dead_channel_share:
    channels where a is 0 for every token. tokens: values seen per channel.
    """

    kind: ClassVar[SiteKind] = "gate"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("gate_open_share", "share"),
        Stat("selectivity", "share"),
        Stat("product_absmax", "1"),
        Stat("product_kurtosis", "1"),
        Stat("dead_channel_share", "share"),
        Stat("tokens", "count"),
        Stat("activated_rms", "1"),
        Stat("token_share", "share"),
    )

    def __init__(self) -> None:
        self._sizes = Magnitudes()
        self._statistics: tuple[TensorStatistics, TensorStatistics] | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, GateEvent)
        if event.activated.numel() == 0:
            return
        self._sizes.add(event.activated)
        channel_dim = event.channel_dim if event.activated.dim() > 1 else None
        gate = tensor_statistics(event.activated, channel_dim=channel_dim)
        self._take_in(gate, tensor_statistics(event.product))

    def merge(self, other: GateInstrument) -> None:
        if other._statistics is not None:
            self._sizes.merge(other._sizes)
            self._take_in(*other._statistics)

    def _take_in(self, gate: TensorStatistics, product: TensorStatistics) -> None:
        own = self._statistics
        self._statistics = (gate, product) if own is None else (own[0].merged(gate), own[1].merged(product))

    def read(self) -> Mapping[Stat, Tensor]:
        if self._statistics is None:
            return {}
        gate, product = self._statistics
        overall = gate.mean.mean()
        within = gate.variance.mean()
        variance = within + (gate.mean - overall).square().mean()
        energy = variance + overall.square()
        open_share = self._sizes.share_above(0.5 * energy.sqrt())
        largest = torch.where(product.infinite > 0, torch.inf, product.absolute_maximum)
        odd = gate.nan + gate.infinite
        values = (
            torch.where(odd.sum() > 0, torch.nan, open_share),
            torch.where(odd.sum() > 0, torch.nan, torch.where(variance == 0, 0, within / variance)),
            torch.where(product.nan > 0, torch.nan, largest),
            torch.where(product.nan + product.infinite > 0, torch.nan, product.kurtosis),
            ((gate.absolute_maximum == 0) & (odd == 0)).double().mean(),
            (gate.count + odd).flatten()[0],
            torch.where(odd.sum() > 0, torch.nan, energy.sqrt()),
            torch.where(odd.sum() > 0, torch.nan, torch.where(energy == 0, 0, within / energy)),
        )
        return dict(zip(self.stats, values, strict=True))
