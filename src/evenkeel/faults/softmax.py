"""Faults of the softmax's arithmetic: exponentials and products that leave their format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import NotApplicable
from ._draws import between, some
from ._edits import change_calls, product_in, softmaxed
from ._fault import Fault, Injury, Patient
from ._places import Anatomy
from .scores import largest_score

_SHORT = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Unshifted:
    """exp(s) / Σ exp(s) in a dtype, without the maximum subtracted."""

    dtype: torch.dtype

    def __call__(self, scores: Tensor) -> Tensor:
        exponentials = torch.exp(scores.to(self.dtype))
        return (exponentials / exponentials.sum(-1, keepdim=True)).to(scores.dtype)


def _naive(dtype: torch.dtype, patient: Patient, generator: torch.Generator) -> Injury:
    """Scores from a little below the largest that exp takes to half as large again."""
    anatomy = Anatomy(patient)
    limit = math.log(torch.finfo(dtype).max)
    free = [item for item in anatomy.attended if item.form.softcap is None or item.form.softcap > 1.5 * limit]
    if not free:
        raise NotApplicable(f"a softcap holds its scores below {1.5 * limit:.0f}")
    chosen = some(free, generator)
    calls = [call for item in chosen for call in softmaxed(anatomy, item, Unshifted(dtype))]
    for item in chosen:
        item.inflate(between(limit - 3, 1.5 * limit, generator) / largest_score(item))
    change_calls(anatomy, calls)
    return Injury(patient, tuple(dict.fromkeys(item.block for item in chosen)))


def _half_scores(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    free = [item for item in anatomy.attended if item.form.softcap is None]
    if not free:
        raise NotApplicable("a softcap makes a number of scores that have overflown")
    chosen = some(free, generator)
    calls = [call for item in chosen for call in product_in(item, torch.float16)]
    for item in chosen:
        largest = largest_score(item) / item.call_scale
        item.inflate(between(1.5, 8, generator) * torch.finfo(torch.float16).max / largest)
    change_calls(anatomy, calls)
    return Injury(patient, tuple(dict.fromkeys(item.block for item in chosen)))


FAULTS = (
    *(
        Fault(
            name=f"naive_softmax_{name}",
            story=f"A hand-written softmax in {name} leaves out the maximum, and its scores are large.",
            source="exp(s) / sum(exp(s)); Milakov and Gimelshein 2018, Online Normalizer Calculation for Softmax",
            codes=("NUM603",),
            may=("NUM601", "NUM602", "ATT301", "ATT303", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403"),
            inject=partial(_naive, dtype),
        )
        for name, dtype in _SHORT.items()
    ),
    Fault(
        name="fp16_scores",
        story="Attention by hand multiplies queries and keys in float16 before it scales them, and they overflow.",
        source="65,504 is float16's largest number; GPT-J computes its scores in float32 for it",
        codes=("NUM601",),
        may=("NUM602", "ATT301", "ATT303", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403", "ATT306"),
        inject=_half_scores,
    ),
)
