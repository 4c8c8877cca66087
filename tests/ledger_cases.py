"""Made-up runs of the ledger's studies: trials whose losses are given, judged as real ones are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from evenkeel.ledger._contrasts import SHAZEER_65K
from evenkeel.ledger._studies import study_named
from evenkeel.studies import Comparison
from evenkeel.studies.comparison import ArmPlan
from evenkeel.studies.founding import Founding
from evenkeel.studies.judging import compared
from evenkeel.studies.points import Point
from evenkeel.studies.results import Evaluation, TrialResult
from evenkeel.studies.schedule import agenda

START, STEPS = 5.5, 1000
_ARMS = {**SHAZEER_65K, "glu": 1.965, "sigmoid": 2.2, "tanh": 2.05, "relu2": 1.99}

LEVELS: dict[str, dict[str, float]] = {
    "feedforward": _ARMS,
    "feedforward-larger": _ARMS,
    "depth": {
        **{"gelu 2": 2.0, "gelu 4": 1.95, "gelu 8": 1.9, "swiglu 2": 1.97, "swiglu 4": 1.92, "swiglu 8": 1.87},
        **{"sigmoid 2": 2.05, "sigmoid 4": 2.1, "sigmoid 8": 2.3},
        **{"swiglu 3": 1.94, "slim swiglu 4": 1.93, "wide gelu 4": 1.85},
    },
    "scale": {
        f"{name} {size}": loss
        for size in (16, 64)
        for name, loss in (("sqrt", 1.9), ("none", 2.0), ("dim", 1.95), ("folded", 1.9))
    },
    "head": {f"{name} {size}": loss for size in (256, 2048) for name, loss in (("softmax", 1.9), ("sigmoid", 2.0))},
}
"""Mean losses with which every claim is as true as its study can show."""

HEALTH = {
    **{"confidence": 0.6, "accuracy": 0.55, "confidence where wrong": 0.4, "confidence − accuracy": 0.05},
    **{"calibration error": 0.05, "best temperature": 1.2, "attention entropy / maximum": 0.8},
    **{"sum of probabilities": 1.1, "sum of probabilities: deviation": 0.3},
}


@dataclass(frozen=True)
class World:
    """What differs from LEVELS and HEALTH, by study.

    spread: how far pairs lie apart, in nats. loud: arms whose pairs lie apart by nats. steep: arms whose loss rises
    much with a wrong learning rate. diverging: arms whose first pair diverges.
    """

    levels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    health: Mapping[str, float] = field(default_factory=dict)
    spread: float = 0.001
    loud: tuple[str, ...] = ()
    steep: tuple[str, ...] = ()
    diverging: tuple[str, ...] = ()

    def run(self, name: str) -> Comparison:
        """The study's comparison in this world."""
        study = study_named(name)
        plans = tuple(ArmPlan(arm=arm, config={"context": 1}, flops=100 + len(arm.name)) for arm in study.arms)
        founding = Founding(
            study=study, plans=plans, steps=STEPS, seconds=0.0, source="", digest="", begun="2026-01-01T00:00:00+00:00"
        )
        levels = {**LEVELS[name], **self.levels.get(name, {})}
        results: list[TrialResult] = []
        while wanted := agenda(study, results).wanted:
            results += [self._trial(point, levels[point.arm]) for point in wanted]
        return compared(founding, study, results, device="cpu", versions={"torch": "2.13.0", "evenkeel": "0.1.0"})

    def _trial(self, point: Point, level: float) -> TrialResult:
        digest = hashlib.sha256(point.key.encode()).digest()
        off = abs(math.log2(point.learning_rate / 8e-3)) * (0.5 if point.arm in self.steep else 0.05)
        loss = level + off + (2.0 if point.arm in self.loud else self.spread) * (digest[0] / 255 - 0.5)
        diverged = point.arm in self.diverging and point.role == "paired" and point.seed == 0
        shares = [step / 10 for step in range(11)]
        curve = [Evaluation(step=round(STEPS * x), loss=loss + (START - loss) * (1 - x) ** 4) for x in shares]
        return TrialResult(
            point=point,
            loss=loss,
            start=START,
            diverged=diverged,
            evaluations=tuple(curve),
            copy_loss=loss / 2,
            health={**HEALTH, **self.health} if point.role == "paired" else {},
            hashes={"batches": str(point.seed), "held_out": "same"},
            seconds=1.0,
            finished="2026-02-03T04:05:06+00:00",
        )
