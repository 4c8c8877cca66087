"""Variants of equal size: the hidden size, or the width, at which two configs cost the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

from ..catalogue import near_miss
from ..errors import ConfigError
from .config import TransformerConfig

Measure = Literal["parameters", "flops"]
Free = Literal["d_ff", "d_model", "width"]

MEASURES: dict[str, Callable[[TransformerConfig], int]] = {
    "parameters": lambda config: config.parameter_count(),
    "flops": lambda config: config.flop_count(training=True),
}
"""What configs can have equal: all parameters, or the operations of a token in training over the whole context."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A config made equal to another one. difference: (its size − the other's) / the other's."""

    config: TransformerConfig
    by: Measure
    size: int
    wanted: int

    @property
    def difference(self) -> float:
        return (self.size - self.wanted) / self.wanted


def match_parameters(
    config: TransformerConfig, *, like: TransformerConfig, by: Measure = "parameters", free: Free = "d_ff"
) -> Match:
    """The config with the d_ff, the d_model or both at which it is nearest in size to another one.

    by: "parameters", all of them, or "flops", of a token in training over the whole context. free: what may change;
    d_ff stays a multiple of feedforward.multiple; d_model goes in steps that keep head_dim whole and even, and so the
    channels that rotary positions turn, and a d_ff that is given stays as it is; "width" is d_model with d_ff in
    proportion.
    Raises ConfigError where even the smallest size is more than a tenth too large: what is fixed costs too much.
    """
    if by not in MEASURES:
        raise ConfigError(f"by is {by!r}; {near_miss(by, MEASURES)}")
    if free not in get_args(Free):
        raise ConfigError(f"free is {free!r}; {near_miss(free, get_args(Free))}")
    measure = MEASURES[by]
    wanted = measure(like)
    resized = _RESIZED[free]
    step = config.feedforward.multiple if free == "d_ff" else _step(config)
    best = _nearest(lambda count: measure(resized(config, count * step)), wanted)
    found = resized(config, best * step)
    if best == 1 and measure(found) > 1.1 * wanted:
        raise ConfigError(
            f"with {free}={step} the config has {measure(found):,} {by} and the other one {wanted:,}; "
            "make what is fixed smaller: depth, d_model or vocabulary"
        )
    return Match(config=found, by=by, size=measure(found), wanted=wanted)


def _nearest(size_at: Callable[[int], int], wanted: int) -> int:
    """The count from 1 on whose size, which grows with it, is nearest to the wanted one."""
    high = 1
    while size_at(high) < wanted:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size_at(middle) < wanted else (low, middle)
    return min((low, high), key=lambda count: abs(size_at(count) - wanted))


def _with_hidden_size(config: TransformerConfig, size: int) -> TransformerConfig:
    return replace(config, feedforward=replace(config.feedforward, d_ff=size))


def _with_d_model(config: TransformerConfig, d_model: int) -> TransformerConfig:
    return replace(config, d_model=d_model)


def _with_width(config: TransformerConfig, width: int) -> TransformerConfig:
    multiple = config.feedforward.multiple
    d_ff = multiple * max(1, round(config.d_ff * width / config.d_model / multiple))
    return _with_d_model(_with_hidden_size(config, d_ff), width)


_RESIZED: dict[str, Callable[[TransformerConfig, int], TransformerConfig]] = {
    "d_ff": _with_hidden_size,
    "d_model": _with_d_model,
    "width": _with_width,
}


def _step(config: TransformerConfig) -> int:
    if config.attention.head_dim is not None:
        return 1
    rotary = config.position.kind == "rotary"
    pairs = Fraction(config.position.share).limit_denominator(1000).denominator if rotary else 1
    return 2 * pairs * config.attention.heads
