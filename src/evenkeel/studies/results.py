"""What trials leave, as data: no torch, JSON both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..schema import encode_number
from .points import Point


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The loss on the held-out tokens after a number of steps, in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one trial came to.

    loss: the mean of its last evaluations, in nats per token, or what the user's objective gave. start: the loss before
    the first step. diverged: whether a loss was not finite, or the last was above the first; such a trial counts with
    its loss at the start. evaluations: in their order. copy_loss: on the second half of sequences that repeat their
    first half. health: numbers of a watch, by stat. findings: codes at warning or above. hashes: of what has to be the
    same in every arm of a seed: `batches`, `held_out`, and `parameter NAME` for each initial tensor. seconds: of
    training and evaluating. tokens_per_second: the median over steps. device, versions, worker: where and with what it
    was run, and by whom. finished: UTC, ISO 8601.
    """

    point: Point
    loss: float
    start: float = math.nan
    diverged: bool = False
    evaluations: tuple[Evaluation, ...] = ()
    copy_loss: float = math.nan
    health: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    seconds: float = math.nan
    tokens_per_second: float = math.nan
    device: str = ""
    versions: str = ""
    worker: str = ""
    finished: str = ""

    @property
    def counted(self) -> float:
        """The loss that comparisons count: where a trial diverged, the loss at its start."""
        return self.start if self.diverged and not math.isnan(self.start) else self.loss

    @property
    def counted_or_worst(self) -> float:
        """The same, and infinite where it is not finite, of either sign."""
        return self.counted if math.isfinite(self.counted) else math.inf

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        numbers = ("loss", "start", "copy_loss", "seconds", "tokens_per_second")
        return {
            **data,
            **{name: encode_number(data[name]) for name in numbers},
            "point": self.point.to_dict(),
            "evaluations": [[item.step, encode_number(item.loss)] for item in self.evaluations],
            "health": {name: encode_number(value) for name, value in self.health.items()},
            "findings": list(self.findings),
            "hashes": dict(self.hashes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialResult:
        """Read what `to_dict` wrote."""
        numbers = ("loss", "start", "copy_loss", "seconds", "tokens_per_second")
        plain = cls(point=Point.from_dict(data["point"]), loss=float(data["loss"]))
        return replace(
            plain,
            **{name: float(data[name]) for name in numbers},
            diverged=bool(data["diverged"]),
            evaluations=tuple(Evaluation(step=int(step), loss=float(loss)) for step, loss in data["evaluations"]),
            health={name: float(value) for name, value in data["health"].items()},
            findings=tuple(data["findings"]),
            hashes=dict(data["hashes"]),
            **{name: data[name] for name in ("device", "versions", "worker", "finished")},
        )
