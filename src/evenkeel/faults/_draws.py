"""What a fault draws: one of some things, some of them, a size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch

Thing = TypeVar("Thing")


def some(items: Iterable[Thing], generator: torch.Generator) -> list[Thing]:
    """One or more of some things, drawn, in their order."""
    items = list(items)
    count = int(torch.randint(1, len(items) + 1, (), generator=generator))
    chosen = torch.randperm(len(items), generator=generator)[:count].sort().values
    return [items[index] for index in chosen.tolist()]


def one(items: Iterable[Thing], generator: torch.Generator) -> Thing:
    """One of some things, drawn."""
    items = list(items)
    return items[int(torch.randint(len(items), (), generator=generator))]


def between(low: float, high: float, generator: torch.Generator) -> float:
    """A number drawn log-uniformly between two positive ones."""
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
