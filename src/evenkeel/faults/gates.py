"""Faults of gates and routers: always shut, always open, always the same experts."""

from __future__ import annotations

import torch

from ..errors import NotApplicable
from ._draws import between, some
from ._fault import Fault, Injury, Patient
from ._parts import Hidden
from ._places import Anatomy

_STILL = 0.02  # what is left of a gate's dependence on the token


def _shifted(sign: int, patient: Patient, generator: torch.Generator) -> Injury:
    chosen = _gates(Anatomy(patient), generator)
    for item in chosen:
        item.into.scale(_STILL)
        item.into.shift(sign * between(20, 60, generator))
    return Injury(patient, tuple(dict.fromkeys(item.block for item in chosen)))


def _closed(patient: Patient, generator: torch.Generator) -> Injury:
    return _shifted(-1, patient, generator)


def _open(patient: Patient, generator: torch.Generator) -> Injury:
    return _shifted(1, patient, generator)


def _gates(anatomy: Anatomy, generator: torch.Generator) -> list[Hidden]:
    found = [item for item in anatomy.hidden if anatomy.is_gate(item)]
    if not found:
        raise NotApplicable("its feed-forwards have no gates")
    return some(found, generator)


@torch.no_grad()
def _router_collapsed(patient: Patient, generator: torch.Generator) -> Injury:
    """A router whose logits are all alike, so that ties send every token to the same experts."""
    anatomy = Anatomy(patient)
    routers = [site.path for site in anatomy.survey.sites if site.kind == "router"]
    routers = [
        path for path in routers if isinstance(getattr(anatomy.module(path), "weight", None), torch.nn.Parameter)
    ]
    if not routers:
        raise NotApplicable(f"{type(patient.model).__name__} has no router with a weight of its own")
    chosen = some(routers, generator)
    for path in chosen:
        weight = anatomy.module(path).weight
        assert isinstance(weight, torch.Tensor)
        weight.zero_()
    return Injury(patient, tuple(chosen))


FAULTS = (
    Fault(
        name="gate_closed",
        story="The map into the gate of some blocks has a bias so far down that the gate lets nothing through.",
        source="Shazeer 2020, GLU Variants Improve Transformer, for what a gate is to do",
        codes=("GLU201",),
        may=("ACT101", "ACT102", "GRD503", "OUT402", "OUT403"),
        inject=_closed,
    ),
    Fault(
        name="gate_open",
        story="The map into the gate of some blocks has a bias so far up that the gate is a constant.",
        source="a forget gate's bias of 1 taken too far; Jozefowicz et al. 2015",
        codes=("GLU202", "GLU201"),
        may=("ACT101", "ACT102", "ACT103", "NUM602", "NUM607", "OUT402", "OUT403"),
        inject=_open,
    ),
    Fault(
        name="router_collapsed",
        story="The router of some mixtures is 0, so ties send every token to the same experts.",
        source="Shazeer et al. 2017, Outrageously Large Neural Networks, section 4; Fedus et al. 2022",
        codes=("GLU203",),
        may=("ACT102", "GLU201", "OUT402", "OUT403"),
        inject=_router_collapsed,
    ),
)
