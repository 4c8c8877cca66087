"""What one trial is asked to do: an arm, a learning rate, a seed, and what the trial is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["tuning", "paired"]

TUNING_SEED = 1_000_003
"""Seeds of tuning trials count from here, so that none of them is a seed of a pair."""


@dataclass(frozen=True, order=True)
class Point:
    """One trial that a study wants. role: "tuning" finds the arm's learning rate, "paired" is what is compared.

    seed: of the first weights and of the order of batches; arms are paired by it.
    """

    arm: str
    role: Role
    learning_rate: float
    seed: int

    @property
    def key(self) -> str:
        """What it is called in a store; the same for equal points."""
        return f"{self.role} {self.arm} {self.learning_rate:.6g} {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        return cls(data["arm"], data["role"], float(data["learning_rate"]), int(data["seed"]))
