"""Norms: what goes in and out, which channels still tell tokens apart, and how much of the work epsilon does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._statistics import by_channel
from ..functional._sums import totalled
from ..schema import SiteKind
from ..tracing.events import Event, NormEvent
from ._protocol import Stat
from ._rows import some_rows


class NormInstrument:
    """Of an even sample of the rows that are normalised, some 16,384 values or 32 rows a call.

    input_rms, output_rms. constant_channel_share: channels of the output that are the same for every token, to one
    spacing of the dtype; constant_input_share: of the input, to half of the dtype's digits, as equal tokens are behind
    maps that round. epsilon_share: mean of epsilon / (variance +
    epsilon) over the rows that vary at all, 0 where none does. reads_stream: share of calls whose input was the
    residual stream. tokens: rows seen.
    """

    kind: ClassVar[SiteKind] = "norm"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("input_rms", "1"),
        Stat("output_rms", "1"),
        Stat("constant_channel_share", "share"),
        Stat("constant_input_share", "share"),
        Stat("epsilon_share", "share"),
        Stat("reads_stream", "share"),
        Stat("tokens", "count"),
    )

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._ends: Tensor | None = None
        self._spacing = 0.0

    def observe(self, event: Event) -> None:
        assert isinstance(event, NormEvent)
        if event.input.numel() == 0:
            return
        rows = some_rows(event.input.reshape(-1, event.size)).double()
        if event.channel_dim == -1:
            output, given = some_rows(event.output.reshape(-1, event.size)).double(), rows
        else:
            output, given = (
                some_rows(by_channel(item, event.channel_dim)).double() for item in (event.output, event.input)
            )
        squares = rows.square().mean(-1)
        variance = rows.var(-1, correction=0) if event.centred else squares
        varied = variance > 0
        share = torch.where(varied, event.epsilon / (variance + event.epsilon), 0)
        one = torch.ones_like(squares[0])
        sums = [
            squares.sum(),
            one * rows.shape[0],
            output.square().mean(-1).sum(),
            one * output.shape[0],
            share.sum(),
            varied.sum(),
            one * float(event.reads_stream),
            one,
        ]
        ends = [-output.amin(0), output.amax(0), -given.amin(0), given.amax(0)]
        self._take_in(torch.stack([item.double() for item in sums]), torch.stack(ends))
        self._spacing = max(self._spacing, torch.finfo(event.output.dtype).eps)

    def merge(self, other: NormInstrument) -> None:
        if other._sums is not None and other._ends is not None:
            self._take_in(other._sums, other._ends)
            self._spacing = max(self._spacing, other._spacing)

    def _take_in(self, sums: Tensor, ends: Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums
        self._ends = ends if self._ends is None else totalled(self._ends, ends, largest=(0, 1, 2, 3))

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None or self._ends is None:
            return {}
        squares, rows, out_squares, out_rows, share, varied, streams, calls = self._sums.unbind()
        low, high = -self._ends[::2], self._ends[1::2]
        spread = (high - low) / torch.maximum(low.abs(), high.abs())
        spacing = spread.new_tensor([[self._spacing], [math.sqrt(self._spacing)]])
        output, given = (~(spread > spacing)).double().mean(-1).unbind()  # 0/0 is constant, NaN is not told apart
        values = (
            (squares / rows).sqrt(),
            (out_squares / out_rows).sqrt(),
            output,
            given,
            share / varied.clamp(min=1),
            streams / calls,
            rows,
        )
        return dict(zip(self.stats, values, strict=True))
