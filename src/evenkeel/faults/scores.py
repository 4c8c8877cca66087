"""Faults of attention scores: of the wrong scale, or of queries and keys that are too large."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NotApplicable
from ..schema import Change
from ..surgery import swap
from ._draws import between, some
from ._fault import Fault, Injury, Patient
from ._parts import Attended, or_not_applicable
from ._places import Anatomy

_VASWANI = "Vaswani et al. 2017, Attention Is All You Need, section 3.2.1"
_SMALLEST_HEAD = 32  # unscaled, scores of unit-variance queries and keys then spread by 5.7
_LARGE = (300.0, 5000.0)  # the largest score: three times the level that clipping holds, and more


def _unscaled(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = _of_unit_variance(patient)
    with or_not_applicable():
        swap(patient.model, Change("attention.scale", "none"), batch=anatomy.batch)
    return Injury(patient)


def _multiplied(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = _of_unit_variance(patient)
    root = math.sqrt(anatomy.attended[0].form.head_dim)
    with or_not_applicable():
        swap(patient.model, Change("attention.scale", root), batch=anatomy.batch)
    return Injury(patient)


def _of_unit_variance(patient: Patient) -> Anatomy:
    """The patient with queries and keys of unit variance in every attention, where a wrong scale then shows."""
    anatomy = Anatomy(patient)
    for item in anatomy.attended:
        if item.form.head_dim < _SMALLEST_HEAD:
            raise NotApplicable(
                f"its heads have {item.form.head_dim} channels; below {_SMALLEST_HEAD} unscaled scores stay moderate"
            )
        if abs(item.form.scale - 1) < 1e-3:
            raise NotApplicable("its scores have no scale to leave out")
        if item.form.softcap is not None:
            raise NotApplicable("a softcap bounds its scores")
    for item in anatomy.attended:
        if item.query_norm is None and item.key_norm is None:
            before = item.form.scale / item.call_scale
            item.inflate(before / (_spread(item.query) * _spread(item.key)))
    return anatomy


def _spread(given: Tensor) -> float:
    """The standard deviation of queries or keys over tokens; what all tokens have in common tells no keys apart."""
    given = given.detach().float()
    return float((given - given.mean(-2, keepdim=True)).square().mean().sqrt())


def _over_dim(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    with or_not_applicable():
        swap(patient.model, Change("attention.scale", "dim"), batch=anatomy.batch)
    return Injury(patient)


def _inflated(patient: Patient, generator: torch.Generator) -> Injury:
    free = [item for item in _uncapped(patient) if item.query_norm is None or item.key_norm is None]
    if not free:
        raise NotApplicable("its queries and keys pass a norm, which takes their size away")
    return _enlarged(patient, free, generator)


def _norm_gain(patient: Patient, generator: torch.Generator) -> Injury:
    normed = [item for item in _uncapped(patient) if item.query_norm is not None and item.key_norm is not None]
    if not normed:
        raise NotApplicable("its queries and keys pass no norm with a gain")
    return _enlarged(patient, normed, generator)


def _uncapped(patient: Patient) -> list[Attended]:
    found = [item for item in Anatomy(patient).attended if item.form.softcap is None]
    if not found:
        raise NotApplicable("a softcap bounds its scores")
    return found


def _enlarged(patient: Patient, attended: list[Attended], generator: torch.Generator) -> Injury:
    chosen = some(attended, generator)
    for item in chosen:
        item.inflate(between(*_LARGE, generator) / min(largest_score(item), _largest_rise(item)))
    return Injury(patient, tuple(dict.fromkeys(item.block for item in chosen)))


def largest_score(item: Attended) -> float:
    """The largest score that an attention gives to a key that is surely visible."""
    found = float(_visible(item).max())
    if not 0 < found < math.inf:
        raise NotApplicable(f"{item.site.path} gives no score above 0")
    return found


def _largest_rise(item: Attended) -> float:
    """The most that a score lies above the mean of its row: what a key bias adds to all of a row is no large score."""
    scores = _visible(item)
    seen = scores > -math.inf
    means = scores.masked_fill(~seen, 0).sum(-1) / seen.sum(-1)
    return float((scores.amax(-1) - means).max())


def _visible(item: Attended) -> torch.Tensor:
    """Scores, with -inf for keys that a causal query may not see."""
    scores = item.scores()
    if scores.shape[-1] != scores.shape[-2]:
        return scores
    return scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)


FAULTS = (
    Fault(
        name="scores_unscaled",
        story="Attention scores are not divided by √d, with queries and keys of unit variance.",
        source=_VASWANI,
        codes=("ATT304",),
        may=("ARC701", "ATT301", "ATT303", "GRD501", "OUT402", "OUT403"),
        inject=_unscaled,
        remedy=Change("attention.scale", "sqrt"),
    ),
    Fault(
        name="scores_multiplied",
        story="Attention scores are multiplied by √d where they should have been divided.",
        source=_VASWANI,
        codes=("ARC701", "ATT303", "ATT304"),
        may=("ATT301", "GRD501", "GRD502", "OUT402", "OUT403"),
        inject=_multiplied,
        remedy=Change("attention.scale", "sqrt"),
    ),
    Fault(
        name="scores_over_d",
        story="Attention scores are divided by d in a model that was made for √d.",
        source="Yang et al. 2022, Tensor Programs V: right in muP, near uniform elsewhere",
        codes=("ARC701", "ATT302"),
        inject=_over_dim,
        remedy=Change("attention.scale", "sqrt"),
    ),
    Fault(
        name="qk_inflated",
        story="The maps of queries and keys of some layers have grown until the largest score is in the hundreds.",
        source="Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters; Wortsman et al. 2023",
        codes=("ATT303",),
        may=("ATT301", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403", "NUM602", "NUM609"),
        inject=_inflated,
        remedy=Change("attention.qk_norm", True),
    ),
    Fault(
        name="qk_norm_gain",
        story="The gains of the norms of queries and keys have run away.",
        source="Wortsman et al. 2023, Small-scale Proxies for Large-scale Transformer Training Instabilities",
        codes=("ATT303",),
        may=("ATT301", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403", "NUM602", "NUM605"),
        inject=_norm_gain,
    ),
)
