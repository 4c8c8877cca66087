"""What several rules ask of a run: what the model has learned, whether the learning rate has arrived."""

from __future__ import annotations

import math
import statistics

from ..schema import Site
from ._measurements import Measurements

_STILL_RISING = 1.01  # from one measured step to the next
_BETTER = 0.9  # of the loss of guessing: an untrained model with tied embeddings can be a little below it
_SOLVED = 0.1  # of the loss of guessing
_GUESSED = 1.25  # of the loss of guessing: a new head's logits have a deviation of 0.6 at most, which costs 0.6^2/2
_UNEVEN = 2.0  # draws have 1; the maps of released models 8 and more
_SAME = 0.1  # of a loss: the last micro-batch of a measured step, beside the mean of all
_NEARLY = 0.9  # of the planned learning rate


def has_learned(measurements: Measurements, *, before: bool = False) -> bool | None:
    """Whether the latest loss is a tenth below that of guessing among equally likely classes; None if unknown.

    before: the loss of the first measured step instead. False does not say that a model is fresh: see `is_fresh`.
    """
    share = _share_of_guessing(measurements, before=before)
    return None if math.isnan(share) else share < _BETTER


def is_fresh(measurements: Measurements) -> bool:
    """Whether a model has everything to learn: it guesses, and its maps were as they are drawn when first measured.

    A trained body under a new head guesses too, but its maps are uneven, or it is frozen and they are not among the
    trained. Where the loss lies far above guessing the head is no new one, and the maps are not asked.
    """
    share = _share_of_guessing(measurements)
    if math.isnan(share) or share < _BETTER:
        return False
    return is_far_off(measurements) or not (most_is_frozen(measurements) or _began_uneven(measurements))


def is_solved(measurements: Measurements, loss: float | None = None) -> bool:
    """Whether the latest loss, or the given one, is less than a tenth of that of guessing."""
    return _share_of_guessing(measurements, loss=loss) < _SOLVED


def logs_the_head(measurements: Measurements) -> bool:
    """Whether the logged loss is the head's own, and not divided, weighted or another one: where both were read."""
    logged = {entry.step: entry.loss for entry in measurements.log if entry.loss is not None}
    pairs = [
        (logged[step], loss)
        for head in measurements.of_kind("head")
        for step, (loss,) in measurements.history(head, "loss")
        if step in logged
    ]
    return bool(pairs) and all(abs(loss - own) <= _SAME * abs(own) for loss, own in pairs)


def at_the_start(measurements: Measurements) -> bool:
    """Whether a model has not learned, and nothing measured yet shows that steps were taken."""
    return has_learned(measurements) is False and len({reading.step for reading in measurements.readings}) == 1


def is_far_off(measurements: Measurements) -> bool:
    """Whether the latest loss lies so far above that of guessing that the head is no new one."""
    return _share_of_guessing(measurements) > _GUESSED


def most_is_frozen(measurements: Measurements) -> bool:
    """Whether less than half of a model's parameters are trained, as with adapters."""
    trained = sum(measurements.value(site, "elements") for site in measurements.of_kind("parameter"))
    return 2 * trained < measurements.model.parameters


def _began_uneven(measurements: Measurements) -> bool:
    """Whether half of the maps were uneven when they were first measured."""
    histories = (measurements.history(site, "unevenness") for site in measurements.of_kind("parameter"))
    first = [history[0][1][0] for history in histories if history]
    return len(first) > 0 and statistics.median(first) > _UNEVEN


def _share_of_guessing(measurements: Measurements, *, before: bool = False, loss: float | None = None) -> float:
    """A loss over that of guessing among equally likely classes; NaN if unknown, as on random data.

    A trained model on random data guesses worse than that, so random data say nothing.
    """
    if measurements.data.kind == "random":
        return math.nan
    for head in measurements.of_kind("head"):
        losses, classes = measurements.history(head, "loss"), measurements.value(head, "classes")
        own = losses[0 if before else -1][1][0] if losses else math.nan
        if not math.isnan(own) and classes > 1:
            return (own if loss is None else loss) / math.log(classes)
    return math.nan


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
