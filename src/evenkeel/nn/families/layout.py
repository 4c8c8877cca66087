"""Where the tensors of a checkpoint stand, and how they lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ModelError
from ...schema import clean_name

_NAMED = 3
_OURS = re.compile(r"(?:blocks\.(?P<block>\d+)\.)?(?P<module>.+)\.(?P<kind>\w+)")


@dataclass(frozen=True)
class Form:
    """How a tensor lies: read turns theirs into ours, write ours into theirs."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """A module of theirs, and the modules of ours whose rows stand in it, one behind the other."""

    theirs: str
    ours: tuple[str, ...]
    form: Form


@dataclass(frozen=True)
class Layout:
    """The names of a checkpoint.

    prefix: what older checkpoints leave out at the start of names. blocks: what stands before a layer's number. ends,
    block: the modules outside and inside of a block. ignored: the ends of names of tensors that hold no weights.
    """

    prefix: str
    blocks: str
    ends: tuple[Place, ...]
    block: tuple[Place, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint by name, and the parameters that are in it."""

    theirs: str
    ours: tuple[str, ...]
    form: Form


def place(theirs: str, *ours: str, form: Form | None = None) -> Place:
    """A Place, as it is where no form is given."""
    return Place(theirs, ours, form or AS_IT_IS)


def entries(layout: Layout, parameters: Iterable[str]) -> dict[str, Entry]:
    """All tensors that hold these parameters, by their names; raises ModelError for a parameter without a place."""
    ends, block = _by_module(layout.ends), _by_module(layout.block)
    found: dict[str, Entry] = {}
    for name in parameters:
        match = _OURS.fullmatch(name)
        number = match and match["block"]
        held = match and (ends if number is None else block).get(match["module"])
        if match is None or held is None:
            raise ModelError(f"{name} has no place in checkpoints of this layout; add one to its Layout")
        ours = "" if number is None else f"blocks.{number}."
        theirs = "" if number is None else f"{layout.blocks}.{number}."
        theirs, kind = theirs + held.theirs, match["kind"]
        parts = tuple(f"{ours}{module}.{kind}" for module in held.ours)
        found[f"{theirs}.{kind}"] = Entry(f"{theirs}.{kind}", parts, held.form)
    return found


def full_names(layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """The names of a checkpoint's tensors by what they would be with the prefix, without those that hold no weights."""
    outside = tuple(f"{item.theirs}." for item in layout.ends if not item.theirs.startswith(layout.prefix))
    found = {}
    for name in names:
        if not name.endswith(layout.ignored):
            found[name if name.startswith((layout.prefix, *outside)) else layout.prefix + name] = name
    return found


def ours_from(entry: Entry, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The parameters in a tensor; raises ModelError where their shapes are others."""
    lying = entry.form.read(tensor)
    rows = [shapes[name][0] for name in entry.ours]
    expected = (sum(rows), *shapes[entry.ours[0]][1:])
    if tuple(lying.shape) != expected:
        raise ModelError(
            f"{clean_name(entry.theirs)} holds {tuple(lying.shape)}, as our layers lie, and config.json asks for "
            f"{expected}; give the config and the weights of one model"
        )
    if len(rows) == 1:
        return {entry.ours[0]: lying.contiguous()}
    return {name: part.clone() for name, part in zip(entry.ours, lying.split(rows), strict=True)}


def theirs_from(entry: Entry, weights: Mapping[str, Tensor]) -> Tensor:
    """The tensor that holds these parameters."""
    parts = [weights[name].detach() for name in entry.ours]
    return entry.form.write(parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()


def some(names: Iterable[str]) -> str:
    """A few of the names, as messages show them."""
    names = sorted(names)
    return ", ".join(map(clean_name, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _by_module(places: Iterable[Place]) -> dict[str, Place]:
    return {module: item for item in places for module in item.ours}


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.dim() == 2 else tensor


def _behind_two(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.new_zeros(2, *tensor.shape[1:]), tensor])


AS_IT_IS = Form(lambda tensor: tensor, lambda tensor: tensor)
TURNED = Form(_turned, _turned)
"""Inputs by outputs, as GPT's Conv1D keeps its matrices."""
BEHIND_TWO = Form(lambda tensor: tensor[2:], _behind_two)
"""Rows behind two that no token ever takes, as OPT keeps its positions."""
