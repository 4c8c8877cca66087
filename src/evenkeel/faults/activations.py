"""Faults of hidden activations: those that saturate, those that never fire."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..errors import NotApplicable, UsageError
from ..facts import FACTS
from ..schema import Change
from ..surgery import swap
from ._draws import between, some
from ._fault import Fault, Injury, Patient
from ._parts import Hidden, or_not_applicable
from ._patients import outputs_of
from ._places import Anatomy

_GLOROT = "Glorot and Bengio 2010, Understanding the Difficulty of Training Deep Feedforward Neural Networks"
_FEWEST_BLOCKS = 4  # fewer are no deep stack


def _plain_stack(op: str, patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    hidden = _ungated(anatomy)
    if len({item.block for item in hidden}) < _FEWEST_BLOCKS:
        raise NotApplicable(f"{len(anatomy.blocks)} blocks are no deep stack; it takes {_FEWEST_BLOCKS}")
    with or_not_applicable():
        changed = swap(patient.model, Change("feedforward.activation", op), batch=anatomy.batch)
        try:
            swap(patient.model, Change("feedforward.residual", False), batch=anatomy.batch)
        except UsageError:
            changed.restore()
            raise
    return Injury(patient)


def _saturated(op: str, patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    chosen = _in_blocks(_ungated(anatomy), generator)
    _with_activation(anatomy, op, chosen)
    for item in chosen:
        spread = float(outputs_of(patient, item.into.module)[:, item.into.channels].std())
        wanted = between(30, 100, generator) * (2 if op == "sigmoid" else 1)  # its slope is felt half as far again
        item.into.scale(wanted / spread)
    return Injury(patient, _blocks(chosen))


def _dead(op: str, patient: Patient, generator: torch.Generator) -> Injury:
    """The bias of most units so far down that their largest input is just out of reach."""
    anatomy = Anatomy(patient)
    chosen = _in_blocks(anatomy.hidden, generator)
    _with_activation(anatomy, op, chosen)
    share = 0.7 + 0.25 * float(torch.rand((), generator=generator))
    for item in chosen:
        values = outputs_of(patient, item.into.module)[:, item.into.channels]
        units = torch.randperm(len(item.into.channels), generator=generator)
        units = units[: max(1, round(share * len(units)))]
        largest = values[:, units].amax(0)
        item.into.some(units).shift(_out_of_reach(op) - 0.1 * values.std() - largest)
    return Injury(patient, _blocks(chosen))


def _out_of_reach(op: str) -> float:
    """Below which input an activation has no slope, in torch's implementation or in evenkeel's, in any dtype."""
    facts = FACTS[op]
    found = [tails.below for zeros in (facts.torch_zero, facts.evenkeel_zero or {}) for tails in zeros.values()]
    return min(found)


def _ungated(anatomy: Anatomy) -> tuple[Hidden, ...]:
    found = tuple(item for item in anatomy.hidden if not anatomy.is_gate(item))
    if not found:
        raise NotApplicable("its activations gate, and a gate may well be bounded")
    return found


def _in_blocks(hidden: tuple[Hidden, ...], generator: torch.Generator) -> list[Hidden]:
    blocks = some(dict.fromkeys(item.block for item in hidden), generator)
    return [item for item in hidden if item.block in blocks]


def _blocks(hidden: list[Hidden]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.block for item in hidden))


def _with_activation(anatomy: Anatomy, op: str, hidden: list[Hidden]) -> None:
    others = [item.site.id for item in hidden if item.site.op != op]
    if others:
        with or_not_applicable():
            swap(anatomy.model, Change("feedforward.activation", op), sites=others, batch=anatomy.batch)


def _dying(op: str, remedy: str, source: str, may: tuple[str, ...] = ()) -> Fault:
    return Fault(
        name=f"dead_{op}",
        story=f"Most units of some {op} layers have a bias that keeps them out of reach of all data.",
        source=source,
        codes=("ACT102",),
        may=("ACT101", "GLU201", "GLU202", *may),
        inject=partial(_dead, op),
        remedy=Change("feedforward.activation", remedy),
    )


def _of_a_bounded(
    op: str, name: str, story: str, inject: Callable[..., Injury], code: str, may: tuple[str, ...], remedy: str
) -> Fault:
    return Fault(
        name=name,
        story=story,
        source=_GLOROT,
        codes=(code,),
        may=tuple(item for item in ("ACT101", "ACT103", "ARC702", "GRD501", *may) if item != code),
        inject=partial(inject, op),
        remedy=Change("feedforward.activation", remedy),
    )


FAULTS = (
    *(
        _of_a_bounded(
            op,
            f"{op}_stack",
            f"Every block's feed-forward has a {op} between its maps and no residual branch around it.",
            _plain_stack,
            "ARC702",
            ("ARC704", "GRD502", "NUM606", "ATT302", "OUT401", "OUT402", "OUT403"),
            "gelu",
        )
        for op in ("sigmoid", "tanh")
    ),
    *(
        _of_a_bounded(
            op,
            f"saturated_{op}",
            f"The maps into some {op} layers start so large that nearly every unit is at its bound.",
            _saturated,
            "ACT101",
            ("NUM609",),
            "silu",
        )
        for op in ("sigmoid", "tanh")
    ),
    _dying(
        "relu",
        "silu",
        "Voita, Ferrando and Nalmpantis 2023, Neurons in Large Language Models: Dead, N-gram, Positional",
    ),
    _dying("gelu", "silu", "zeros of the slope from evenkeel.facts"),
    _dying("silu", "leaky_relu", "zeros of the slope from evenkeel.facts"),
)
