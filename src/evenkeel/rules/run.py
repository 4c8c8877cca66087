"""RUN8xx: what happens to a whole training run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..schema import RUN, Evidence, Phase, Severity, Site, StepLog
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Rule
from ._training import is_solved, logs_the_head, rates
from .course import RUN802, gradient_jumps

_BEFORE = 16  # steps from which the loss before a spike is known
_AFTER = 8  # steps from which the loss after it is known
_EARLIER = 16  # measured steps that make up a reading's own range
_FEWEST = 3
_WATCHED = 3  # measured steps before the spike in which something may have moved
_TOLD = (
    "max_logit entropy_relative score_std mean_energy small_gradient_share output_rms product_absmax residual_rms "
    "gradient_rms update_ratio weight_rms logsumexp_mean logit_absmax headroom_log2"
).split()


@dataclass(frozen=True)
class _Move:
    """A reading outside its own earlier range."""

    step: int
    site: Site
    stat: str
    value: float
    low: float
    high: float


def _judge_spike(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    log = sorted(measurements.log, key=lambda entry: entry.step)
    jumps = tuple(_jumps(log))
    first_lost = next((place for place, entry in enumerate(log) if _lost(entry)), len(log))
    for place, entry in enumerate(log[: first_lost + 1]):
        if entry.loss is None or (entry.jump is None and not _lost(entry)):
            continue
        move = _first_move(measurements, entry.step, jumps)
        yield Case(
            severity=_severity(measurements, log, place),
            sites=(RUN,) if move is None else (RUN, move.site),
            evidence=_evidence(entry, move),
            message=_message(entry, log[:place], move) + _without_warmup(measurements),
            excess=math.inf if entry.jump is None else entry.jump,
        )


def _lost(entry: StepLog) -> bool:
    """A loss that is not finite; what comes behind the first of them says nothing new."""
    return entry.loss is not None and not math.isfinite(entry.loss)


def _severity(measurements: Measurements, log: list[StepLog], place: int) -> Severity:
    """A loss that is not finite is an error; a jump that ends at next to nothing, or is over, is only worth knowing."""
    if _lost(log[place]):
        return "error"
    if logs_the_head(measurements) and is_solved(measurements, log[place].loss):
        return "info"
    before, after = _losses(log[max(0, place - _BEFORE) : place]), _losses(log[place + 1 :])
    recovered = len(before) > 0 and len(after) >= _AFTER and statistics.median(after[-_AFTER:]) <= max(before)
    return "info" if recovered else "warning"


def _losses(log: list[StepLog]) -> list[float]:
    return [entry.loss for entry in log if entry.loss is not None and math.isfinite(entry.loss)]


def _evidence(entry: StepLog, move: _Move | None) -> tuple[Evidence, ...]:
    assert entry.loss is not None
    jump = math.inf if entry.jump is None else entry.jump
    found = [Evidence(stat="loss_jump", value=jump, bound=6.0, unit="deviations")]
    if move is not None:
        bound = move.high if move.value > move.high else move.low
        found.append(Evidence(stat=move.stat, value=move.value, bound=bound, unit="earlier range"))
    return tuple(found)


def _message(entry: StepLog, earlier: list[StepLog], move: _Move | None) -> str:
    before = _losses(earlier[-_BEFORE:])
    usual = f", {statistics.median(before):.4g} before" if before else ""
    batch = f" on batch {entry.batch}" if entry.batch else ""
    size = (
        "not finite"
        if entry.jump is None or not math.isfinite(entry.jump)
        else f"{entry.jump:.3g} robust deviations up (bound 6)"
    )
    if move is None:
        first = "; no reading around it left its own range, so measure more often (every=...)"
    else:
        where = f" of {move.site.path}" if move.site.path else ""
        first = f"{move.stat}{where}, {move.value:.4g} at step {move.step} ({move.low:.4g} to {move.high:.4g} before)"
        if move.step > entry.step:
            first = f"; nothing moved before it, so it begins with this batch; first to move behind it: {first}"
        else:
            first = f"; first to move: {first}"
    return f"the loss is {entry.loss:.4g} at step {entry.step}{batch}{usual}: {size}{first}"


def _without_warmup(measurements: Measurements) -> str:
    """What to add where the learning rate was as high in the first step as it ever was or was to be."""
    for site in measurements.of_kind("parameter"):
        history = measurements.history(site, "learning_rate", "update")
        if history and history[0][0] == 0:
            seen, planned = rates(measurements, site), measurements.value(site, "planned_learning_rate", "update")
            return "; there is no warm-up" if seen[0] > 0.9 * max(*seen, planned) else ""
    return ""


def _first_move(measurements: Measurements, spike: int, jumps: Sequence[_Move]) -> _Move | None:
    """What left its own earlier range first, a reading or the log's gradient norm: by step, ties in execution order."""
    steps = sorted({reading.step for reading in measurements.readings if reading.stat in _TOLD})
    before = [step for step in steps if step <= spike]
    window = set(before[-_WATCHED:] + [step for step in steps if step > spike][:1])
    moves = [
        move
        for place, (site, stat, phase) in enumerate(measurements.named(_TOLD))
        if site.kind != "parameter"
        for move in _moves(measurements, site, stat, phase, window)
    ]
    before_it = [move for move in jumps if spike - _BEFORE <= move.step < spike]
    return min((*before_it, *moves), key=lambda move: move.step, default=None)


def _jumps(log: Sequence[StepLog]) -> Iterator[_Move]:
    """Jumps of the gradient norm; clipping may have hidden them from the loss."""
    for entry, _, _ in gradient_jumps(log, RUN802.bounds):
        if entry.gradient_norm is not None:
            norms = [item.gradient_norm for item in log if item.gradient_norm and item.step < entry.step][-_BEFORE:]
            yield _Move(entry.step, RUN, "gradient_norm", entry.gradient_norm, min(norms), max(norms))


def _moves(measurements: Measurements, site: Site, stat: str, phase: Phase, window: set[int]) -> Iterator[_Move]:
    history = measurements.history(site, stat, phase)
    for place, (step, values) in enumerate(history):
        earlier = [item for _, item in history[max(0, place - _EARLIER) : place] if len(item) == len(values)]
        if step not in window or len(earlier) < _FEWEST:
            continue
        for head, value in enumerate(values):
            seen = [item[head] for item in earlier]
            low, high = min(seen), max(seen)
            margin = high - low
            if not low - margin <= value <= high + margin:
                yield _Move(step, site, stat, value, low, high)
                return


def _run(*losses: float, jump_at: int, jump: float) -> tuple[StepLog, ...]:
    return tuple(
        StepLog(step=step, loss=loss, batch=f"{step:016x}", jump=jump if step == jump_at else None)
        for step, loss in enumerate(losses)
    )


def _logits(*values: float):
    return [
        at("layers.4.attn:attention.softmax", step=step, max_logit=value, entropy_relative=0.7)
        for step, value in enumerate(values)
    ]


_STEADY = tuple(2.0 + 0.01 * (step % 3) for step in range(20))

RUN801 = Rule(
    code="RUN801",
    name="loss spike",
    needs=(),
    measures="every step's loss against the steps before it, and which reading left its own earlier range first",
    severities=(
        "error",
        "warning",
        "info",
    ),
    severity="error where the loss is not finite; warning for a jump; info where the loss came back to where it was, "
    "or jumped to less than a tenth of that of guessing: one hard row does that where the rest is solved",
    bound="a loss that is not finite, or a jump: more than 6 robust deviations above the median of the last 16 "
    "steps, and more than 1% of it; on normal noise that happens once in 10^9 steps. The deviation is 1.4826 / sqrt(2) "
    "times the median change from one step to the next over 64 steps, which hardly feels that a loss is falling. A "
    "reading has left its range when it lies further outside the span of its last 16 measured values "
    "than that span is wide.",
    why="A spike is a step that the model could not digest: an odd batch, a learning rate at the edge of stability, "
    "or logits that had grown before. Which of them shows in what moved first.",
    advice=(
        "Look at the batch that is named; skip it and resume from before the spike if it is broken.",
        "If attention logits moved first: QK-norm or QK-clip. If output logits did: z-loss.",
        "Lower the learning rate, lengthen the warm-up, clip gradients.",
    ),
    try_command="evenkeel rules RUN801",
    source="robust deviations: Rousseeuw and Croux 1993; restarts around spikes: Chowdhery et al. 2022 (PaLM)",
    firing=(
        example(
            "a spike behind growing attention logits",
            *_logits(10.0, 10.4, 10.1, 10.6, 31.0, 90.0),
            log=_run(*_STEADY[:5], 6.5, 6.0, 5.5, jump_at=5, jump=300.0),
        ),
        example("a loss that is NaN", log=_run(*_STEADY, math.nan, jump_at=20, jump=math.inf)),
    ),
    silent=(example("a steady run", *_logits(10.0, 10.4, 10.1, 10.6), log=_run(*_STEADY, jump_at=-1, jump=0.0)),),
    judge=_judge_spike,
)
