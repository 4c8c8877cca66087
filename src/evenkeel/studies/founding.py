"""What is settled when a study begins, as data; no torch, JSON both ways."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from .comparison import ArmPlan, context_of
from .study import Study

FORMAT = 1
"""Of what is written into a store; another one is refused."""


@dataclass(frozen=True, kw_only=True)
class Founding:
    """What is settled when a study begins, and the same for every worker from then on.

    steps: of each trial. seconds: about how long one trial of every arm takes together, 0 where nobody knows. source,
    digest: of the data. begun: UTC, ISO 8601. id: drawn at random, so that no two studies share checkpoints.
    """

    study: Study
    plans: tuple[ArmPlan, ...]
    steps: int
    seconds: float
    source: str
    digest: str
    begun: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "evenkeel": version("evenkeel"),
            "study": self.study.to_dict(),
            "plans": [plan.to_dict() for plan in self.plans],
            "steps": self.steps,
            "seconds": self.seconds,
            "source": self.source,
            "digest": self.digest,
            "begun": self.begun,
            "id": self.id,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Founding:
        return cls(
            study=Study.from_dict(data["study"]),
            plans=tuple(ArmPlan.from_dict(plan) for plan in data["plans"]),
            **{name: data[name] for name in ("steps", "seconds", "source", "digest", "begun", "id")},
        )

    @classmethod
    def from_comparison(cls, data: Mapping[str, Any]) -> Founding:
        """What the study of an exported comparison was founded with."""
        return cls(
            study=Study.from_dict(data["founded"]),
            plans=tuple(ArmPlan.from_dict(arm["plan"]) for arm in data["arms"]),
            steps=data["steps"],
            seconds=0.0,
            source=data["data"]["source"],
            digest=data["data"]["digest"],
            begun=data["begun"],
        )

    @property
    def settled(self) -> str:
        """What trials of one study have to have in common, in words: steps, sizes of arms, data."""
        sizes = hashlib.sha256(json.dumps([plan.config for plan in self.plans], sort_keys=True).encode()).hexdigest()
        return f"{self.steps:,} steps, arms of sizes {sizes[:6]}, data {self.digest[:6] or 'of its own'}"

    @property
    def tokens(self) -> int:
        """How many tokens each trial is trained on."""
        return self.steps * self.study.rows * context_of(self.plans)
