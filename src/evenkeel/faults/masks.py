"""Faults of who sees whom: rows that see nothing, tokens that see later ones, heads that rest on the first key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NotApplicable
from ..surgery.attending import Fused, Own
from ..surgery.places import as_found
from ._draws import between, some
from ._edits import change_calls, mask_alone, masked
from ._fault import Fault, Injury, Patient
from ._parts import Attended
from ._places import Anatomy

_FINITE = -1e30  # to be taken away from a score, where a model hides with a finite number


@dataclass(frozen=True)
class OnFirstKey:
    """Scores with a bias on the first key."""

    bias: float

    def __call__(self, scores: Tensor) -> Tensor:
        first = torch.arange(scores.shape[-1], device=scores.device) == 0
        return scores + self.bias * first.to(scores.dtype)


@dataclass(frozen=True)
class NotItself:
    """Scores of queries that see the keys before their own, and so the first one nothing; hidden ones get `hidden`."""

    hidden: float

    def __call__(self, scores: Tensor) -> Tensor:
        own = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu()
        hidden = max(self.hidden, torch.finfo(scores.dtype).min) if math.isfinite(self.hidden) else self.hidden
        return scores.masked_fill(own, hidden)


def of_the_last(mask: Tensor) -> Tensor:
    """A mask in which every query sees what the last one does."""
    return mask[..., -1:, :].expand_as(mask)


def _sinks(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    chosen = some(_within(anatomy), generator)
    change_calls(
        anatomy,
        [
            call
            for item in chosen
            for call in masked(anatomy, item, OnFirstKey(between(30, 100, generator) + float(item.scores().max())))
        ],
    )
    return Injury(patient, _blocks(chosen))


def _masked_row(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    chosen = some(_causal(anatomy), generator)
    calls = []
    for item in chosen:
        hidden = -math.inf if isinstance(item.form, Fused | Own) else _FINITE
        calls += masked(anatomy, item, NotItself(hidden))
    change_calls(anatomy, calls)
    return Injury(patient, _blocks(chosen))


def _sees_future(patient: Patient, generator: torch.Generator) -> Injury:
    anatomy = Anatomy(patient)
    chosen = some(_causal(anatomy), generator)
    change_calls(anatomy, [call for item in chosen for call in mask_alone(item, of_the_last)])
    return Injury(patient, _blocks(chosen))


def _within(anatomy: Anatomy) -> list[Attended]:
    """The attentions among the tokens of one sequence."""
    found = [item for item in anatomy.attended if item.query.shape[-2] == item.key.shape[-2] > 1]
    if not found:
        raise NotApplicable(f"{type(anatomy.model).__name__} has no attention within one sequence")
    return found


def _causal(anatomy: Anatomy) -> list[Attended]:
    """The attentions of a model in which no token sees a later one: tried out with another last token."""
    ids = anatomy.batch.get("input_ids")
    if ids is None or set(anatomy.batch) - {"input_ids", "labels", "attention_mask"}:
        raise NotApplicable(f"{type(anatomy.model).__name__} does not take token ids alone")
    given = {name: value for name, value in anatomy.batch.items() if name != "labels"}
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % (int(ids.max()) + 1)
    try:
        with as_found(anatomy.model):
            first, second = (_logits(anatomy.model(**{**given, "input_ids": rows})) for rows in (ids, other))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise NotApplicable(f"{type(anatomy.model).__name__} gives no logits for token ids alone") from error
    if not torch.allclose(first[:, :-1], second[:, :-1], rtol=1e-3, atol=1e-5):
        raise NotApplicable(f"{type(anatomy.model).__name__} reads in both directions")
    return _within(anatomy)


def _logits(output: Any) -> Tensor:
    return output.logits.float()


def _blocks(chosen: list[Attended]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.block for item in chosen))


FAULTS = (
    Fault(
        name="sink_heads",
        story="A bias that was meant for one head pins every head of some layers to the first key.",
        source="Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, for what is usual",
        codes=("ATT305",),
        may=("ATT303", "GRD501", "OUT402", "OUT403"),
        inject=_sinks,
    ),
    Fault(
        name="masked_row",
        story="The causal mask starts one diagonal too low, so that a token does not see itself and the first nothing.",
        source="torch.tril(mask, -1) for torch.tril(mask)",
        codes=("ATT306",),
        may=("NUM601", "OUT402", "OUT403", "OUT406"),
        inject=_masked_row,
    ),
    Fault(
        name="sees_future",
        story="Some layers of a causal model run without their causal mask, so a token sees the one it is to guess.",
        source="is_causal left out; the loss then promises what no generation keeps",
        codes=("OUT406",),
        may=("OUT402",),
        inject=_sees_future,
    ),
)
