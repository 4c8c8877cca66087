"""From a study to models: each arm's config, made as large as the baseline's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...errors import ConfigError
from ...nn import Match, TransformerConfig, match_parameters
from ...nn.config.axes import nested
from ...nn.matching import MEASURES, Free, Measure
from ..comparison import ArmPlan
from ..study import Arm, Study
from .own_activations import OwnActivation, is_own

CLOSE = 0.005
"""The share of the baseline's size by which an arm may differ and count as equal."""

_BYTES = 256


def plan_arms(study: Study) -> tuple[ArmPlan, ...]:
    """Each arm's config and costs, in the study's order; own activations are registered, in a worker's process too.

    An arm is resized in d_ff; one of another depth in width, d_model and d_ff together, so that its blocks keep their
    proportions. What an arm sets itself is never resized, and neither is one that is equal as it stands.
    Raises ConfigError for choices that contradict each other, and for an arm that cannot be made equal.
    """
    if study.objective:
        return tuple(ArmPlan(arm=arm, config={}) for arm in study.arms)
    configs = {arm.name: config_of(study, arm) for arm in study.arms}
    baseline = configs[study.baseline]
    for name, config in configs.items():
        _check_data(name, config, study.baseline, baseline)
    return tuple(_plan(study, arm, configs[arm.name], baseline) for arm in study.arms)


def config_of(study: Study, arm: Arm) -> TransformerConfig:
    """The study's model with an arm's choices, before it is resized."""
    data = nested(arm.choices, study.model)
    try:
        part = data.get("feedforward")
        if isinstance(part, dict) and is_own(part.get("activation")):
            part["activation"] = OwnActivation.parse(part["activation"]).register()
        return TransformerConfig.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from error


def _check_data(name: str, config: TransformerConfig, baseline_name: str, baseline: TransformerConfig) -> None:
    """Raises ConfigError for a model that cannot be shown the same bytes as the baseline."""
    if config.vocabulary < _BYTES:
        raise ConfigError(
            f"arm {name!r} has vocabulary={config.vocabulary}, and arms are trained on bytes; give {_BYTES} or more"
        )
    if config.context != baseline.context:
        raise ConfigError(
            f"arm {name!r} has context={config.context} and the baseline {baseline_name!r} {baseline.context}, and all "
            "are shown the same sequences; give every arm one context"
        )


def _plan(study: Study, arm: Arm, config: TransformerConfig, baseline: TransformerConfig) -> ArmPlan:
    by: Measure = "flops" if study.match == "flops" else "parameters"
    match = _as_it_stands(config, baseline, by)
    if study.match != "nothing" and match.difference:
        match = _matched(study, arm, match, baseline)
    return ArmPlan(
        arm=arm,
        config=match.config.to_dict(),
        parameters=match.config.parameter_count(),
        flops=match.config.flop_count(training=True),
        difference=match.difference,
    )


def _as_it_stands(config: TransformerConfig, baseline: TransformerConfig, by: Measure) -> Match:
    return Match(config=config, by=by, size=MEASURES[by](config), wanted=MEASURES[by](baseline))


def _matched(study: Study, arm: Arm, given: Match, baseline: TransformerConfig) -> Match:
    """The first way of resizing an arm that makes it equal to the baseline."""
    found, reason = [given], ""
    for way in _ways(arm, given.config, baseline):
        try:
            found.append(_resized(given.config, baseline, given.by, way))
        except ConfigError as error:
            reason = str(error)
        if abs(found[-1].difference) <= CLOSE:
            return found[-1]
    if reason and len(found) == 1:
        raise ConfigError(
            f"arm {arm.name!r} cannot be made as large as the baseline {study.baseline!r}: {reason}; or give --match "
            "nothing"
        )
    nearest = min(found, key=lambda match: abs(match.difference))
    raise ConfigError(
        f"arm {arm.name!r} has {nearest.size:,} {nearest.by} at its nearest and the baseline {study.baseline!r} "
        f"{nearest.wanted:,}, a difference of {nearest.difference:+.2%} where {CLOSE:.1%} counts as equal; give "
        '--match nothing (match = "nothing" in a file), or another d_model, d_ff or feedforward.multiple'
    )


def _ways(arm: Arm, config: TransformerConfig, baseline: TransformerConfig) -> Iterator[tuple[Free, ...]]:
    """What may be resized, one after the other, of what an arm does not set itself; the best way first."""
    if "feedforward.d_ff" in arm.choices:
        if "d_model" not in arm.choices:
            yield ("d_model",)
        return
    if config.depth == baseline.depth or "d_model" in arm.choices:
        yield ("d_ff",)
    if "d_model" not in arm.choices:
        yield ("width", "d_ff")


def _resized(config: TransformerConfig, baseline: TransformerConfig, by: Measure, way: tuple[Free, ...]) -> Match:
    if way[0] == "width" and config.depth != baseline.depth:
        # in the proportion that makes the arm equal at the baseline's depth
        level = match_parameters(replace(config, depth=baseline.depth), like=baseline, by=by).config
        config = replace(level, depth=config.depth)
    for free in way[:-1]:
        config = match_parameters(config, like=baseline, by=by, free=free).config
    return match_parameters(config, like=baseline, by=by, free=way[-1])
