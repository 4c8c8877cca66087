"""Activations as a change sees them: which op each has, whether it is part of a feed-forward, and how to replace it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..functional import ACTIVATIONS, gated
from ..schema import Site
from ..tracing.events import ActivationEvent
from ..tracing.functions import ANCHORS, POINTWISE
from .places import Survey, aliases, made_here
from .rewriting import Action, Kept
from .tape import Entry

Function = Callable[..., Any]

_ROOT = "root"


@dataclass(frozen=True)
class Activated(Action):
    """Another activation of argument `position`, or where that is None of the tensor that was kept before."""

    name: str
    position: int | None
    in_place: bool

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        function = ACTIVATIONS[self.name].function
        x = kept.pop(_ROOT) if self.position is None else args[self.position]
        if not self.in_place:
            return function(x)
        written: Tensor = next(iter(args))
        return written.copy_(function(x.clone()))


@dataclass(frozen=True)
class KeptForLater(Action):
    """The call as it is; its argument `position` is what a later one applies another activation to."""

    position: int
    written_over: bool

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
        x = args[self.position]
        kept[_ROOT] = x.clone() if self.written_over else x
        return func(*args, **kwargs)


@dataclass(frozen=True)
class GatedActivated(Action):
    """evenkeel.functional.gated with another activation."""

    name: str

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        gate, up, *_ = args
        return func(gate, up, self.name)


@dataclass(frozen=True)
class GluActivated(Action):
    """F.glu with another activation in the place of its sigmoid."""

    name: str

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        x, *rest = args
        up, gate = x.chunk(2, rest[0] if rest else kwargs.get("dim", -1))
        return up * ACTIVATIONS[self.name].function(gate)


@dataclass(frozen=True, eq=False)
class Activating:
    """One activation of the traced run: a whole module, or calls of which `entry` is the last."""

    site: Site
    op: str
    event: ActivationEvent | None
    module: nn.Module | None = None
    entry: Entry | None = None
    reason: str = ""

    def calls(self, survey: Survey, name: str) -> list[tuple[Entry, Action]]:
        """The calls to change for another activation, where it is no whole module; raises UsageError where none are."""
        entry = self.entry
        if entry is None:
            raise UsageError(self.reason)
        if entry.func is gated:
            return [(entry, GatedActivated(name))]
        if entry.name == "glu":
            return [(entry, GluActivated(name))]
        assert self.event is not None
        in_place = writes(entry)
        if in_place and entry.name in ANCHORS:
            return [(entry, Activated(name, 0, True))]
        position = _position(entry, self.event.input)
        if position is not None and not in_place:
            return [(entry, Activated(name, position, False))]
        first, position = _first_use(survey, self.event.input, entry)
        return [(first, KeptForLater(position, writes(first))), (entry, Activated(name, None, in_place))]


def writes(entry: Entry) -> bool:
    """Whether a call writes into its first argument."""
    return entry.in_place or entry.kwargs.get("inplace") is True


def _position(entry: Entry, tensor: Tensor) -> int | None:
    places = (place for place, item in enumerate(entry.args) if isinstance(item, Tensor) and aliases(item, tensor))
    return next(places, None)


def _first_use(survey: Survey, tensor: Tensor, last: Entry) -> tuple[Entry, int]:
    """The first pointwise call of the tensor in the frame of the last one, and which argument it is there."""
    for entry in survey.tape.entries[: last.index]:
        if entry.frames[-1:] == last.frames[-1:] and entry.name in POINTWISE:
            position = _position(entry, tensor)
            if position is not None:
                return entry, position
    raise UsageError("it is made of several calls, and the one that it begins with cannot be found again")


def activatings(survey: Survey) -> Iterator[Activating]:
    """Every activation site, measured or not."""
    fused = [entry for entry in survey.tape.entries if entry.name in ("gated", "clamped_swiglu") and entry.frames]
    for site, event, _ in survey.events("activation"):
        assert isinstance(event, ActivationEvent)
        module = survey.module_at(site.path)
        if survey.structure.pointwise_op(module) == site.op:
            yield Activating(site, site.op, event, module=module)
            continue
        entry = made_here(survey, event.output, lambda entry: entry.name in POINTWISE)
        if entry is None:
            entry = next((item for item in fused if item.args[0].data_ptr() == event.input.data_ptr()), None)
        yield _by_call(site, event, entry)
    for site, _, entry in survey.events("gate"):
        if entry.name == "glu":
            yield Activating(site, "sigmoid", None, entry=entry)
    for kind in ("activation", "gate"):
        for site in survey.unmeasured(kind):
            yield Activating(site, site.op, None, reason=site.reason)


def _by_call(site: Site, event: ActivationEvent, entry: Entry | None) -> Activating:
    if entry is None:
        reason = "it is written over in place before its module ends, so its call cannot be found again"
        return Activating(site, site.op, event, reason=reason)
    if entry.name == "clamped_swiglu":
        return Activating(site, site.op, event, reason="clamped_swiglu is one formula, with no activation of its own")
    return Activating(site, site.op, event, entry=entry)


def in_feedforward(survey: Survey, found: list[Activating]) -> list[Activating]:
    """Those in blocks, where there are blocks, and outside of attention, recurrences and routers."""
    layers = [path for identity in survey.structure.layers for path in survey.structure.paths[identity]]
    in_layers = [item for item in found if any(is_below(item.site.path, layer) for layer in layers)]
    mixing = [
        site.path
        for site in survey.sites
        if site.kind in ("attention", "recurrence", "router")
        and not any(is_below(layer, site.path) for layer in layers)
        and site.path
    ]
    return [item for item in in_layers or found if not any(is_below(item.site.path, path) for path in mixing)]


def is_below(path: str, other: str) -> bool:
    """Whether a path is another one or inside it."""
    return not other or path == other or path.startswith(other + ".")
