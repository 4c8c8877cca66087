"""Attention as a change sees it: its scale, its softcap, and which calls to change for another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..errors import UsageError
from ..functional import attention, scale_factor
from ..schema import Site
from ..tracing.functions import CONVOLUTIONS, MATMULS
from ..tracing.provenance import tensors_in
from .by_hand import ByHand, scaled_before
from .places import Survey
from .rewriting import Action
from .scores import (
    FLEXIBLE,
    FUSED,
    FlexibleScale,
    FusedNorm,
    FusedScale,
    FusedSoftcap,
    MultiHeadScale,
    OwnNorm,
    OwnScale,
    OwnSoftcap,
    factors,
    fused_scale,
    named,
)
from .tape import Entry, Tape

Calls = list[tuple[Entry, Action]]

_NORMS = ("rms_norm", "layer_norm", "rsqrt", "normalize", "norm")


class Attending(Protocol):
    """One attention of the traced run, in whatever form it is called."""

    @property
    def head_dim(self) -> int:
        """How many channels q·k sums over."""
        ...

    @property
    def scale(self) -> float:
        """What q·k is multiplied by, all told."""
        ...

    @property
    def softcap(self) -> float | None:
        """The bound on the scores, where there is one."""
        ...

    @property
    def product(self) -> Entry:
        """The call in which queries and keys meet."""
        ...

    def scaled(self, factor: float) -> Calls:
        """The calls to change for the scale times a factor."""
        ...

    def capped(self, softcap: float | None) -> Calls:
        """The calls to change for another softcap."""
        ...

    def normed(self) -> Calls:
        """The calls to change for queries and keys of unit rms."""
        ...


@dataclass
class Fused:
    """F.scaled_dot_product_attention."""

    product: Entry
    before: float
    softcap: float | None = None

    def __post_init__(self) -> None:
        given = named(FUSED, self.product.args, self.product.kwargs)
        self.head_dim = given["query"].shape[-1]
        self.scale = fused_scale(given) * self.before

    def scaled(self, factor: float) -> Calls:
        return [(self.product, FusedScale(factor))]

    def capped(self, softcap: float | None) -> Calls:
        return [] if softcap is None else [(self.product, FusedSoftcap(softcap))]

    def normed(self) -> Calls:
        return [(self.product, FusedNorm(self.before))]


@dataclass
class Own:
    """evenkeel.functional.attention."""

    product: Entry
    before: float

    def __post_init__(self) -> None:
        self.head_dim = self.product.args[0].shape[-1]
        self.scale = scale_factor(self.product.kwargs["scale"], self.head_dim) * self.before
        self.softcap: float | None = self.product.kwargs["softcap"]

    def scaled(self, factor: float) -> Calls:
        return [(self.product, OwnScale(factor))]

    def capped(self, softcap: float | None) -> Calls:
        return [(self.product, OwnSoftcap(softcap))]

    def normed(self) -> Calls:
        return [(self.product, OwnNorm(self.before))]


@dataclass
class MultiHead:
    """F.multi_head_attention_forward, as nn.MultiheadAttention calls it."""

    product: Entry
    softcap: float | None = None

    def __post_init__(self) -> None:
        width, heads = self.product.argument(3, "embed_dim_to_check"), self.product.argument(4, "num_heads")
        self.head_dim = width // heads
        self.scale = 1 / math.sqrt(self.head_dim)

    def scaled(self, factor: float) -> Calls:
        return [(self.product, MultiHeadScale(factor))]

    def capped(self, softcap: float | None) -> Calls:
        raise UsageError(_CLOSED.format("a softcap"))

    def normed(self) -> Calls:
        raise UsageError(_CLOSED.format("a norm of queries and keys"))


_CLOSED = (
    "F.multi_head_attention_forward has its queries and keys inside one call, where {} cannot be put; its scale and "
    "temperature can be changed"
)


@dataclass
class Flexible:
    """FlexAttention's operator."""

    product: Entry
    before: float
    softcap: float | None = None

    def __post_init__(self) -> None:
        given = named(FLEXIBLE, self.product.args, self.product.kwargs)
        self.head_dim = given["query"].shape[-1]
        self.scale = given["scale"] * self.before

    def scaled(self, factor: float) -> Calls:
        return [(self.product, FlexibleScale(factor))]

    def capped(self, softcap: float | None) -> Calls:
        raise UsageError("FlexAttention bounds its scores in a score function of its own; put the softcap there")

    def normed(self) -> Calls:
        return [(self.product, FlexibleScale(self.before, normed=True))]


def attendings(survey: Survey) -> Iterator[tuple[Site, Entry | None, Any]]:
    """Every attention site, the call it was known by, and how it attends or the reason why that is not known."""
    for site, _, entry in survey.events("attention"):
        try:
            yield site, entry, _form(survey.tape, entry)
        except UsageError as error:
            yield site, entry, str(error)
    for site in survey.unmeasured("attention"):
        entry = _own_call(survey, site)
        if entry is None:
            yield site, None, site.reason
        else:
            yield site, entry, Own(entry, _before(survey.tape, entry))


def _form(tape: Tape, entry: Entry) -> Attending:
    if entry.name == "scaled_dot_product_attention":
        return Fused(entry, _before(tape, entry))
    if entry.func is attention:
        return Own(entry, _before(tape, entry))
    if entry.name == "multi_head_attention_forward":
        return MultiHead(entry)
    if entry.name == "flex_attention":
        return Flexible(entry, _before(tape, entry))
    return ByHand.of(tape, entry)


def is_normed(tape: Tape, form: Attending) -> bool:
    """Whether queries and keys have passed a norm since the maps that made them."""
    tensors = [item for item in factors(form.product.args, form.product.kwargs) if isinstance(item, Tensor)]
    if isinstance(form, ByHand):
        return all(_passed_norm(tape, item, form.product) for item in tensors[-2:])
    return all(_passed_norm(tape, item, form.product) for item in tensors[:2])


def _passed_norm(tape: Tape, tensor: Tensor, user: Entry) -> bool:
    maker = tape.maker(tensor, user)
    if maker is None or maker.name == "linear" or maker.name in MATMULS | CONVOLUTIONS:
        return False
    if maker.name in _NORMS:
        return True
    return any(_passed_norm(tape, item, maker) for item in tensors_in([maker.args, maker.kwargs]))


def _own_call(survey: Survey, site: Site) -> Entry | None:
    """The call of evenkeel's own attention at a site whose kind no instrument reads."""
    calls = [
        entry
        for entry in survey.tape.entries
        if entry.func is attention and entry.frames and survey.path_of(entry.frames[-1].module) == site.path
    ]
    return calls[site.call] if site.call < len(calls) else None


def _before(tape: Tape, entry: Entry) -> float:
    """The numbers that queries and keys were multiplied by on their way from the last map of them to the call."""
    return scaled_before(tape, entry.argument(0, "query"), entry) * scaled_before(tape, entry.argument(1, "key"), entry)
