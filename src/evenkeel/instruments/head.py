"""The output head: loss, size of the logits, entropy, confidence, and how well the confidence is deserved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..functional._sums import TEMPERATURES, logit_statistics
from ..schema import SiteKind
from ..tracing.events import Event, HeadEvent
from ._protocol import Stat
from ._rows import stride

_BINS = 15
_SAMPLE = 2**21  # logits a call on which temperatures are tried
_SUMMED = 64  # rows a call that are added up: logits whose rows all sum to 1 need no more witnesses
_ROUNDED = 1e-3  # how far a softmax's sum may be from 1 however many classes there are; in narrow dtypes farther


class HeadInstrument:
    """Over all rows whose target is not ignored (all rows where there are no targets), in nats and logits.

    Without targets: logsumexp_mean, logit_absmax, entropy, top_probability, classes; logit_epsilon: the spacing at 1 of
    the coarsest format that held the logits between their linear map and here; and probability_share: of an even
    sample of each call's rows (64 or some more), the share that are distributions already, entries in [0, 1], sum 1.
    With targets also loss, accuracy, ece (15 equal bins of the top probability, Guo et al. 2017), and
    optimal_temperature: of 25 temperatures from 1/4 to 4, a sixth of an octave apart, the one with the smallest loss
    over an even sample of each call's rows (all rows up to 2 million logits, beyond that at least 64);
    temperature_gain: how far that loss lies below the sample's own. target_entropy: of the classes' shares of all
    targets, what knowing nothing but these would cost. echo_share: of the rows behind another of their call, the share
    whose largest logit is that of the row before's target, the token just read where the next one is asked for.
    """

    kind: ClassVar[SiteKind] = "head"
    stats: ClassVar[tuple[Stat, ...]] = (
        Stat("loss", "nats"),
        Stat("logsumexp_mean", "logits"),
        Stat("logit_absmax", "logits"),
        Stat("logit_epsilon", "1"),
        Stat("entropy", "nats"),
        Stat("top_probability", "share"),
        Stat("accuracy", "share"),
        Stat("ece", "share"),
        Stat("optimal_temperature", "1"),
        Stat("tokens", "count"),
        Stat("classes", "count"),
        Stat("probability_share", "share"),
        Stat("temperature_gain", "nats"),
        Stat("target_entropy", "nats"),
        Stat("echo_share", "share"),
    )

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] | None = None
        self._with_targets = False

    def observe(self, event: Event) -> None:
        if not isinstance(event, HeadEvent):
            return
        rows, classes = event.logits.shape
        if event.logits.numel() == 0:
            return
        targets = event.targets
        if targets is None:
            targets = torch.zeros(rows, dtype=torch.int64, device=event.logits.device)
            wanted = torch.ones(rows, dtype=torch.bool, device=event.logits.device)
        else:
            self._with_targets = True
            wanted = _wanted(targets, event)
        safe = torch.where(wanted, targets, 0)
        every = 0 if event.targets is None else stride(rows, max(64, _SAMPLE // classes))
        described, heated = logit_statistics(event.logits, every)
        below_top = event.logits.gather(1, safe.unsqueeze(1)).squeeze(1).double() - described[:, 2]
        self._take_in(_sums(safe, wanted, below_top, described))
        self._take_in(_distributions(event.logits, wanted, described))
        epsilon = event.epsilon or torch.finfo(event.logits.dtype).eps
        none = torch.zeros_like(described[0, 0])
        self._take_in({"classes": none + classes, "epsilon": none + epsilon})
        if every:
            counts = described.new_zeros(classes).scatter_add_(0, safe, wanted.double())
            self._take_in({"temperature_loss": _losses(below_top[::every], wanted[::every], heated)})
            self._take_in({"temperature_rows": wanted[::every].sum().double(), "targets": counts})
            self._take_in(_echoes(event, targets, described[:, 0]))

    def merge(self, other: HeadInstrument) -> None:
        self._with_targets = self._with_targets or other._with_targets
        if other._sums is not None:
            self._take_in(other._sums)

    def _take_in(self, sums: dict[str, Tensor]) -> None:
        own = self._sums or {}
        merged = {name: _MERGES.get(name, torch.add)(own[name], sums[name]) for name in own.keys() & sums.keys()}
        self._sums = own | sums | merged

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None:
            return {}
        sums, rows = self._sums, self._sums["rows"]
        values = {
            "logsumexp_mean": sums["logsumexp"] / rows,
            "logit_absmax": sums["absmax"],
            "logit_epsilon": sums["epsilon"],
            "entropy": sums["entropy"] / rows,
            "top_probability": sums["top"] / rows,
            "tokens": rows,
            "classes": sums["classes"],
            "probability_share": sums["distributions"] / sums["sampled"],
        }
        if self._with_targets:
            values["loss"] = sums["loss"] / rows
            values["accuracy"] = sums["correct"] / rows
            values["ece"] = (sums["bin_correct"] - sums["bin_top"]).abs().sum() / rows
            grid = torch.tensor(TEMPERATURES, dtype=torch.float64, device=rows.device)
            tried, targets = sums["temperature_loss"], sums["targets"]
            values["optimal_temperature"] = grid.gather(0, tried.argmin(keepdim=True)).squeeze(0)
            values["temperature_gain"] = (tried[TEMPERATURES.index(1.0)] - tried.amin()) / sums["temperature_rows"]
            values["echo_share"] = sums["echoes"] / sums["followers"]
            values["target_entropy"] = rows.log() - torch.xlogy(targets, targets).sum() / rows
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


def _distributions(logits: Tensor, wanted: Tensor, described: Tensor) -> dict[str, Tensor]:
    """How many rows of an even sample are probabilities already."""
    every = stride(len(logits), _SUMMED)
    totals = logits[::every].sum(-1, dtype=torch.float64)
    lowest, highest = described[::every, 1], described[::every, 2]
    close = (totals - 1).abs() <= max(_ROUNDED, 4 * torch.finfo(logits.dtype).eps)
    found = close & (lowest >= 0) & (highest <= 1) & wanted[::every]
    return {"distributions": found.sum().double(), "sampled": wanted[::every].sum().double()}


def _wanted(targets: Tensor, event: HeadEvent) -> Tensor:
    """Which of the targets are classes that count."""
    return (targets != event.ignore_index) & (targets >= 0) & (targets < event.logits.shape[1])


def _echoes(event: HeadEvent, targets: Tensor, choice: Tensor) -> dict[str, Tensor]:
    """How many rows choose the target of the row before them."""
    if event.before is None:
        choice = choice[1:]
    else:
        targets = torch.cat([event.before, targets])
    wanted = _wanted(targets, event)
    followers = wanted[1:] & wanted[:-1]
    echoes = followers & (choice == targets[:-1])
    return {"echoes": echoes.sum().double(), "followers": followers.sum().double()}


def _with_room(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two counts of classes, one of which may know more classes."""
    size = max(len(first), len(second))
    return pad(first, (0, size - len(first))) + pad(second, (0, size - len(second)))


_MERGES = {"absmax": torch.maximum, "classes": torch.maximum, "epsilon": torch.maximum, "targets": _with_room}
"""How two of a sum become one; the others are added."""


def _losses(at_target: Tensor, wanted: Tensor, heated: Tensor) -> Tensor:
    """The summed loss of some rows at each temperature of the grid."""
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64, device=heated.device)
    losses = heated.log() - at_target.unsqueeze(1) / temperatures
    return torch.where(wanted.unsqueeze(1), losses, 0).sum(0)
