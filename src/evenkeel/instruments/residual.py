"""The residual stream behind each block: its size, its outliers, and the gradient that comes back to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._dtypes import widened
from ..functional._statistics import Magnitudes
from ..functional._sums import sizes
from ..schema import SiteKind
from ..tracing.events import Event, GradientEvent, OutputEvent, StreamEvent
from ._protocol import Stat
from ._rows import some_rows

_BLOCK = 2**18  # values that are held twice at a time
_ROUNDING = 1e-12  # of a sum of squares, what is left when its mean is taken off


class ResidualInstrument:
    """residual_rms; residual_absmax_ratio, the largest |x| over the median |x|; gradient_rms of the loss by the output.

    gradient_across_rms: the same without each token's part along its own output, which a norm behind it would not let
    through: what makes a vector longer changes nothing that is normed.

    A stream of nothing but zeros has ratio 0. Of an even sample of tokens, at most 16,384 values or 32 tokens a
    call: top_channel_share, the largest mean share of one channel in a token's energy; input_cosine, between what
    the block was given and what it gives, each less its mean over the tokens. carries_input: 1 where in every call
    the input came through the block or past it, by a way of elementwise functions alone; 0 where it did not.
    """

    kind: ClassVar[SiteKind] = "residual"
    RMS = Stat("residual_rms", "1")
    ABSMAX_RATIO = Stat("residual_absmax_ratio", "1")
    TOP_CHANNEL = Stat("top_channel_share", "share")
    INPUT_COSINE = Stat("input_cosine", "1")
    CARRIES_INPUT = Stat("carries_input", "1")
    GRADIENT_RMS = Stat("gradient_rms", "1", phase="backward")
    GRADIENT_ACROSS = Stat("gradient_across_rms", "1", phase="backward")
    stats: ClassVar[tuple[Stat, ...]] = (
        RMS,
        ABSMAX_RATIO,
        TOP_CHANNEL,
        INPUT_COSINE,
        CARRIES_INPUT,
        GRADIENT_RMS,
        GRADIENT_ACROSS,
    )

    def __init__(self) -> None:
        self._sizes = Magnitudes()
        self._largest: Tensor | None = None
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._carries: bool | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent) and event.output.numel():
            self._sizes.add(event.output)
            squares, largest, _ = sizes(event.output).unbind()
            self._enlarge(largest)
            self._add("output", squares, event.output.numel())
            self._sample(event)
        elif isinstance(event, GradientEvent) and event.gradient.numel():
            self._add("gradient", sizes(event.gradient)[0], event.gradient.numel())
            if event.output is not None and event.output.shape == event.gradient.shape:
                self._add("across", _across(event.gradient, event.output), event.gradient.numel())
        elif isinstance(event, StreamEvent):
            self._hold(event.carries_input)

    def _sample(self, event: OutputEvent) -> None:
        rows = _tokens(event.output)
        squares = rows.square()
        energy = squares.sum(-1, keepdim=True)
        self._add("channels", torch.where(energy > 0, squares / energy, 0).sum(0), len(rows))
        if event.input is not None:
            given = _tokens(event.input)
            self._add("products", torch.stack([(rows * given).sum(), squares.sum(), given.square().sum()]), len(rows))
            self._add("means", torch.stack([rows.sum(0), given.sum(0)]), len(rows))

    def merge(self, other: ResidualInstrument) -> None:
        self._sizes.merge(other._sizes)
        if other._largest is not None:
            self._enlarge(other._largest)
        for name, (total, count) in other._sums.items():
            self._add(name, total, count)
        self._hold(other._carries)

    def _enlarge(self, largest: Tensor) -> None:
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def _add(self, name: str, total: Tensor, count: int) -> None:
        if name in self._sums:
            total, count = total + self._sums[name][0], count + self._sums[name][1]
        self._sums[name] = (total, count)

    def _hold(self, carries: bool | None) -> None:
        if carries is not None:
            self._carries = carries and self._carries is not False

    def read(self) -> Mapping[Stat, Tensor]:
        found = {}
        means = {name: total / count for name, (total, count) in self._sums.items()}
        for name, stat in (("output", self.RMS), ("gradient", self.GRADIENT_RMS), ("across", self.GRADIENT_ACROSS)):
            if name in means:
                found[stat] = means[name].sqrt()
        if self._largest is not None:
            found[self.ABSMAX_RATIO] = torch.where(self._largest == 0, 0, self._largest / self._sizes.median())
            found[self.TOP_CHANNEL] = means["channels"].amax()
        if "products" in means:
            mean, given_mean = means["means"]
            constant = torch.stack([(mean * given_mean).sum(), mean.square().sum(), given_mean.square().sum()])
            product, own, given = (means["products"] - constant).unbind()
            alike = (means["products"] - constant)[1:] <= _ROUNDING * means["products"][1:]  # all tokens, or one
            found[self.INPUT_COSINE] = torch.where(alike.any(), 0, product / (own * given).sqrt())
            if self._carries is not None:
                found[self.CARRIES_INPUT] = torch.full_like(product, float(self._carries))
        return found


def _across(gradient: Tensor, output: Tensor) -> Tensor:
    """The sum of squares of the gradient's part that is orthogonal to each token's output."""
    rows = max(1, _BLOCK // max(1, output.shape[-1]))
    parts = zip(*(item.reshape(-1, item.shape[-1]).split(rows) for item in (gradient, output)), strict=True)
    return torch.stack([_across_rows(widened(g), widened(x)) for g, x in parts]).sum()


def _across_rows(g: Tensor, x: Tensor) -> Tensor:
    energy = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    along = (g * x).sum(-1, keepdim=True) / torch.where(energy > 0, energy, 1)
    return torch.linalg.vector_norm(g - along * x, dtype=torch.float64).square()


def _tokens(x: Tensor) -> Tensor:
    return some_rows(x.reshape(-1, x.shape[-1])).double()
