"""One value of one axis, as a user writes it: typed by its field, presets and own activations spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ...catalogue import near_miss
from ...errors import ConfigError
from ...nn.config.axes import axis_types
from ...schema import clean_name
from .own_activations import OwnActivation, is_own
from .presets import PRESET_AXIS, plain, preset

_ACTIVATION = "feedforward.activation"
_BOOLEANS = {"true": True, "false": False}
_KINDS = {int: "a whole number", float: "a number"}


def choices_of(axis: str, value: Any, folder: Path = Path()) -> dict[str, Any]:
    """The dotted axes that one value of an axis sets.

    axis: a field of TransformerConfig, or `feedforward` for a preset. value: a word as on a command line, or a value
    of the field's own type, which a config checks. folder: what paths of own activations are relative to.
    Raises ConfigError for an axis that there is not, and for a word that no such field holds.
    """
    if axis == PRESET_AXIS:
        if not isinstance(value, str):
            raise ConfigError(f"{axis} is {value!r}; give the name of a preset, for instance 'swiglu'")
        return dict(plain(_pinned(value, folder)) if is_own(value) else preset(value))
    if axis not in axis_types():
        raise ConfigError(f"there is no axis {clean_name(axis)!r}; {_nearest_axis(axis)}")
    if axis == _ACTIVATION and is_own(value):
        return {axis: _pinned(value, folder)}
    return {axis: _typed(axis, value) if isinstance(value, str) else value}


def labels(axis: str, values: Sequence[Any], others: Sequence[str]) -> list[str]:
    """What the values of an axis are called in names of arms.

    Activations and presets go by their own names, other values by the axis too, as short as it differs from the others.
    """
    if axis in (PRESET_AXIS, _ACTIVATION):
        short = [OwnActivation.parse(value).function if is_own(value) else str(value) for value in values]
        return [name if short.count(name) == 1 else str(value) for name, value in zip(short, values, strict=True)]
    last = axis.rpartition(".")[2]
    shared = any(other.rpartition(".")[2] == last for other in others if other != axis)
    return [f"{axis if shared else last}={_shown(value)}" for value in values]


def _pinned(reference: str, folder: Path) -> str:
    return str(OwnActivation.parse(reference).within(folder).pinned())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else clean_name(str(value))


def _typed(axis: str, word: str) -> Any:
    """The value that a word stands for in an axis's field."""
    types = axis_types()[axis]
    words = [known for kind in types if get_origin(kind) is Literal for known in get_args(kind)]
    if word in words or str in types:
        return word
    named = {**({"none": None} if NoneType in types else {}), **(_BOOLEANS if bool in types else {})}
    if word.lower() in named:
        return named[word.lower()]
    kinds = [kind for kind in _KINDS if kind in types]
    for kind in kinds:
        try:
            return kind(word)
        except ValueError:
            continue
    possible = ", ".join([*words, *named, *(_KINDS[kind] for kind in kinds)])
    raise ConfigError(f"{axis} is {clean_name(word)!r}; {near_miss(word, (*words, *named), f'give {possible}')}")


def _nearest_axis(axis: str) -> str:
    """What to type instead of an axis that there is not."""
    known = (PRESET_AXIS, *axis_types())
    part, _, _ = axis.partition(".")
    last = axis.rpartition(".")[2]
    alike = [name for name in known if get_close_matches(last, [name.rpartition(".")[2]])]
    same = [name for name in alike if name.endswith(f".{last}")]
    if same and part == last:  # the part is missing
        return f"did you mean {' or '.join(map(repr, same))}?"
    inside = [name for name in known if name.startswith(f"{part}.")]
    every = dict.fromkeys(name.partition(".")[0] for name in known)
    return near_miss(axis, alike, f"known: {', '.join(inside or every)}")
