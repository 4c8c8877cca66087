"""The dotted axes of a TransformerConfig: what each may hold, and values by axis as nested data and back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any

from ._checks import alternatives, part_of, types_of
from .transformer import TransformerConfig


@cache
def axis_types() -> dict[str, tuple[Any, ...]]:
    """The types that each axis may hold, Literals of words among them, by its dotted name and in the fields' order."""
    return dict(_axes(TransformerConfig, ""))


def _axes(config: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, expected in types_of(config).items():
        part = part_of(expected)
        if part is None:
            yield prefix + name, alternatives(expected)
        else:
            if NoneType in alternatives(expected):
                yield prefix + name, (NoneType,)
            yield from _axes(part, f"{prefix}{name}.")


def nested(axes: Mapping[str, Any], within: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Values by dotted axis as the nested data that TransformerConfig.from_dict reads.

    within: nested data that the values are set in; it stays as it is.
    """
    data: dict[str, Any] = copy.deepcopy(dict(within or {}))
    for axis, value in axes.items():
        *path, name = axis.split(".")
        part = data
        for step in path:
            if not isinstance(part.get(step), dict):
                part[step] = {}
            part = part[step]
        part[name] = value
    return data


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested data as dotted axes and their values."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
