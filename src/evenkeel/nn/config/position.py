"""Choices of how positions enter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from ._checks import above_zero, at_least, of_its_types, one_of

PositionKind = Literal["rotary", "learned", "alibi", "relative", "none"]
ScalingKind = Literal["linear", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RotaryScalingConfig:
    """How rotary angles are slowed for contexts longer than those trained on.

    kind: "linear" divides every frequency by `factor`; "llama3" those of wavelengths above context / low_frequency,
    none below context / high_frequency, and goes from one to the other in between. context: the tokens trained on.
    Source: Chen et al. 2023 (linear); Grattafiori et al. 2024, Llama 3.1.
    """

    kind: ScalingKind = "linear"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    context: int = 8192

    def __post_init__(self) -> None:
        of_its_types(self, "position.scaling.")
        one_of("position.scaling.kind", self.kind, get_args(ScalingKind))
        above_zero("position.scaling.factor", self.factor, 8)
        above_zero("position.scaling.low_frequency", self.low_frequency, 1)
        at_least("position.scaling.context", self.context, 1)
        if self.kind == "llama3" and not self.high_frequency > self.low_frequency:
            raise ConfigError(
                f"position.scaling.high_frequency is {self.high_frequency} and low_frequency {self.low_frequency}; the "
                "high one must be above the low one, for instance 4 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How tokens know where they stand.

    kind: "rotary" turns pairs of query and key channels; "learned" adds an embedding of the position to the token's;
    "alibi" lowers scores by a slope per head times the distance; "relative" adds a learned bias per head and bucket of
    distances, shared by all layers; "none". base, share, scaling: of rotary angles t·base^(−2i/d), of the first
    share·head_dim channels. buckets, farthest: of relative positions; distances from `farthest` on share a bucket.
    Source: Su et al. 2021 (rotary); Press et al. 2022 (ALiBi); Raffel et al. 2020 (relative).
    """

    kind: PositionKind = "rotary"
    base: float = 10_000.0
    share: float = 1.0
    scaling: RotaryScalingConfig | None = None
    buckets: int = 32
    farthest: int = 128

    def __post_init__(self) -> None:
        of_its_types(self, "position.")
        one_of("position.kind", self.kind, get_args(PositionKind))
        above_zero("position.base", self.base, 10_000)
        above_zero("position.share", self.share, 1)
        if self.share > 1:
            raise ConfigError(f"position.share is {self.share} and must be at most 1, which turns every channel")
        at_least("position.buckets", self.buckets, 2)
        if self.farthest <= self.buckets // 2:
            raise ConfigError(
                f"position.farthest is {self.farthest} and position.buckets {self.buckets}, of which the first half "
                f"are single distances; give farthest above {self.buckets // 2}, for instance {4 * self.buckets}"
            )

    def turned(self, head_dim: int) -> int:
        """How many channels of a head are turned: position.share of them, for rotary positions."""
        return int(round(self.share * head_dim, 6)) if self.kind == "rotary" else 0  # 30/44 · 44 is 29.999…

    def parameters(self, context: int, d_model: int, heads: int) -> int:
        """How many parameters positions have."""
        return {"learned": context * d_model, "relative": self.buckets * heads}.get(self.kind, 0)
