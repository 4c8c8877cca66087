"""Faults of the residual stream and its norms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import NotApplicable
from ..schema import Change
from ..surgery import swap
from ._draws import between, one, some
from ._edits import change_output
from ._fault import Fault, Injury, Patient
from ._parts import or_not_applicable
from ._patients import outputs_of
from ._places import Anatomy

_FEWEST_BLOCKS = 4  # fewer show no growth from block to block
_LARGEST_GROWTH = 1e8  # in all: far beyond any model, and within every format's range
_SHARE = 0.5  # of the wanted size at least; less has been taken back by a norm


@dataclass(frozen=True)
class Scaled:
    """A tensor times a number."""

    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


def _without_residual(axis: str, patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    chosen = some(anatomy.blocks, generator)
    with or_not_applicable():
        swap(patient.model, Change(axis, False), sites=chosen, batch=anatomy.batch)
    return Injury(patient, tuple(chosen))


def _growing(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    depth = len(anatomy.blocks)
    if depth < _FEWEST_BLOCKS:
        raise NotApplicable(f"{depth} blocks are too few to grow from one to the next; it takes {_FEWEST_BLOCKS}")
    factor = between(2, max(2.2, min(4, _LARGEST_GROWTH ** (1 / depth))), generator)
    before = _rms(patient, anatomy)
    edits = [change_output(anatomy, block, Scaled(factor)) for block in anatomy.blocks]
    after = _rms(patient, anatomy)
    if after / before < (_SHARE * factor) ** (depth - 1):
        for edit in edits:
            edit.remove()
        raise NotApplicable("a norm behind every sum takes the size of the stream away")
    return Injury(patient)


def _rms(patient: Patient, anatomy: Anatomy) -> float:
    """How much larger the stream is behind the last block than behind the first."""
    sizes = [
        float(outputs_of(patient, anatomy.module(block)).square().mean().sqrt())
        for block in (anatomy.blocks[0], anatomy.blocks[-1])
    ]
    return sizes[1] / sizes[0]


def _massive_channel(patient: Patient, generator: torch.Generator) -> Injury:
    """One channel of the last thing that a block adds to its stream, so large that all others round away beside it."""
    anatomy = Anatomy(patient)
    block = one(anatomy.blocks, generator)
    stream = outputs_of(patient, anatomy.module(block))
    writer = anatomy.writer(block, stream.shape[-1])
    channel = int(torch.randint(stream.shape[-1], (), generator=generator))
    own = outputs_of(patient, writer.module)[:, channel].square().mean().sqrt()
    wanted = between(1e7, 1e8, generator) * float(stream.abs().median())
    factor = wanted / max(float(own), 1e-12)
    writer.scale_channel(channel, factor)
    reached = outputs_of(patient, anatomy.module(block))[:, channel].square().mean().sqrt()
    if not reached > _SHARE * wanted:
        writer.scale_channel(channel, 1 / factor)
        raise NotApplicable(f"what {block} adds to its stream comes from no single map")
    return Injury(patient, (block,))


def _gain(low: float, high: float, patient: Patient, generator: torch.Generator) -> Injury:
    norm = one(Anatomy(patient).block_norms(), generator)
    norm.scale(between(low, high, generator) if low else 0.0)
    return Injury(patient, (norm.path,))


def _epsilon(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    norms = some(anatomy.block_norms(), generator)
    value = 10.0 ** float(torch.randint(5, 9, (), generator=generator))
    for norm in norms:
        _set_epsilon(norm.module, norm.path, value)
    return Injury(patient, tuple(norm.path for norm in norms))


def _set_epsilon(module: nn.Module, path: str, value: float) -> None:
    names = [name for name, held in vars(module).items() if "eps" in name and isinstance(held, float)]
    if not names:
        raise NotApplicable(f"{path} keeps no epsilon that could be mistyped")
    for name in names:
        setattr(module, name, value)


def _removed(part: str) -> Fault:
    axis = f"{part}.residual"
    return Fault(
        name=f"{part}_residual_removed",
        story=f"The {'attention' if part == 'attention' else 'feed-forward'} of some blocks lost its residual branch.",
        source="He et al. 2016, Deep Residual Learning; Dong et al. 2021, Attention Is Not All You Need",
        codes=("ARC704",),
        may=("GRD501", "GRD502", "OUT401", "OUT402", "OUT403", "NUM606", "ATT302", "ACT102"),
        inject=partial(_without_residual, axis),
        remedy=Change(axis, True),
    )


FAULTS = (
    _removed("attention"),
    _removed("feedforward"),
    Fault(
        name="stream_growing",
        story="Every block's output is multiplied by a number above 1, so the stream grows geometrically with depth.",
        source="Zhang et al. 2019, Fixup Initialization: without a norm the variance grows exponentially",
        codes=("NUM607",),
        may=("GRD501", "GRD502", "NUM602", "NUM606", "OUT401", "OUT402", "OUT403"),
        inject=_growing,
    ),
    Fault(
        name="massive_channel",
        story="One channel of the stream is millions of times larger than the others, which norms then divide by it.",
        source="Sun et al. 2024, Massive Activations in Large Language Models: healthy ones reach 1e5 times the median",
        codes=("NUM608",),
        may=("NUM602", "NUM605", "ATT301", "ATT302", "ATT303", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403"),
        inject=_massive_channel,
    ),
    Fault(
        name="norm_gain_zero",
        story="The gain of a norm is 0, so the branch behind it gets nothing.",
        source="a gain initialised to 0 that was meant as an offset from 1, as in Gemma",
        codes=("NUM604",),
        may=("GRD501", "ATT302", "ACT101", "ACT103", "GLU201", "GLU202", "GRD503", "OUT402", "OUT403"),
        inject=partial(_gain, 0.0, 0.0),
    ),
    Fault(
        name="norm_gain_huge",
        story="The gain of a norm is hundreds of times too large.",
        source="a gain stored as 1 + w and read as w, or grown without weight decay; Gemma's offset",
        codes=("NUM605",),
        may=(
            "ACT101",
            "ATT301",
            "ATT303",
            "ATT304",
            "GRD501",
            "GRD502",
            "NUM602",
            "NUM607",
            "OUT401",
            "OUT402",
            "OUT403",
        ),
        inject=partial(_gain, 300.0, 3000.0),
    ),
    Fault(
        name="epsilon_too_large",
        story="The epsilon of some norms is 1e6 or so, where 1e-6 was meant.",
        source="x / √(mean x² + ε) with ε far above mean x² is x times a small constant",
        codes=("NUM606",),
        may=("NUM604", "ATT302", "GLU201", "GLU202", "GRD501", "OUT402", "OUT403"),
        inject=_epsilon,
    ),
)
