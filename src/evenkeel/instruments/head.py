"""The output head: loss, size of the logits, entropy, confidence, and how well the confidence is deserved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional._sums import TEMPERATURES, logit_statistics
from ..schema import SiteKind
from ..tracing.events import Event, HeadEvent
from ._protocol import Stat

_BINS = 15
_SAMPLE = 2**21  # logits a call on which temperatures are tried


class HeadInstrument:
    """Over all rows whose target is not ignored (all rows where there are no targets), in nats and logits.

    Without targets: logsumexp_mean, logit_absmax, entropy, top_probability. With targets also loss, accuracy, ece
    (15 equal bins of the top probability, Guo et al. 2017), and optimal_temperature: of 25 temperatures from 1/4 to 4,
    a sixth of an octave apart, the one with the smallest loss over an even sample of each call's rows (all rows up to
    2 million logits, beyond that at least 64).
    """

    kind: ClassVar[SiteKind] = "head"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("loss", "nats"),
        Stat("logsumexp_mean", "logits"),
        Stat("logit_absmax", "logits"),
        Stat("entropy", "nats"),
        Stat("top_probability", "share"),
        Stat("accuracy", "share"),
        Stat("ece", "share"),
        Stat("optimal_temperature", "1"),
        Stat("tokens", "count"),
    )

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] | None = None
        self._with_targets = False

    def observe(self, event: Event) -> None:
        assert isinstance(event, HeadEvent)
        rows, classes = event.logits.shape
        if event.logits.numel() == 0:
            return
        targets = event.targets
        if targets is None:
            targets = torch.zeros(rows, dtype=torch.int64, device=event.logits.device)
            wanted = torch.ones(rows, dtype=torch.bool, device=event.logits.device)
        else:
            self._with_targets = True
            wanted = (targets != event.ignore_index) & (targets >= 0) & (targets < classes)
        safe = torch.where(wanted, targets, 0)
        every = 0 if event.targets is None else -(-rows // max(64, _SAMPLE // classes))
        described, heated = logit_statistics(event.logits, every)
        below_top = event.logits.gather(1, safe.unsqueeze(1)).squeeze(1).double() - described[:, 2]
        self._take_in(_sums(safe, wanted, below_top, described))
        if every:
            self._take_in({"temperature_loss": _losses(below_top[::every], wanted[::every], heated)})

    def merge(self, other: HeadInstrument) -> None:
        self._with_targets = self._with_targets or other._with_targets
        if other._sums is not None:
            self._take_in(other._sums)

    def _take_in(self, sums: dict[str, Tensor]) -> None:
        own = self._sums or {}
        found = {name: own[name] + value if name in own else value for name, value in sums.items()}
        if "absmax" in own and "absmax" in sums:
            found["absmax"] = torch.maximum(own["absmax"], sums["absmax"])
        self._sums = own | found

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None:
            return {}
        sums, rows = self._sums, self._sums["rows"]
        values = {
            "logsumexp_mean": sums["logsumexp"] / rows,
            "logit_absmax": sums["absmax"],
            "entropy": sums["entropy"] / rows,
            "top_probability": sums["top"] / rows,
            "tokens": rows,
        }
        if self._with_targets:
            values["loss"] = sums["loss"] / rows
            values["accuracy"] = sums["correct"] / rows
            values["ece"] = (sums["bin_correct"] - sums["bin_top"]).abs().sum() / rows
            grid = torch.tensor(TEMPERATURES, dtype=torch.float64, device=rows.device)
            values["optimal_temperature"] = grid.gather(0, sums["temperature_loss"].argmin(keepdim=True)).squeeze(0)
        return {stat: values[stat.name] for stat in self.stats if stat.name in values}


def _sums(targets: Tensor, wanted: Tensor, at_target: Tensor, described: Tensor) -> dict[str, Tensor]:
    """Sums over the rows that are wanted."""
    choice, minimum, maximum, total, weighted = described.unbind(1)
    top = 1 / total
    correct = (choice == targets).double()
    bins = (top * _BINS).ceil().sub(1).nan_to_num(0).clamp(0, _BINS - 1).long()

    def summed(values: Tensor) -> Tensor:
        return torch.where(wanted, values, 0).sum()

    def binned(values: Tensor) -> Tensor:
        zeros = torch.zeros(_BINS, dtype=torch.float64, device=values.device)
        return zeros.scatter_add_(0, bins, torch.where(wanted, values, 0))

    return {
        "rows": wanted.sum().double(),
        "logsumexp": summed(maximum + total.log()),
        "absmax": torch.where(wanted, torch.maximum(-minimum, maximum), 0).amax(),
        "entropy": summed(total.log() - weighted / total),
        "top": summed(top),
        "loss": summed(total.log() - at_target),
        "correct": summed(correct),
        "bin_correct": binned(correct),
        "bin_top": binned(top),
    }


def _losses(at_target: Tensor, wanted: Tensor, heated: Tensor) -> Tensor:
    """The summed loss of some rows at each temperature of the grid."""
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64, device=heated.device)
    losses = heated.log() - at_target.unsqueeze(1) / temperatures
    return torch.where(wanted.unsqueeze(1), losses, 0).sum(0)
