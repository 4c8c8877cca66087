"""The head as a change sees it: the losses that a model computes of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..errors import UsageError
from .places import Survey
from .rewriting import Action, Kept
from .tape import Entry

Function = Callable[..., Any]

_CROSS_ENTROPY = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
_OWN = (functional.cross_entropy, functional.linear_cross_entropy)


@dataclass(frozen=True)
class ZLoss(Action):
    """F.cross_entropy plus z·log²Z of each token that counts, reduced as the loss is."""

    z_loss: float
    optional: ClassVar[bool] = True

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        given = {**dict(zip(_CROSS_ENTROPY, args, strict=False)), **kwargs}
        logits, target, reduction = given["input"], given["target"], given.get("reduction", "mean")
        counted = target != given.get("ignore_index", -100)
        squares = torch.logsumexp(logits.float(), 1 if logits.dim() > 1 else 0).square() * counted
        total = squares if reduction == "none" else squares.sum()
        if reduction == "mean":
            total = total / counted.sum().clamp(min=1)
        return func(*args, **kwargs) + (self.z_loss * total).to(logits.dtype)


@dataclass(frozen=True)
class OwnZLoss(Action):
    """One of evenkeel's losses with another z_loss."""

    z_loss: float
    optional: ClassVar[bool] = True

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        return func(*args, **{**kwargs, "z_loss": self.z_loss})


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss that the traced run computed of logits."""

    entry: Entry

    @property
    def z_loss(self) -> float:
        """What the loss has already."""
        return float(self.entry.kwargs.get("z_loss", 0.0)) if self.entry.func in _OWN else 0.0

    def calls(self, z_loss: float) -> list[tuple[Entry, Action]]:
        """The call to change for another z-loss; raises UsageError where it cannot have one."""
        entry = self.entry
        if entry.func in _OWN:
            return [(entry, OwnZLoss(z_loss))]
        given = {**dict(zip(_CROSS_ENTROPY, entry.args, strict=False)), **entry.kwargs}
        if given.get("weight") is not None or given["target"].is_floating_point():
            raise UsageError("its cross-entropy weighs classes, and z-loss has no weights; add it in the training loop")
        return [(entry, ZLoss(z_loss))]


def losses(survey: Survey) -> Iterator[Loss]:
    """Every cross-entropy that the model computed in its own forward."""
    for entry in survey.tape.entries:
        if entry.name in ("cross_entropy", "linear_cross_entropy") and entry.frames:
            yield Loss(entry)
