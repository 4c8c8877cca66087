"""What is said of a row of probabilities: how far it is spread, in numbers and in bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """entropy: in nats. effective_count: e^entropy, so many equal ones have it. support: how many are above 0."""

    entropy: float
    effective_count: float
    support: int

    @classmethod
    def of(cls, probabilities: Tensor) -> Spread:
        """Of a row (V,) in float64."""
        kept = probabilities[probabilities > 0]
        entropy = -float((kept * kept.log()).sum()) + 0.0  # never −0
        return cls(entropy, math.exp(entropy), len(kept))


def bar(p: float, width: int) -> str:
    """A share of some columns, in eighths."""
    eighths = round(p * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
