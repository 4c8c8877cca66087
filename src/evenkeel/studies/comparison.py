"""What a study shows, as data: every arm's numbers, every contrast's verdict; no torch, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..schema import SCHEMA_VERSION, decode_number, encode_number
from .results import TrialResult
from .study import Arm, Study

VerdictWord = Literal["better", "worse", "tie", "undecided"]
VERDICT_WORDS: tuple[VerdictWord, ...] = get_args(VerdictWord)


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval at a confidence."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        return {name: encode_number(getattr(self, name)) for name in ("mean", "low", "high", "confidence")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interval:
        return cls(*(decode_number(data[name]) for name in ("mean", "low", "high", "confidence")))


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """An arm made concrete. config: the whole TransformerConfig, nested; empty with a user's own objective.

    difference: (its size − the baseline's) / the baseline's, in what is matched. flops: of a token in training.
    """

    arm: Arm
    config: Mapping[str, Any]
    parameters: int = 0
    flops: int = 0
    difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm.to_dict(),
            "config": dict(self.config),
            "parameters": self.parameters,
            "flops": self.flops,
            "difference": self.difference,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArmPlan:
        return cls(**{**data, "arm": Arm(**data["arm"])})


def context_of(plans: Iterable[ArmPlan]) -> int:
    """How long a sequence is, in tokens, which is one length for all arms; 0 with an objective of the user's own."""
    return max((plan.config.get("context", 0) for plan in plans), default=0)


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm's numbers. learning_rate: the best of its tuning trials, NaN until they are done.

    at_edge: whether the best still lay at an end of the range when it stopped growing. tuned: (learning rate, loss
    counted) of each tuning trial, by rate. losses: of the paired trials by seed, as counted. deviation: their sample
    standard deviation. sensitivity: Wortsman's, over the tuning trials. copy_loss, tokens_per_second, health: means
    over paired trials. steps_to_target: the step at which their mean held-out loss first passed the study's target; NaN
    where it never did. findings: codes at warning or above, with the number of paired trials that had them.
    """

    plan: ArmPlan
    learning_rate: float
    at_edge: bool
    tuned: tuple[tuple[float, float], ...]
    losses: Mapping[int, float]
    mean: float
    deviation: float
    diverged: int
    sensitivity: float
    copy_loss: float
    steps_to_target: float
    tokens_per_second: float
    health: Mapping[str, float]
    findings: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        numbers = ("learning_rate", "mean", "deviation", "sensitivity")
        numbers += ("copy_loss", "steps_to_target", "tokens_per_second")
        return {
            "plan": self.plan.to_dict(),
            "at_edge": self.at_edge,
            "tuned": [[rate, encode_number(loss)] for rate, loss in self.tuned],
            "losses": {str(seed): encode_number(loss) for seed, loss in self.losses.items()},
            "diverged": self.diverged,
            **{name: encode_number(getattr(self, name)) for name in numbers},
            "health": {name: encode_number(value) for name, value in self.health.items()},
            "findings": dict(self.findings),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pairs of one contrast show; differences are loss(arm) − loss(against), so below 0 the arm is better.

    differences: by seed. interval: Student's t at 95%. bootstrap: from 20 pairs on. p, adjusted: of no difference, and
    after Holm's step over the study's contrasts. probability: the share of pairs in which the arm is better, ties
    counting half. more_pairs: how many more pairs would decide, with the spread seen so far; None where it is decided,
    or where no number below 1,000 would. more_seconds: how long these take. command: what runs them.
    """

    arm: str
    against: str
    word: VerdictWord
    differences: Mapping[int, float]
    interval: Interval
    bootstrap: Interval | None
    p: float
    adjusted: float
    probability: float
    more_pairs: int | None = None
    more_seconds: float | None = None
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "against": self.against,
            "verdict": self.word,
            "differences": {str(seed): encode_number(value) for seed, value in self.differences.items()},
            "interval": self.interval.to_dict(),
            "bootstrap": self.bootstrap.to_dict() if self.bootstrap else None,
            "p": encode_number(self.p),
            "adjusted": encode_number(self.adjusted),
            "probability": encode_number(self.probability),
            "more_pairs": self.more_pairs,
            "more_seconds": self.more_seconds,
            "command": self.command,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A study with what its trials came to; summaries and verdicts follow from the results.

    founded: the study as it was when it began; pairs may have been added since, contrasts and margin changed.

    steps, tokens: of each trial. wanted: how many trials the study still wants as far as is known. target: the loss
    that steps_to_target is about: the study's, else the baseline's mean. data: what was trained on, with a digest.
    versions: of the tools with which trials were run. begun, finished: UTC, ISO 8601; finished is "" while trials are
    wanted.
    """

    study: Study
    founded: Study
    arms: tuple[ArmSummary, ...]
    verdicts: tuple[Verdict, ...]
    results: tuple[TrialResult, ...]
    steps: int
    tokens: int
    wanted: int
    target: float
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    begun: str
    finished: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "study": self.study.to_dict(),
            "founded": self.founded.to_dict(),
            "arms": [item.to_dict() for item in self.arms],
            "verdicts": [item.to_dict() for item in self.verdicts],
            "results": [item.to_dict() for item in self.results],
            "steps": self.steps,
            "tokens": self.tokens,
            "wanted": self.wanted,
            "target": encode_number(self.target),
            "data": dict(self.data),
            "versions": dict(self.versions),
            "device": self.device,
            "begun": self.begun,
            "finished": self.finished,
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The comparison as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)
