"""Faults of the output head and of the loss that is computed of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import NotApplicable
from ..surgery.heads import losses
from ._draws import between
from ._edits import LossReplaced, change_calls
from ._fault import Fault, Injury, Patient
from ._patients import loss_now
from ._places import Anatomy

_LEARNED = 0.9  # of log(classes): above it a model has learned nothing that a fault could spoil


def _drift(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    largest = float(anatomy.head.logits.detach().float().amax(-1).mean())
    if largest <= 0:
        raise NotApplicable("its largest logits lie below 0")
    _scale_logits(anatomy, between(300, 3000, generator) / largest)
    return Injury(patient)


def _overconfident(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    _require_learned(patient, anatomy)
    _scale_logits(anatomy, between(3, 5, generator))
    return Injury(patient)


def _require_learned(patient: Patient, anatomy: Anatomy) -> None:
    chance = math.log(anatomy.head.logits.shape[-1])
    loss = loss_now(patient)
    if not loss < _LEARNED * chance:
        raise NotApplicable(
            f"its loss of {loss:.2f} is not below {_LEARNED} of that of guessing, {chance:.2f}: it was not trained"
        )


@torch.no_grad()
def _scale_logits(anatomy: Anatomy, factor: float) -> None:
    """Through the unembedding, or through the norm in front of it where that is also the embedding."""
    head = anatomy.head
    if not head.tied and head.weight is not None:
        parts: list[nn.Parameter] = [item for item in (head.weight, head.bias) if item is not None]
        for parameter in parts:
            parameter.mul_(factor)
        if _moved(anatomy, factor):
            return
        for parameter in parts:
            parameter.div_(factor)
    elif head.norm is not None:
        head.norm.scale(factor)
        if _moved(anatomy, factor):
            return
        head.norm.scale(1 / factor)
    else:
        raise NotApplicable("its head is its embedding, and no norm stands in front of it")
    raise NotApplicable("a softcap bounds its logits")


def _moved(anatomy: Anatomy, factor: float) -> bool:
    before = anatomy.head.logits.detach().float().abs().max()
    after = Anatomy(anatomy.patient).head.logits.detach().float().abs().max()
    return bool(after > 0.5 * factor * before)


def _other_loss(loss: Callable[[Tensor, Tensor], Tensor], patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    found = [] if patient.loss is not None else list(losses(anatomy.survey))
    if not found:
        raise NotApplicable(f"{type(patient.model).__name__} computes no cross-entropy of its own")
    change_calls(anatomy, [(item.entry, LossReplaced(loss)) for item in found])
    return Injury(patient)


def of_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of probabilities taken for logits."""
    return F.cross_entropy(torch.softmax(logits, -1), target)


def of_sigmoids(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every class by itself."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(target, logits.shape[-1]).to(logits.dtype))


FAULTS = (
    Fault(
        name="logit_drift",
        story="The unembedding has been scaled up until the logits are in the hundreds.",
        source="Chowdhery et al. 2022, PaLM (z-loss); Wortsman et al. 2023",
        codes=("OUT401",),
        may=("OUT402", "OUT403", "NUM602", "NUM605", "NUM609", "GRD502"),
        inject=_drift,
    ),
    Fault(
        name="overconfident",
        story="The logits of a trained model are three times as large as its data bears out, or more.",
        source="Guo et al. 2017, On Calibration of Modern Neural Networks",
        codes=("OUT402", "OUT401"),
        may=("OUT403",),
        inject=_overconfident,
    ),
    Fault(
        name="softmax_before_loss",
        story="Probabilities go into a cross-entropy that takes logits, so the loss stays above log(classes) − 1.",
        source="torch.nn.CrossEntropyLoss takes unnormalised logits",
        codes=("OUT404",),
        may=("GRD501",),
        inject=partial(_other_loss, of_probabilities),
    ),
    Fault(
        name="sigmoid_head",
        story="Each token of the vocabulary is a yes or a no of its own, though exactly one of them comes next.",
        source="binary cross-entropy over classes of which exactly one is right; Bridle 1990 for the softmax",
        codes=("OUT405",),
        inject=partial(_other_loss, of_sigmoids),
    ),
)
