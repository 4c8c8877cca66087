"""OUT4xx: the logits that leave the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..precision import FORMATS
from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

_UNIFORM = 0.9  # of log(classes or rows): equally likely classes give 0.92 and more; text 0.6 in bytes, 0.85 in words
_Z_LOSS = Change("head.z_loss", 1e-4)  # it holds what would drift; it brings back no weights that are far out
_ENOUGH_ROWS = 512  # the gap between confidence and accuracy then has a standard error of at most 0.022


def _spacing(measurements: Measurements, site: Site) -> tuple[float, str]:
    """The spacing at 1 of the coarsest format that held the logits, and its name; the model's where none was read."""
    dtype, epsilon = measurements.model.dtype, measurements.value(site, "logit_epsilon")
    if math.isnan(epsilon):
        return (FORMATS[dtype].epsilon if dtype in FORMATS else 0.0), dtype
    return epsilon, next((name for name, entry in FORMATS.items() if entry.epsilon == epsilon), dtype)


def _judge_drift(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        epsilon, dtype = _spacing(measurements, site)
        bound = 2 * bounds["rounding"] / epsilon if epsilon else math.inf
        log_z, largest = (measurements.value(site, stat) for stat in ("logsumexp_mean", "logit_absmax"))
        if largest >= bound:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="logit_absmax", value=largest, bound=bound, unit="nats"),),
                message=f"logits of {site.path or 'the model'} reach {largest:,.4g}; from {bound:,.0f} on {dtype} "
                f"rounds by up to {bounds['rounding']} nats or more",
                excess=largest / bound,
                change=_Z_LOSS,
            )
        elif _too_large(measurements, site, bounds):
            gain = measurements.value(site, "temperature_gain")
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="temperature_gain", value=gain, bound=bounds["gain"], unit="nats"),),
                message=f"logits of {site.path or 'the model'} are too large by a factor of {bounds['factor']:.0f} or "
                f"more: divided by it they cost {gain:.3g} nats less (bound {bounds['gain']:g})",
                excess=gain / bounds["gain"],
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
                change=_Z_LOSS,
            )


def _too_large(measurements: Measurements, site: Site, bounds: Bounds) -> bool:
    factor, gain = (measurements.value(site, stat) for stat in ("optimal_temperature", "temperature_gain"))
    return factor >= bounds["factor"] and gain > bounds["gain"] and not drawn_at_random(measurements, site)


def drawn_at_random(measurements: Measurements, site: Site) -> bool:
    """Whether nothing can be known of the targets: whatever a trained model is sure of, it is wrong."""
    classes, rows, entropy = (measurements.value(site, stat) for stat in ("classes", "tokens", "target_entropy"))
    return measurements.data.kind == "random" or entropy > _UNIFORM * math.log(min(classes, rows))


OUT401 = Rule(
    code="OUT401",
    name="logit drift",
    needs=(Need(kind="head", stat="logsumexp_mean"), Need(kind="head", stat="logit_absmax")),
    measures="the mean of log Z = logsumexp(logits), the largest |logit|, and where targets are known the number by "
    "which logits would have to be divided for the smallest loss",
    severities=(
        "warning",
        "info",
    ),
    severity="warning where their dtype rounds the logits by half a nat or more, and where they are far too "
    "large; info for drift alone",
    bounds={"rounding": 0.5, "factor": 4.0, "gain": 1.0, "log_z": 100.0},
    bound="rounding: half the spacing of the dtype at the largest |logit| is 0.5 nats, which moves a probability by a "
    "factor of 1.6; bfloat16 reaches it at 128, float16 at 1,024. Meant is the coarsest dtype that held the logits "
    "between their linear map and the loss: bfloat16 under autocast, float32 where a bfloat16 model's head computes "
    "in it, and a cast up afterwards brings nothing back. Far too large: of the temperatures tried the "
    "highest, 4, gives the smallest loss, and lowers it by more than 1 nat. Normal logits of deviation s that know "
    "nothing cost s^2/2, of which dividing by 4 saves 15/16: 1 nat is s = 1.46, more than any released init; "
    "overconfidence by training stays below a factor of 3 (Guo et al. 2017). Drift: |log Z| = 100, where the "
    "published z-loss 1e-4 log^2 Z is 1 nat.",
    why="Softmax ignores a common shift of all logits, so nothing in the loss holds them; they drift until the dtype "
    "can no longer tell neighbouring logits apart, and training grows unstable.",
    advice=(
        "Add the z-loss 1e-4 log^2 Z to the loss.",
        "Compute logits and loss in float32.",
        "Cap the logits: cap tanh(logits / cap).",
        "Check the unembedding's init scale, or what a tied embedding is multiplied by.",
    ),
    explains=("OUT402", "OUT403"),
    claims=("C20", "C22"),
    try_command="evenkeel rules OUT401",
    source="z-loss: Chowdhery et al. 2022 (PaLM); Wortsman et al. 2023; rounding derived from the dtype",
    firing=(
        example(
            "a bfloat16 head far out",
            at("lm_head:head.softmax", logsumexp_mean=140.0, logit_absmax=190.0),
            dtype="bfloat16",
        ),
        example(
            "an unembedding ten times too large",
            at(
                "lm_head:head.softmax",
                logsumexp_mean=41.0,
                logit_absmax=90.0,
                optimal_temperature=4.0,
                temperature_gain=9.2,
                target_entropy=3.1,
                classes=256.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a float32 model under autocast",
            at("lm_head:head.softmax", logsumexp_mean=90.0, logit_absmax=190.0, logit_epsilon=2.0**-7),
        ),
        example("drift in float32", at("lm_head:head.softmax", logsumexp_mean=-130.0, logit_absmax=190.0)),
    ),
    silent=(
        example("a trained head", at("lm_head:head.softmax", logsumexp_mean=14.0, logit_absmax=31.0), dtype="bfloat16"),
        example(
            "a bfloat16 model whose head computes in float32",
            at("lm_head:head.softmax", logsumexp_mean=90.0, logit_absmax=190.0, logit_epsilon=2.0**-23),
            dtype="bfloat16",
        ),
        example(
            "small random logits",
            at(
                "lm_head:head.softmax",
                logsumexp_mean=5.6,
                logit_absmax=1.2,
                optimal_temperature=4.0,
                temperature_gain=0.03,
            ),
        ),
    ),
    judge=_judge_drift,
)


def _judge_confidence(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        confidence, accuracy, ece, temperature = (
            measurements.value(site, stat) for stat in ("top_probability", "accuracy", "ece", "optimal_temperature")
        )
        if not _knows(measurements, site):
            continue  # it has nothing to be sure of; OUT401 and OUT403 tell what that costs
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


def _knows(measurements: Measurements, site: Site) -> bool:
    """Whether the head, at its best temperature, beats knowing nothing but how frequent each class is."""
    loss, gain, frequencies = (
        measurements.value(site, stat) for stat in ("loss", "temperature_gain", "target_entropy")
    )
    return loss - gain < frequencies


OUT402 = Rule(
    code="OUT402",
    name="overconfident output",
    needs=(
        Need(kind="head", stat="top_probability"),
        Need(kind="head", stat="accuracy"),
        Need(kind="head", stat="ece"),
        Need(kind="head", stat="optimal_temperature"),
        Need(kind="head", stat="loss"),
        Need(kind="head", stat="temperature_gain"),
        Need(kind="head", stat="target_entropy"),
        Need(kind="head", stat="tokens", at_least=_ENOUGH_ROWS),
    ),
    measures="mean top probability less accuracy, the expected calibration error, and the temperature at which the "
    "loss is lowest; of heads that know more than how frequent each class is",
    severities=("warning",),
    severity="warning",
    bounds={"gap": 0.1, "temperature": 1.25},
    bound="a gap of 0.1 together with an optimal temperature above 1.25. With 512 rows or more the gap's standard "
    "error is at most 0.022, so 0.1 is more than four of them; pretrained language models lie below 0.03. Random "
    "weights are not overconfident, whatever their temperature: judged are heads whose smallest loss over "
    "temperatures lies below the entropy of the targets' own frequencies.",
    why="Probabilities that promise more than they keep mislead everything that acts on them: sampling, thresholds, "
    "speculative decoding.",
    advice=(
        "Divide the logits by the optimal temperature, found on held-out data (temperature scaling).",
        "Stop earlier, or train on more data: the gap often comes with overfitting.",
    ),
    explains=("OUT403",),
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
                loss=2.9,
                temperature_gain=0.4,
                target_entropy=5.1,
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
                loss=2.4,
                temperature_gain=0.0,
                target_entropy=5.1,
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
                loss=6.9,
                temperature_gain=0.2,
                target_entropy=5.1,
                tokens=2048.0,
            ),
        ),
        example(
            "random weights with large logits that repeat the last token",
            at(
                "lm_head:head.softmax",
                top_probability=0.93,
                accuracy=0.23,
                ece=0.7,
                optimal_temperature=4.0,
                loss=14.0,
                temperature_gain=9.0,
                target_entropy=3.1,
                tokens=2048.0,
            ),
        ),
    ),
    judge=_judge_confidence,
)
