"""What fields of a config may hold, and messages that say what to type instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...catalogue import near_miss
from ...errors import ConfigError


def at_least(path: str, value: float | None, least: float) -> None:
    """Raises ConfigError for a value below the least one; None is none."""
    if value is not None and value < least:
        raise ConfigError(f"{path} is {value} and must be at least {least:g}")


def above_zero(path: str, value: float | None, example: float) -> None:
    """Raises ConfigError for a value that is not a finite number above 0; None is none."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{path} is {value} and must be above 0 and finite, for instance {example:g}")


def one_of(path: str, value: str, known: Iterable[str]) -> None:
    """Raises ConfigError for a word that is not known."""
    known = tuple(known)
    if value not in known:
        raise ConfigError(f"{path} is {value!r}; {near_miss(value, known)}")


def divides(path: str, value: int, whole_path: str, whole: int) -> None:
    """Raises ConfigError, naming the nearest divisor, where a value does not divide a whole."""
    if whole % value:
        nearest = _nearest_divisor(value, whole)
        raise ConfigError(
            f"{whole_path} is {whole} and {path} is {value}, which does not divide it; "
            f"the nearest that does is {path}={nearest}"
        )


def _nearest_divisor(value: int, whole: int) -> int:
    """The divisor of a whole that is nearest to a value, the smaller of two; found from the value outwards."""
    if value > whole:
        return whole
    return next(
        count for step in range(value) for count in (value - step, value + step) if count >= 1 and whole % count == 0
    )


def of_its_types(config: Any, prefix: str = "") -> None:
    """Raises ConfigError for a field of a config that holds a value of another type than it is written with."""
    for name, expected in types_of(type(config)).items():
        _check(expected, getattr(config, name), prefix + name)


def read(cls: Any, data: Mapping[str, Any], prefix: str = "") -> Any:
    """A config from nested plain data; raises ConfigError for a field that is not known or of the wrong type."""
    types = types_of(cls)
    values = {}
    for name, value in data.items():
        if name not in types:
            raise ConfigError(f"the config has a field {prefix}{name}; {near_miss(name, types)}")
        part = part_of(types[name])
        is_part = part is not None and isinstance(value, Mapping)
        values[name] = read(part, value, f"{prefix}{name}.") if is_part else value
        _check(types[name], values[name], prefix + name)
    return cls(**values)


@cache
def types_of(cls: Any) -> dict[str, Any]:
    """The types of a config's fields, by name and in their order."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def part_of(expected: Any) -> Any:
    """The config that a field holds, where it holds one."""
    return next((choice for choice in alternatives(expected) if dataclasses.is_dataclass(choice)), None)


def _check(expected: Any, value: Any, path: str) -> None:
    choices, part = alternatives(expected), part_of(expected)
    if part is not None and not isinstance(value, part) and not (value is None and NoneType in choices):
        raise ConfigError(f"{path} is {value!r} and must hold the fields of {part.__name__}")
    allowed = {choice for choice in choices if isinstance(choice, type)}
    allowed |= {str for choice in choices if get_origin(choice) is Literal}
    allowed |= {int} if float in allowed else set()
    if part is None and type(value) not in allowed:
        raise ConfigError(f"{path} is {value!r} and must be {_written(choices)}")


def alternatives(expected: Any) -> tuple[Any, ...]:
    """The types that a field may hold, one by one."""
    if get_origin(expected) in (Union, UnionType):
        return tuple(choice for option in get_args(expected) for choice in alternatives(option))
    return (expected,)


def _written(choices: Iterable[Any]) -> str:
    words = []
    for choice in choices:
        if get_origin(choice) is Literal:
            words += [repr(word) for word in get_args(choice)]
        else:
            words.append("None" if choice is NoneType else choice.__name__)
    return " or ".join(words)
