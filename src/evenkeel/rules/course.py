"""RUN8xx of a run's log: gradients that jump under a calm loss, a loss that leaves, a batch that comes again."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from ..schema import RUN, Evidence, Site, StepLog
from ._examples import example
from ._measurements import Measurements
from ._rule import Bounds, Case, Rule

_RECENT = 32  # steps that a gradient norm is compared with
_ENOUGH = 16
_ROBUST = 1.4826  # median absolute deviations to a standard deviation, for normal noise


def gradient_jumps(log: Sequence[StepLog], bounds: Bounds) -> Iterator[tuple[StepLog, float, float]]:
    """(entry, median before, deviations) of every step whose gradient norm jumped from those before it.

    Deviations are of the logarithm: gradient norms vary by factors.
    """
    recent: list[float] = []
    for entry in log:
        norm = entry.gradient_norm
        if norm is None or not math.isfinite(norm) or norm <= 0:
            continue
        size = math.log(norm)
        if len(recent) >= _ENOUGH:
            usual = statistics.median(recent)
            spread = _ROBUST * statistics.median(abs(item - usual) for item in recent)
            deviations = (size - usual) / max(spread, 1e-12)
            if deviations > bounds["deviations"] and size - usual > math.log(bounds["factor"]):
                yield entry, math.exp(usual), deviations
        recent = [*recent[1 - _RECENT :], size]


def _judge_hidden(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    log = sorted(measurements.log, key=lambda entry: entry.step)
    jumped = [entry.step for entry in log if entry.jump is not None]
    jumps = list(gradient_jumps(log, bounds))
    broken = [entry.step for entry in log if not math.isfinite(entry.gradient_norm or 0.0)]
    moments = sorted({*jumped, *broken, *(entry.step for entry, _, _ in jumps)})
    for entry, usual, deviations in jumps:
        if entry.step in jumped or entry.gradient_norm is None:
            continue
        later = next((step for step in jumped if step > entry.step), None)
        told = "the loss has not jumped" if later is None else f"the loss jumps at step {later}"
        passed = _passed(entry.step, moments, log[-1].step)
        yield Case(
            severity="info" if passed else "warning",
            sites=(RUN,),
            evidence=(
                Evidence(stat="gradient_norm", value=entry.gradient_norm, bound=bounds["factor"] * usual, unit="1"),
            ),
            message=f"at step {entry.step} the gradient norm is {entry.gradient_norm:.3g}, {usual:.3g} before: "
            f"{entry.gradient_norm / usual:.3g}-fold, {deviations:.2g} robust deviations (bounds "
            f"{bounds['factor']:.3g} and {bounds['deviations']:.3g}); {told}",
            excess=-entry.step,  # the first one tells
        )


def _passed(step: int, moments: Sequence[int], last: int) -> bool:
    """Whether a jump was one step's own affair: the run went on, and nothing else jumps near it."""
    return last - step >= _ENOUGH and not any(0 < abs(step - other) <= _RECENT for other in moments)


def _judge_divergence(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    log = sorted((entry for entry in measurements.log if entry.loss is not None), key=lambda entry: entry.step)
    losses = [entry.loss for entry in log if entry.loss is not None and math.isfinite(entry.loss)]
    window = max(1, int(bounds["window"]))
    if len(losses) < 3 * window:
        return
    levels = [statistics.median(losses[end - window : end]) for end in range(window, len(losses) + 1)]
    best = min(levels[:-window])
    place = levels.index(best)
    start, now = losses[0], levels[-1]
    around = losses[place : place + window]
    noise = _ROBUST * statistics.median(abs(loss - best) for loss in around)
    bound = best + max(
        bounds["share"] * max(start - best, 0.0), bounds["deviations"] * noise, bounds["rise"] * abs(best)
    )
    if now > bound:
        yield Case(
            severity="error" if now > start else "warning",
            sites=(RUN,),
            evidence=(Evidence(stat="loss", value=now, bound=bound, unit="nats"),),
            message=f"the loss was {best:.4g} around step {log[min(place + window - 1, len(log) - 1)].step} and is "
            f"{now:.4g} in the last {window} steps (medians; bound {bound:.4g}, {start:.4g} at the start)",
            excess=now - bound,
        )


def _judge_repeated(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    window = max(1, int(bounds["window"]))
    log = sorted((entry for entry in measurements.log if entry.batch), key=lambda entry: entry.step)[-window:]
    if len(log) < window:
        return
    batch, count = Counter(entry.batch for entry in log).most_common(1)[0]
    if count > bounds["share"] * window:
        yield Case(
            severity="warning",
            sites=(RUN,),
            evidence=(Evidence(stat="batch", value=count, bound=bounds["share"] * window, unit="steps"),),
            message=f"{count} of the last {window} steps are on one and the same batch, {batch} (bound "
            f"{bounds['share'] * window:.3g}); the last of them is step "
            f"{max(entry.step for entry in log if entry.batch == batch)}",
            excess=count,
        )


def _norms(*norms: float, loss: float = 2.0, jump_at: int | None = None) -> tuple[StepLog, ...]:
    return tuple(
        StepLog(step=step, loss=loss, gradient_norm=norm, jump=40.0 if step == jump_at else None)
        for step, norm in enumerate(norms)
    )


def _losses(*losses: float) -> tuple[StepLog, ...]:
    return tuple(StepLog(step=step, loss=loss) for step, loss in enumerate(losses))


_CALM = tuple(0.6 + 0.1 * (step % 4) for step in range(24))
_DESCENT = tuple(2.5 + 3.0 * 0.9**step for step in range(60))

RUN802 = Rule(
    code="RUN802",
    name="gradient jump under a calm loss",
    needs=(),
    measures="every step's gradient norm, before clipping, against those of the 32 steps before it, at steps whose "
    "loss did not jump",
    severities=("warning", "info"),
    severity="warning; info where the run went on for 16 steps, and nothing else jumps, norm or loss, within 32",
    bounds={"factor": 5.0, "deviations": 6.0},
    bound="5 times the median and 6 robust deviations (1.4826 times the median absolute deviation) above it, both of "
    "logarithms, over at least 16 steps. On normal noise 6 deviations happen once in 10^9 steps; a batch of a fifth "
    "of the size has a gradient that is larger by sqrt(5), so 5 is beyond what sampling does.",
    explains=("RUN801", "RUN803"),
    why="Clipping cuts such a gradient to the usual length, so the loss says nothing at first; but the direction of "
    "the step is that of the one outlier, Adam's second moment remembers it for many steps, and what made it is still "
    "there.",
    advice=(
        "Look at the batch of that step, and at which block's gradient grew (GRD502, per-parameter gradient_rms).",
        "Skip steps whose norm is far above the running median, in place of clipping them.",
        "Lower the learning rate or beta2 where jumps come again; z-loss or QK-norm where logits grow.",
    ),
    try_command="evenkeel rules RUN802",
    source="Molybog et al. 2023, A Theory on Adam Instability; Huang et al. 2025, SPAM (gradient spikes); "
    "bound derived here",
    firing=(
        example("a norm of 14 among norms of 0.7", log=_norms(*_CALM, 14.0, *_CALM[:4])),
        example("one step of its own, and the run goes on", log=_norms(*_CALM, 14.0, *_CALM)),
    ),
    silent=(
        example("the usual noise", log=_norms(*_CALM, 1.4, 0.9)),
        example("a jump that the loss shows as well", log=_norms(*_CALM, 14.0, jump_at=24)),
        example("the first steps of a run", log=_norms(9.0, 6.0, 3.5, 1.5, 1.0, 0.9, *_CALM)),
    ),
    judge=_judge_hidden,
)

RUN803 = Rule(
    code="RUN803",
    name="loss diverges",
    needs=(),
    measures="the median loss of the last 8 steps beside the lowest median of 8 steps before",
    severities=("error", "warning"),
    severity="warning; error where the loss is above that of the first step",
    bounds={"window": 8, "share": 0.5, "deviations": 6.0, "rise": 0.05},
    bound="half of what was won since the first step is lost again, and the rise is more than 6 robust deviations of "
    "the losses around the best, and more than 5% of it. A median of 8 has a third of a single step's noise, so that "
    "noise alone does not reach it; a change of data may.",
    why="The run is not coming back by itself: every further step is spent on a model that gets worse.",
    advice=(
        "Stop, and resume from a checkpoint before the best with a third of the learning rate.",
        "What moved first (RUN801, RUN802, attention and head findings) says why.",
    ),
    try_command="evenkeel rules RUN803",
    source="Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities; "
    "bound derived here",
    firing=(example("a loss that climbs back", log=_losses(*_DESCENT, *(2.6 + 0.15 * step for step in range(20)))),),
    silent=(
        example("a descent", log=_losses(*_DESCENT)),
        example("a spike that comes back", log=_losses(*_DESCENT, 6.0, 4.0, 3.0, *[2.55] * 12)),
    ),
    judge=_judge_divergence,
)

RUN807 = Rule(
    code="RUN807",
    name="the same batch again and again",
    needs=(),
    measures="the fingerprints of the last 16 logged batches",
    severities=("warning",),
    severity="warning",
    bounds={"window": 16, "share": 0.5},
    bound="more than half of the last 16 steps on one batch. Two batches that take turns are the smallest data set "
    "that is passed over. Steps without a fingerprint are left out; fewer than 16 are too few.",
    explains=("RUN803",),
    why="The model learns one batch by heart: the loss looks better than any real one, and nothing else is learned.",
    advice=(
        "Check the loader: an iterator made anew in every step, a sampler with a fixed seed, a worker that repeats.",
        "Where learning one batch by heart is the point (a test of the loop), nothing is to be done.",
    ),
    try_command="evenkeel rules RUN807",
    source="bound derived here",
    firing=(
        example(
            "one batch for ever",
            log=tuple(StepLog(step=step, loss=3.0 - 0.1 * step, batch="5f0c2c9a7be1d834") for step in range(20)),
        ),
    ),
    silent=(
        example("a batch a step", log=tuple(StepLog(step=step, loss=3.0, batch=f"{step:016x}") for step in range(20))),
        example("no fingerprints", log=_losses(*_DESCENT)),
    ),
    judge=_judge_repeated,
)
