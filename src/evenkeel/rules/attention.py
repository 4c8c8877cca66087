"""ATT301, ATT302: attention that has collapsed or stays uniform."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from ..schema import Change, Evidence, Site, StepLog
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

_SINK = 0.5  # a head that rests on the first key most of the time is idle, not collapsed
_NO_GRADIENT = 2.0**-23  # float32's spacing at 1: a softmax Jacobian with this trace is rounding error

_HEADS = Need(kind="attention", stat="entropy_relative")


def _judge_collapsed(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    one_key = bounds["one_key"]
    for site in sites:
        relative, gain, sink = (
            measurements.values(site, stat) for stat in ("entropy_relative", "softmax_gain", "sink_mass")
        )
        heads = [
            head
            for head in range(len(relative))
            if relative[head] < one_key and gain[head] < one_key and sink[head] < _SINK
        ]
        if len(heads) < bounds["heads"] * len(relative):
            continue
        stopped = max(gain) < _NO_GRADIENT
        lowest = min(relative[head] for head in heads)
        yield Case(
            severity="error" if stopped else "warning",
            sites=(site,),
            evidence=(
                Evidence(stat="entropy_relative", value=lowest, bound=one_key, unit="share of log(visible keys)"),
                Evidence(
                    stat="softmax_gain", value=min(gain[head] for head in heads), bound=one_key, unit="1 - sum p^2"
                ),
            ),
            message=f"attention {site.path}: {len(heads)} of {len(relative)} heads put about all weight on one key per "
            f"query: relative entropy down to {lowest:.2g} (bound {one_key}, half of the heads)"
            + (", and the softmax passes no gradient" if stopped else ""),
            excess=len(heads) / len(relative) - lowest,
        )


ATT301 = Rule(
    code="ATT301",
    name="attention collapsed",
    needs=(
        _HEADS,
        Need(kind="attention", stat="softmax_gain"),
        Need(kind="attention", stat="sink_mass"),
    ),
    measures="per head, the entropy of the attention weights relative to log(visible keys), and the softmax's gain "
    "1 - sum p^2",
    severities=(
        "error",
        "warning",
    ),
    severity="error where no head's softmax passes a gradient in float32, else warning",
    bounds={"one_key": 0.02, "heads": 0.5},
    bound="relative entropy and gain both below 0.02 in at least half of the heads of a layer, heads that rest on the "
    "first key left out. 0.02 is a row with 99% of its weight on one key: gain 1 - 0.99^2, entropy at most 0.056 + "
    "0.01 ln n nats. Every trained model has single heads of that kind (previous token, separator), and attention "
    "sinks; half of a layer is neither.",
    why="The softmax's Jacobian diag(p) - p p^T has trace 1 - sum p^2: with all weight on one key no gradient reaches "
    "queries and keys, so the choice can no longer be unlearned. Entropy collapse goes with divergence.",
    advice=(
        "Normalise queries and keys per head (QK-norm).",
        "Scale scores by 1/sqrt(d_k).",
        "Lower the learning rate of the query and key projections, or clip their growth (QK-clip).",
    ),
    change=Change("attention.qk_norm", True),
    explains=("OUT403",),
    claims=("C15", "C17", "C41"),
    try_command="evenkeel demo",
    source="Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse; bound derived "
    "here",
    firing=(
        example(
            "query weights scaled by 100",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.004, 0.011, 0.009, 0.3),
                softmax_gain=(0.003, 0.008, 0.007, 0.4),
                sink_mass=(0.02, 0.05, 0.01, 0.2),
            ),
        ),
    ),
    silent=(
        example(
            "one previous-token head among others",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.01, 0.4, 0.6, 0.8),
                softmax_gain=(0.01, 0.7, 0.9, 0.95),
                sink_mass=(0.01, 0.1, 0.2, 0.05),
            ),
        ),
        example(
            "a layer of attention sinks",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.01, 0.015, 0.012, 0.3),
                softmax_gain=(0.01, 0.012, 0.011, 0.4),
                sink_mass=(0.99, 0.99, 0.99, 0.7),
            ),
        ),
    ),
    judge=_judge_collapsed,
)


def _has_stalled(measurements: Measurements, bounds: Bounds) -> bool:
    """Whether the loss came down and then stood still: a run's last quarter is hardly better than the one before."""
    losses = [entry.loss for entry in measurements.log if entry.loss is not None and math.isfinite(entry.loss)]
    if len(losses) < bounds["steps"]:
        return False
    quarter = len(losses) // 4
    before, last = statistics.median(losses[-2 * quarter : -quarter]), statistics.median(losses[-quarter:])
    return last < bounds["loss_left"] * losses[0] and last > (1 - bounds["better"]) * before


def _judge_uniform(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    stalled, bound = _has_stalled(measurements, bounds), bounds["relative_entropy"]
    for site in sites:
        relative = measurements.values(site, "entropy_relative")
        if min(relative) <= bound:
            continue
        spread = max(measurements.values(site, "score_std"))
        yield Case(
            severity="warning" if stalled else "info",
            sites=(site,),
            evidence=(
                Evidence(stat="entropy_relative", value=min(relative), bound=bound, unit="share of log(visible keys)"),
            ),
            message=f"attention {site.path}: every head averages over all visible keys (relative entropy at least "
            f"{min(relative):.4f}, bound {bound}; score deviation at most {spread:.2g})"
            + (", and the loss has stopped falling" if stalled else "; normal while a model is young"),
            excess=min(relative) - bound,
        )


ATT302 = Rule(
    code="ATT302",
    name="attention uniform",
    needs=(_HEADS, Need(kind="attention", stat="score_std")),
    measures="per head, the entropy of the attention weights relative to log(visible keys)",
    severities=(
        "warning",
        "info",
    ),
    severity="info; warning in a run of at least 200 steps whose loss came down by a tenth or more and then stood "
    "still: its last quarter is less than 1% better than the one before",
    bounds={"relative_entropy": 0.998, "loss_left": 0.9, "steps": 200.0, "better": 0.01},
    bound="relative entropy above 0.998 in every head of a layer. Scores of spread s lower it by s^2 / (2 ln n), so s "
    "< 0.17 at n = 1024: strongly and weakly weighted keys (two standard deviations either way) then differ by less "
    "than a factor of 2. At GPT-2's own init the scaled scores have a variance of 6/64: near uniform, and meant so. "
    "What single tokens tell is learned first, with attention still uniform, so that a falling loss is no sign of "
    "harm; one that stands is.",
    why="Attention that weighs all keys alike is a running mean: it moves no information from one place to another, "
    "and its queries and keys learn slowly.",
    advice=(
        "Scale scores by 1/sqrt(d_k) rather than 1/d_k, unless the learning rate was tuned for it (muP).",
        "Raise the init scale or the learning rate of the query and key projections.",
    ),
    change=Change("attention.scale", "sqrt"),
    claims=("C16", "C17", "C18"),
    try_command="evenkeel rules ATT302",
    source="expansion of the entropy at small spread, derived here; Vaswani et al. 2017",
    firing=(
        example(
            "scores divided by d_k once too often",
            at("layers.0.attn:attention.softmax", entropy_relative=(0.9991, 0.9995), score_std=(0.11, 0.08)),
        ),
        example(
            "still uniform, and the loss has stopped falling",
            at("layers.0.attn:attention.softmax", entropy_relative=(0.9991, 0.9995), score_std=(0.11, 0.08)),
            log=tuple(StepLog(step=step, loss=max(3.3, 5.0 - 0.1 * step) - 1e-4 * step) for step in range(200)),
        ),
    ),
    silent=(
        example(
            "one broad head beside sharper ones",
            at("layers.0.attn:attention.softmax", entropy_relative=(0.9991, 0.81), score_std=(0.11, 1.4)),
        ),
    ),
    judge=_judge_uniform,
)
