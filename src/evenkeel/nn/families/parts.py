"""What maps fields of a Hugging Face config.json to axes of a TransformerConfig, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import ConfigError
from ...schema import clean_name
from ..config import TransformerConfig

Settings = Mapping[str, Any]
"""A config.json."""

Axes = dict[str, Any]
"""Values by dotted axis of a TransformerConfig."""


class Part(Protocol):
    """One choice of a family: fields of config.json on one side, axes on the other.

    read raises ConfigError for a field that has no axis. write may say less than the config does: what it leaves out is
    found by reading it again. fields, axes: the names on both sides.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def axes(self) -> tuple[str, ...]: ...

    def read(self, settings: Settings) -> Axes: ...

    def write(self, config: TransformerConfig) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Field:
    """A field that holds the value of its axes.

    default: what a field that is not there means; without one it must be there. null: whether null is meant, and the
    axes are then None.
    """

    name: str
    axes: tuple[str, ...]
    kind: type = int
    default: Any = ...
    null: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, settings: Settings) -> Axes:
        value = settings.get(self.name, self.default)
        if value is None and not self.null:
            value = self.default
        if value is ...:
            raise ConfigError(f"config.json has no {self.name}; copy the file anew, or add the field")
        if value is not None:
            value = checked(self.name, value, self.kind)
        return dict.fromkeys(self.axes, value)

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        return {self.name: value_at(config, self.axes[0])}


@dataclass(frozen=True)
class Choice:
    """A field whose values have names of their own. values: theirs to ours; the first of several is written."""

    name: str
    axis: str
    values: Mapping[Any, Any]
    default: Any = ...

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def read(self, settings: Settings) -> Axes:
        value = settings.get(self.name, self.default)
        if value is ...:
            raise ConfigError(f"config.json has no {self.name}; copy the file anew, or add the field")
        if isinstance(value, list | dict) or value not in self.values:
            raise refusal(self.name, value, f"known: {', '.join(map(str, self.values))}")
        return {self.axis: self.values[value]}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        wanted = value_at(config, self.axis)
        found = [theirs for theirs, ours in self.values.items() if ours == wanted]
        if not found:
            raise ConfigError(f"{self.axis} is {wanted!r}, and {self.name} has no word for it")
        return {self.name: found[0]}


@dataclass(frozen=True)
class Fixed:
    """An axis on which the family has one value, and no field."""

    axis: str
    value: Any

    @property
    def fields(self) -> tuple[str, ...]:
        return ()

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def read(self, settings: Settings) -> Axes:
        return {self.axis: self.value}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        return {}


class Condition:
    """A part that decides no axis: it looks at one field."""

    name: str

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def axes(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class Only(Condition):
    """A field that must have one value, which it also has where it is not there, or null; others are refused.

    why: what the others would be.
    """

    name: str
    value: Any
    why: str

    def read(self, settings: Settings) -> Axes:
        value = settings.get(self.name)
        if value is not None and value != self.value:
            raise refusal(self.name, value, f"{self.why}; only {self.value!r} can be mapped")
        return {}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        return {self.name: self.value}


@dataclass(frozen=True)
class WholeHeads(Condition):
    """Whether head_dim is given or not, transformers wants the number of heads to divide the width."""

    name: str = "num_attention_heads"
    width: str = "hidden_size"

    def read(self, settings: Settings) -> Axes:
        heads, width = (
            checked(self.name, settings.get(self.name), int),
            checked(self.width, settings.get(self.width), int),
        )
        if heads < 1 or width % heads:
            raise ConfigError(
                f"config.json has {self.width} {width}, which {self.name} {heads} does not divide; mend one of them"
            )
        return {}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        return {}


def checked(name: str, value: Any, kind: type) -> Any:
    """A value of this kind, whole numbers among the floats; raises ConfigError for any other."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigError(
            f"config.json has {shown(name, value)}, which must be of type {kind.__name__}; mend the value"
        )
    return value


def refusal(name: str, value: Any, remedy: str) -> ConfigError:
    """The error for a field whose value no TransformerConfig has."""
    return ConfigError(f"config.json has {shown(name, value)}, which no TransformerConfig has: {remedy}")


def shown(name: str, value: Any) -> str:
    """A field as messages show it."""
    return f"{name} {clean_name(repr(value))}"


def value_at(config: TransformerConfig, axis: str) -> Any:
    """The value on a dotted axis."""
    value: Any = config
    for name in axis.split("."):
        value = getattr(value, name)
    return value
