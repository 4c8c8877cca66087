"""What fields of a config may hold, and messages that say what to type instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
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
        divisors = (count for count in range(1, whole + 1) if whole % count == 0)
        nearest = min(divisors, key=lambda count: abs(count - value))
        raise ConfigError(
            f"{whole_path} is {whole} and {path} is {value}, which does not divide it; "
            f"the nearest that does is {path}={nearest}"
        )


def read(cls: Any, data: Mapping[str, Any], prefix: str = "") -> Any:
    """A config from nested plain data; raises ConfigError for a field that is not known or of the wrong type."""
    known = {item.name for item in dataclasses.fields(cls)}
    types = get_type_hints(cls)
    values = {}
    for name, value in data.items():
        if name not in known:
            raise ConfigError(f"the config has a field {prefix}{name}; {near_miss(name, known)}")
        values[name] = _value(types[name], value, prefix + name)
    return cls(**values)


def _value(expected: Any, value: Any, path: str) -> Any:
    choices = _choices(expected)
    part: Any = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
    if part is not None and isinstance(value, Mapping):
        return read(part, value, path + ".")
    if part is not None and not (value is None and NoneType in choices):
        raise ConfigError(f"{path} is {value!r} and must hold the fields of {part.__name__}")
    allowed = {choice for choice in choices if isinstance(choice, type)}
    allowed |= {str for choice in choices if get_origin(choice) is Literal}
    allowed |= {int} if float in allowed else set()
    if type(value) not in allowed:
        raise ConfigError(f"{path} is {value!r} and must be {_written(choices)}")
    return value


def _choices(expected: Any) -> tuple[Any, ...]:
    if get_origin(expected) in (Union, UnionType):
        return tuple(choice for option in get_args(expected) for choice in _choices(option))
    return (expected,)


def _written(choices: Iterable[Any]) -> str:
    words = []
    for choice in choices:
        if get_origin(choice) is Literal:
            words += [repr(word) for word in get_args(choice)]
        else:
            words.append("None" if choice is NoneType else choice.__name__)
    return " or ".join(words)
