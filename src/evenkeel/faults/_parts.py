"""The parts of a live model that faults are done to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import NotApplicable, UsageError
from ..schema import Site
from ..surgery.activating import Activating
from ..surgery.attending import Attending
from ..surgery.tape import Entry


@dataclass(frozen=True, eq=False)
class Map:
    """Some of the outputs of a linear map: `channels` of them, along dimension `dim` of its weight."""

    path: str
    module: nn.Module
    dim: int
    channels: Tensor

    @property
    def weight(self) -> Tensor:
        """The map's whole weight."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """The map's whole bias."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def some(self, channels: Tensor) -> Map:
        """The same map, fewer of its channels: those at these numbers."""
        return Map(self.path, self.module, self.dim, self.channels[channels])

    def scale(self, factor: float | Tensor) -> None:
        """Multiply what these channels give, by one number or one for each."""
        weight = self.weight.movedim(self.dim, 0)
        each = torch.as_tensor(factor, dtype=torch.float32).expand(len(self.channels))
        weight[self.channels] = (weight[self.channels].float() * each[:, None]).to(weight.dtype)
        if self.bias is not None:
            self.bias[self.channels] = (self.bias[self.channels].float() * each).to(weight.dtype)

    def shift(self, amount: float | Tensor) -> None:
        """Add to what these channels give; a map without a bias gets one."""
        if self.bias is None:
            if not isinstance(self.module, nn.Linear):
                raise NotApplicable(f"{self.path} has no bias and is no torch.nn.Linear that could take one")
            size = self.weight.shape[self.dim]
            self.module.bias = nn.Parameter(self.weight.new_zeros(size))
        assert self.bias is not None
        self.bias[self.channels] += torch.as_tensor(amount, dtype=self.bias.dtype)


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm with a gain. offset: the gain is 1 + its weight."""

    path: str
    module: nn.Module
    offset: bool

    def scale(self, factor: float, channel: int | None = None) -> None:
        """Multiply the gain, of one channel or of all, and leave the bias."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        kept, chosen = (1.0 if self.offset else 0.0), slice(None) if channel is None else channel
        weight.data[chosen] = (weight.data[chosen].float() + kept) * factor - kept


@dataclass(frozen=True, eq=False)
class Writer:
    """The last module of a block with weights: what the block adds to its stream, or all of the stream."""

    module: nn.Module
    made: Map | Norm

    def scale_channel(self, channel: int, factor: float) -> None:
        """Multiply what it gives in one channel."""
        if isinstance(self.made, Map):
            self.made.some(self.made.channels == channel).scale(factor)
        else:
            self.made.scale(factor, channel)


@dataclass(frozen=True, eq=False)
class Attended:
    """One attention: its block, its queries and keys (batch, heads, tokens, channels), and what makes them."""

    site: Site
    block: str
    entry: Entry
    form: Attending
    query: Tensor
    key: Tensor
    query_map: Map
    key_map: Map
    query_norm: Norm | None
    key_norm: Norm | None

    def scores(self) -> Tensor:
        """What every query gives every key, masks and softcaps aside: (batch, heads, queries, keys)."""
        key = self.key.detach().float()
        key = key.repeat_interleave(self.query.shape[1] // key.shape[1], 1) if key.dim() == 4 else key
        return self.query.detach().float() @ key.mT * self.call_scale

    @property
    def call_scale(self) -> float:
        """What the scores are still multiplied by, queries and keys being as they are at the call."""
        return self.form.scale / getattr(self.form, "before", 1.0)

    def inflate(self, factor: float) -> None:
        """Multiply the scores: queries and keys by √factor each, in their norms where they pass any."""
        for norm, made in ((self.query_norm, self.query_map), (self.key_norm, self.key_map)):
            (made if norm is None else norm).scale(math.sqrt(factor))


@dataclass(frozen=True, eq=False)
class Hidden:
    """One hidden activation of a feed-forward, and the map that leads into it."""

    item: Activating
    block: str
    into: Map

    @property
    def site(self) -> Site:
        return self.item.site


@dataclass(frozen=True, eq=False)
class Head:
    """The output head: the matrix of its logits (tokens, classes), the norm in front of it, what it gave."""

    site: Site
    path: str
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    norm: Norm | None
    logits: Tensor
    tied: bool


@contextmanager
def or_not_applicable() -> Iterator[None]:
    """A refusal of swap is the reason why a fault does not apply."""
    try:
        yield
    except NotApplicable:
        raise
    except UsageError as error:
        raise NotApplicable(str(error)) from error
