"""Rotary positions: rope_parameters, or rope_theta and rope_scaling of older files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..config import TransformerConfig
from .parts import Axes, Settings, checked, refusal, shown

_BASE = 10_000.0


@dataclass(frozen=True)
class Rope:
    """Base, scaling and share of rotary positions.

    share: what partial_rotary_factor is where it is not given; None for a family that turns every channel.
    """

    share: float | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        return ("rope_parameters",) if self.share is None else ("rope_parameters", "partial_rotary_factor")

    @property
    def axes(self) -> tuple[str, ...]:
        scaled = ("position.kind", "position.base", "position.scaling")
        return scaled if self.share is None else (*scaled, "position.share")

    def read(self, settings: Settings) -> Axes:
        name, rope = _parameters(settings)
        return {
            "position.kind": "rotary",
            "position.base": checked("rope_theta", _first("rope_theta", rope, settings, _BASE), float),
            "position.share": self._share(rope, settings),
            "position.scaling": _scaling(name, rope, settings),
        }

    def _share(self, rope: Settings, settings: Settings) -> float:
        name = "partial_rotary_factor"
        usual = 1.0 if self.share is None else self.share
        share = checked(name, _first(name, rope, settings, usual), float)
        if self.share is None and share != 1:
            raise refusal(name, share, "this family turns every channel; remove the field")
        return share

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        position, scaling = config.position, config.position.scaling
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": position.base}
        if scaling is not None:
            rope |= {"rope_type": scaling.kind, "factor": float(scaling.factor)}
        if scaling is not None and scaling.kind == "llama3":
            rope["low_freq_factor"] = float(scaling.low_frequency)
            rope["high_freq_factor"] = float(scaling.high_frequency)
            rope["original_max_position_embeddings"] = scaling.context
        if self.share is not None:
            rope["partial_rotary_factor"] = position.share
        return {"rope_parameters": rope}


def _parameters(settings: Settings) -> tuple[str, Settings]:
    """The settings of rotary positions, and the name of the field that they stand in."""
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(name) or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"config.json has {shown(name, rope)}, which must be an object; mend the value")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise refusal(name, dict(rope), "the angles differ from layer to layer; give all layers the same")
    return name, rope


def _scaling(name: str, rope: Settings, settings: Settings) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return {"kind": kind, "factor": _number(name, rope, "factor")}
    if kind == "llama3":
        original = "original_max_position_embeddings"
        context = _first(original, settings, rope, settings.get("max_position_embeddings"))
        return {
            "kind": kind,
            "factor": _number(name, rope, "factor"),
            "low_frequency": _number(name, rope, "low_freq_factor"),
            "high_frequency": _number(name, rope, "high_freq_factor"),
            "context": checked(original, context, int),
        }
    raise refusal(
        f"{name}.rope_type",
        kind,
        "known: default, linear, llama3; where sequences stay as short as those trained on, default may be right",
    )


def _first(name: str, first: Settings, second: Settings, usual: Any) -> Any:
    """A value that stands among the settings of rotary positions in some files, outside in others; null is none."""
    return next((place[name] for place in (first, second) if place.get(name) is not None), usual)


def _number(name: str, rope: Settings, key: str) -> float:
    if key not in rope:
        raise ConfigError(f"config.json has {name} without {key}; copy the file anew, or add it")
    return checked(f"{name}.{key}", rope[key], float)
