"""Residual branches as a change sees them: what a block adds to its stream, and where nothing is added yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, UsageError
from ..schema import Site
from ..tracing.functions import CASTS, CONVOLUTIONS, MATMULS
from ..tracing.provenance import tensors_in
from .edits import Edit, ForwardEdit, rewritings
from .places import Survey
from .rewriting import Action, Forward, Kept
from .tape import Entry, Frame

_SEVERAL = (
    "its block does not call it as one module that gives what it is given the shape of, so there is no branch to add to"
)


@dataclass(frozen=True)
class BranchAlone(Action):
    """What a branch gives (argument `position`), without the stream that it would be added to."""

    position: int

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        return args[self.position]


@dataclass(eq=False)
class Stream:
    """What a norm was given, until the branch behind it has ended."""

    value: Tensor | None = None

    def taken(self) -> Tensor:
        """The value, which is then let go."""
        value, self.value = self.value, None
        if value is None:
            raise ModelError(
                "a branch with a swapped residual connection ran without the norm in front of it, so there is no "
                "stream to add; restore() the swap to run the branch by itself"
            )
        return value


@dataclass(eq=False, kw_only=True)
class NormForward(Forward):
    """The forward of a norm in front of a branch."""

    stream: Stream = field(default_factory=Stream)

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        self.stream.value = next(iter(tensors_in([args, kwargs])))
        return self.before(*args, **kwargs)


@dataclass(eq=False, kw_only=True)
class BranchForward(Forward):
    """The forward of a branch, with the stream added: what its norm was given, or what it was given itself."""

    stream: Stream | None = None

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        given = next(iter(tensors_in([args, kwargs])))
        output = self.before(*args, **kwargs)
        stream = given if self.stream is None else self.stream.taken()
        if isinstance(output, tuple):
            return (_joined(output[0], stream), *output[1:])
        return _joined(output, stream)


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of a block in the traced run: the norm in front of it, its last module, and where it is added."""

    site: Site
    norm: Frame | None
    last: Frame
    added: Added | None


@dataclass(frozen=True, eq=False)
class Added:
    """The sum of a branch (argument `position`) and the stream; `alone`: it is that branch's and of no other one."""

    entry: Entry
    position: int
    alone: bool


def branches(survey: Survey, found: Iterable[tuple[Site, Iterable[Frame]]]) -> Iterator[Branch]:
    """The branches that these sites (each with the frames it ran in) stand in; raises UsageError where one has none."""
    seen: set[Frame] = set()
    for site, frames in found:
        frame = next((item for item in frames if _is_layer(survey, item.caller)), None)
        if frame is None or not _alike(frame.given, _first(frame.gave)) or not _maps(survey, frame):
            raise UsageError(f"{site.id} cannot be changed: {_SEVERAL}")
        if frame not in seen:
            seen.add(frame)
            norm = _norm(survey, frame)
            yield Branch(site, norm, _last(survey, frame, norm), _sum(survey, frame, norm, site))


def edits_for(survey: Survey, found: list[Branch], wanted: bool) -> list[Edit]:
    """The edits that put a residual connection around these branches, or take it away."""
    if not wanted:
        return [*rewritings(survey, [_without(branch) for branch in found])]
    edits: list[Edit] = []
    for module, branch in {branch.last.module: branch for branch in found}.items():
        stream = None if branch.norm is None else Stream()
        if branch.norm is not None and stream is not None:
            norm = branch.norm.module
            edits.append(ForwardEdit(NormForward(module=norm, path=survey.path_of(norm), rules={}, stream=stream)))
        edits.append(ForwardEdit(BranchForward(module=module, path=survey.path_of(module), rules={}, stream=stream)))
    return edits


def frames_of(survey: Survey, module: nn.Module) -> list[Frame]:
    """The frames in which a module ran, from its own outwards, of its first call."""
    frame: Frame | None = next(iter(survey.tape.calls_of(module)), None)
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.caller
    return found


def _joined(branch: Tensor, stream: Tensor) -> Tensor:
    """Their sum, as another function than `+`: a swap around this one counts the sums that the model makes itself."""
    return torch.add(branch, stream)


def _is_layer(survey: Survey, frame: Frame | None) -> bool:
    return frame is not None and id(frame.module) in survey.structure.layers


def _alike(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape


def _first(output: Any) -> Tensor | None:
    return next(iter(tensors_in(output)), None)


def _norm(survey: Survey, branch: Frame) -> Frame | None:
    """The module of the same block whose very output the branch is given, where it is the branch's own norm.

    In a post-norm block, whose first norm runs behind its first branch, it belongs to the branch before.
    """
    beside = _beside(survey, branch)
    first_norm = min((item.index for item in beside if _has_weights(item) and not _maps(survey, item)), default=0)
    if first_norm > min(item.index for item in (*beside, branch) if _maps(survey, item)):
        return None
    found = (item for item in beside if item.gave is branch.given and _alike(item.given, branch.given))
    return next((item for item in found if not _maps(survey, item)), None)


def _last(survey: Survey, branch: Frame, norm: Frame | None) -> Frame:
    """The branch, or the norm behind it where there is one in front of it as well and none belongs to what follows."""
    if norm is None or not _has_weights(norm):
        return branch
    output = _first(branch.gave)
    for item in _beside(survey, branch):
        if (
            item.given is output
            and _has_weights(item)
            and not _maps(survey, item)
            and _alike(_first(item.gave), output)
        ):
            followed = any(_maps(survey, after) and after.given is item.gave for after in _beside(survey, branch))
            return branch if followed else item
    return branch


def _sum(survey: Survey, branch: Frame, norm: Frame | None, site: Site) -> Added | None:
    """Where what the branch gives, or what a norm or dropout makes of it, meets the stream in the same block.

    Raises UsageError where it meets something that may be the stream and cannot be told from it.
    """
    stream = branch.given if norm is None else norm.given
    for entry in survey.tape.within(branch):
        if entry.name == "add" and any(item is stream for item in entry.args[:2]):
            return Added(entry, 0, alone=False)
    assert branch.caller is not None
    own, mixed, after = {id(_first(branch.gave))}, set[int](), {id(_first(branch.gave))}
    steps = [*_beside(survey, branch), *survey.tape.within(branch.caller)]
    for step in sorted(steps, key=lambda step: step.index):
        if isinstance(step, Frame):
            if not _maps(survey, step):
                for made in (own, mixed):
                    made |= {id(_first(step.gave))} if id(step.given) in made else set()
            continue
        places = [place for place, item in enumerate(step.args[:2]) if id(item) in own | mixed]
        if places and step.name == "add":
            other = step.args[1 - places[0]] if len(step.args) > 1 else None
            if other is stream:
                return Added(step, places[0], alone=id(step.args[places[0]]) in own and not step.in_place)
            if id(other) not in after and _alike(other, step.result):
                raise UsageError(f"{site.id} cannot be changed: what it is added to may be its block's stream or not")
            mixed.add(id(step.result))
        elif places and step.name in CASTS:
            (own if id(step.args[places[0]]) in own else mixed).add(id(step.result))
        if any(id(item) in after for item in tensors_in([step.args, step.kwargs])):
            after |= {id(item) for item in tensors_in(step.result)}
    return None


def _without(branch: Branch) -> tuple[Entry, Action]:
    added = branch.added
    if added is None or not added.alone:
        raise UsageError(f"{branch.site.id} cannot be changed: its block adds it to the stream together with others")
    return added.entry, BranchAlone(added.position)


def _beside(survey: Survey, branch: Frame) -> list[Frame]:
    return [item for item in survey.tape.frames if item.caller is branch.caller and item is not branch]


def _maps(survey: Survey, frame: Frame) -> bool:
    """Whether there are linear maps in a module, so that it is more than a norm or dropout."""
    return any(entry.name == "linear" or entry.name in MATMULS | CONVOLUTIONS for entry in survey.tape.within(frame))


def _has_weights(frame: Frame) -> bool:
    return next(frame.module.parameters(), None) is not None
