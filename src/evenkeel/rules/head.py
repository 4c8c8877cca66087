"""OUT4xx: the logits that leave the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..precision import FORMATS
from ..schema import Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

_ENOUGH_ROWS = 512  # the gap between confidence and accuracy then has a standard error of at most 0.022


def _coarse_from(dtype: str, rounding: float) -> float:
    """The magnitude from which a format's neighbouring values lie twice the rounding bound apart or more."""
    return 2 * rounding / FORMATS[dtype].epsilon if dtype in FORMATS else math.inf


def _judge_drift(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    dtype = measurements.model.dtype
    bound = _coarse_from(dtype, bounds["rounding"])
    for site in sites:
        log_z, largest = (measurements.value(site, stat) for stat in ("logsumexp_mean", "logit_absmax"))
        if largest >= bound:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="logit_absmax", value=largest, bound=bound, unit="nats"),),
                message=f"logits of {site.path or 'the model'} reach {largest:,.4g}; from {bound:,.0f} on {dtype} "
                f"rounds by up to {bounds['rounding']} nats or more",
                excess=largest / bound,
            )
        elif abs(log_z) > bounds["log_z"]:
            yield Case(
                severity="info",
                sites=(site,),
                evidence=(
                    Evidence(
                        stat="logsumexp_mean", value=log_z, bound=math.copysign(bounds["log_z"], log_z), unit="nats"
                    ),
                ),
                message=f"logits of {site.path or 'the model'} have drifted: log Z is {log_z:,.4g} on average (bound "
                f"{bounds['log_z']:.0f} either way)",
                excess=abs(log_z),
            )


OUT401 = Rule(
    code="OUT401",
    name="logit drift",
    needs=(Need(kind="head", stat="logsumexp_mean"), Need(kind="head", stat="logit_absmax")),
    measures="the mean of log Z = logsumexp(logits) and the largest |logit|",
    severities=(
        "warning",
        "info",
    ),
    severity="warning where the model's dtype rounds the logits by half a nat or more, info for drift alone",
    bounds={"rounding": 0.5, "log_z": 100.0},
    bound="rounding: half the spacing of the dtype at the largest |logit| is 0.5 nats, which moves a probability by a "
    "factor of 1.6; bfloat16 reaches it at 128, float16 at 1,024. Drift: |log Z| = 100, where the published z-loss "
    "1e-4 log^2 Z is 1 nat.",
    why="Softmax ignores a common shift of all logits, so nothing in the loss holds them; they drift until the dtype "
    "can no longer tell neighbouring logits apart, and training grows unstable.",
    advice=(
        "Add the z-loss 1e-4 log^2 Z to the loss.",
        "Compute logits and loss in float32.",
        "Cap the logits: cap tanh(logits / cap).",
    ),
    claims=("C20", "C22"),
    try_command="evenkeel rules OUT401",
    source="z-loss: Chowdhery et al. 2022 (PaLM); Wortsman et al. 2023; rounding derived from the dtype",
    firing=(
        example(
            "a bfloat16 head far out",
            at("lm_head:head.softmax", logsumexp_mean=140.0, logit_absmax=190.0),
            dtype="bfloat16",
        ),
        example("drift in float32", at("lm_head:head.softmax", logsumexp_mean=-130.0, logit_absmax=190.0)),
    ),
    silent=(
        example("a trained head", at("lm_head:head.softmax", logsumexp_mean=14.0, logit_absmax=31.0), dtype="bfloat16"),
    ),
    judge=_judge_drift,
)


def _judge_confidence(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        confidence, accuracy, ece, temperature = (
            measurements.value(site, stat) for stat in ("top_probability", "accuracy", "ece", "optimal_temperature")
        )
        gap = confidence - accuracy
        if gap <= bounds["gap"] or temperature <= bounds["temperature"]:
            continue
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(
                Evidence(stat="ece", value=ece, bound=bounds["gap"], unit="probability"),
                Evidence(stat="optimal_temperature", value=temperature, bound=bounds["temperature"], unit="1"),
            ),
            message=f"the output of {site.path or 'the model'} is {confidence:.1%} sure and {accuracy:.1%} right: a "
            f"gap of {gap:.3f} (bound {bounds['gap']}); its loss is lowest at temperature {temperature:.3g} "
            f"(bound {bounds['temperature']})",
            excess=gap,
        )


OUT402 = Rule(
    code="OUT402",
    name="overconfident output",
    needs=(
        Need(kind="head", stat="top_probability"),
        Need(kind="head", stat="accuracy"),
        Need(kind="head", stat="ece"),
        Need(kind="head", stat="optimal_temperature"),
        Need(kind="head", stat="tokens", at_least=_ENOUGH_ROWS),
    ),
    measures="mean top probability less accuracy, the expected calibration error, and the temperature at which the "
    "loss is lowest",
    severities=("warning",),
    severity="warning",
    bounds={"gap": 0.1, "temperature": 1.25},
    bound="a gap of 0.1 together with an optimal temperature above 1.25. With 512 rows or more the gap's standard "
    "error is at most 0.022, so 0.1 is more than four of them; pretrained language models lie below 0.03. Random "
    "weights give low probabilities and are not overconfident, whatever their temperature.",
    why="Probabilities that promise more than they keep mislead everything that acts on them: sampling, thresholds, "
    "speculative decoding.",
    advice=(
        "Divide the logits by the optimal temperature, found on held-out data (temperature scaling).",
        "Stop earlier, or train on more data: the gap often comes with overfitting.",
    ),
    claims=("C23", "C24", "C41"),
    try_command="evenkeel rules OUT402",
    source="Guo et al. 2017, On Calibration of Modern Neural Networks (ECE 16.5% to 1.3% by temperature scaling)",
    firing=(
        example(
            "an overfitted head",
            at(
                "lm_head:head.softmax",
                top_probability=0.81,
                accuracy=0.6,
                ece=0.21,
                optimal_temperature=1.9,
                tokens=2048.0,
            ),
        ),
    ),
    silent=(
        example(
            "a calibrated head",
            at(
                "lm_head:head.softmax",
                top_probability=0.52,
                accuracy=0.51,
                ece=0.015,
                optimal_temperature=1.03,
                tokens=2048.0,
            ),
        ),
        example(
            "random weights",
            at(
                "lm_head:head.softmax",
                top_probability=0.001,
                accuracy=0.0,
                ece=0.001,
                optimal_temperature=4.0,
                tokens=2048.0,
            ),
        ),
    ),
    judge=_judge_confidence,
)
