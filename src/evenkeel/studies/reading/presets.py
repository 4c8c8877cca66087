"""Feed-forward layers by one name: what the axis `feedforward` of a study stands for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...catalogue import near_miss
from ...errors import ConfigError
from ...functional import ACTIVATIONS

PRESET_AXIS = "feedforward"
"""The axis whose values are names of presets."""

Preset = Mapping[str, str | bool]
"""Values by dotted axis."""


def _preset(activation: str, gated: bool) -> Preset:
    return MappingProxyType({"feedforward.activation": activation, "feedforward.gated": gated})


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "relu": _preset("relu", False),
        "gelu": _preset("gelu", False),
        "silu": _preset("silu", False),
        "swish": _preset("silu", False),
        "sigmoid": _preset("sigmoid", False),
        "tanh": _preset("tanh", False),
        "relu2": _preset("relu2", False),
        "glu": _preset("sigmoid", True),
        "bilinear": _preset("identity", True),
        "reglu": _preset("relu", True),
        "geglu": _preset("gelu", True),
        "geglu_tanh": _preset("gelu_tanh", True),
        "swiglu": _preset("silu", True),
    }
)
"""Plain ones of two matrices, gated ones of three. Source: Shazeer 2020; relu2: So et al. 2021."""


def plain(activation: str) -> Preset:
    """The layer of two matrices with this activation."""
    return _preset(activation, False)


def preset(name: str) -> Preset:
    """What a name stands for; the name of an activation that is no preset stands for the plain layer with it."""
    if name in PRESETS:
        return PRESETS[name]
    if name in ACTIVATIONS:
        return plain(name)
    raise ConfigError(f"{PRESET_AXIS} is {name!r}; {near_miss(name, dict.fromkeys((*PRESETS, *ACTIVATIONS)))}")
