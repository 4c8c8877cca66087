"""Faults of weights: far too small, far too large, not finite, or out of the gradient's reach."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..errors import NotApplicable
from ..surgery.activating import is_below
from ._draws import between, one
from ._edits import change_output
from ._fault import Fault, Injury, Patient
from ._places import Anatomy


@torch.no_grad()
def _init(low: float, high: float, patient: Patient, generator: torch.Generator) -> Injury:
    factor = between(low, high, generator)
    for _, _, matrix in Anatomy(patient).matrices():
        matrix.mul_(factor)
    return Injury(patient)


@torch.no_grad()
def _not_finite(value: float, patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    reached = [
        (path, matrix)
        for path, module, matrix in anatomy.matrices()
        if matrix.dim() == 2 and anatomy.block_of(path) in anatomy.blocks and anatomy.first_call(module) is not None
    ]
    if not reached:
        raise NotApplicable(f"{type(patient.model).__name__} has no matrix of floats in its blocks")
    path, matrix = one(reached, generator)
    place = int(torch.randint(matrix.numel(), (), generator=generator))
    matrix.view(-1)[place] = value if math.isnan(value) or torch.rand((), generator=generator) < 0.5 else -value
    return Injury(patient, (path,))


def _nan_gradient(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    block = one(anatomy.blocks, generator)
    change_output(anatomy, block, through_zero_root)
    return Injury(patient, (block,))


def through_zero_root(x: Tensor) -> Tensor:
    """x plus √(Σ (x − x)²): 0, with a gradient of 0/0."""
    return x + (x - x).square().sum(-1, keepdim=True).sqrt()


def _detached(patient: Patient, generator: torch.Generator) -> Injury:
    """The output of an attention, or of a feed-forward, as a constant."""
    anatomy = Anatomy(patient)
    if torch.rand((), generator=generator) < 0.5:
        attended = one(anatomy.attended, generator)
        block, path, within = attended.block, attended.site.path, attended.query_map.path
    else:
        hidden = one(anatomy.hidden, generator)
        block, path, within = hidden.block, hidden.into.path.rpartition(".")[0], hidden.into.path
    path = within if is_below(block, path) else path  # a module that holds more than the one part is left whole
    change_output(anatomy, path, Tensor.detach)
    return Injury(patient, (path,))


def _wrong_size(name: str, story: str, low: float, high: float, may: tuple[str, ...]) -> Fault:
    return Fault(
        name=name,
        story=story,
        source="He et al. 2015, Delving Deep into Rectifiers; Glorot and Bengio 2010",
        codes=("NUM609",),
        may=("GRD501", "GRD502", "OUT401", "OUT402", "OUT403", *may),
        inject=partial(_init, low, high),
    )


def _broken(name: str, story: str, value: float) -> Fault:
    return Fault(
        name=name,
        story=story,
        source="a bad step, a bad file, or a bad cast",
        codes=("NUM601",),
        may=("NUM602",),
        inject=partial(_not_finite, value),
    )


FAULTS = (
    _wrong_size(
        "init_tiny",
        "Every matrix starts thousands of times too small.",
        1e-4,
        1e-3,
        ("ATT302", "GLU201", "GLU202", "GRD503", "NUM604", "NUM606"),
    ),
    _wrong_size(
        "init_huge",
        "Every matrix starts a hundred times too large.",
        50,
        300,
        ("ACT101", "ACT102", "ATT301", "ATT303", "ATT304", "NUM601", "NUM602", "NUM605", "NUM607", "NUM608"),
    ),
    _broken("nan_weight", "One element of one weight is NaN.", math.nan),
    _broken("inf_weight", "One element of one weight is infinite.", math.inf),
    Fault(
        name="nan_gradient",
        story="A block ends in the root of a sum of squares that is 0: its value is fine and its gradient NaN.",
        source="d√u/du at u = 0; PyTorch forums, norm of a zero vector",
        codes=("NUM601",),
        inject=_nan_gradient,
    ),
    Fault(
        name="detached_layer",
        story="The output of one attention or feed-forward is detached, so no gradient reaches its weights.",
        source="a .detach(), .data or no_grad left in a forward",
        codes=("GRD503",),
        may=("GRD501",),
        inject=_detached,
    ),
)
