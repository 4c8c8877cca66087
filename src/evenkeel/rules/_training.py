"""What several rules ask of a run: whether the model has learned, whether the learning rate has arrived."""

from __future__ import annotations

import math

from ..schema import Site
from ._measurements import Measurements

_STILL_RISING = 1.01  # from one measured step to the next
_BETTER = 0.9  # of the loss of guessing: an untrained model with tied embeddings can be a little below it
_NEARLY = 0.9  # of the planned learning rate


def has_learned(measurements: Measurements, *, before: bool = False) -> bool | None:
    """Whether the latest loss is a tenth below that of guessing among equally likely classes; None if unknown.

    before: the loss of the first measured step instead. A trained model on random data guesses worse than that, so
    random data say nothing.
    """
    if measurements.data.kind == "random":
        return None
    for head in measurements.of_kind("head"):
        losses, classes = measurements.history(head, "loss"), measurements.value(head, "classes")
        loss = losses[0 if before else -1][1][0] if losses else math.nan
        if not math.isnan(loss) and classes > 1:
            return loss < _BETTER * math.log(classes)
    return None


def rates(measurements: Measurements, site: Site) -> list[float]:
    """A parameter's learning rate at every measured step, oldest first."""
    return [values[0] for _, values in measurements.history(site, "learning_rate", "update")]


def settled(measurements: Measurements, site: Site, *, fewest: int) -> bool:
    """Whether a parameter's learning rate has come near its peak, over at least so many measured steps."""
    seen = rates(measurements, site)
    if len(seen) < max(2, fewest):
        return False
    planned = measurements.value(site, "planned_learning_rate", "update")
    falling = seen[-1] < max(seen)
    return falling or (seen[-1] <= _STILL_RISING * seen[-2] and not max(seen) < _NEARLY * planned)
