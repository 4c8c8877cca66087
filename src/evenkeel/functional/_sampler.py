"""How tokens are chosen: the options of sampling, checked once, with a number for all rows or one for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

Order = Literal["transformers", "llama.cpp"]
PerRow = float | Tensor
"""A number for all rows, or a tensor with one for each."""


class _Range(NamedTuple):
    low: float
    high: float
    neutral: float
    """The number that changes nothing."""


OPTIONS = {
    "temperature": _Range(0, 1e30, 1),
    "top_k": _Range(0, math.inf, 0),
    "top_p": _Range(0, 1, 1),
    "min_p": _Range(0, 1, 0),
    "typical_p": _Range(0, 1, 1),
    "top_n_sigma": _Range(0, math.inf, math.inf),
    "epsilon": _Range(0, 1, 0),
    "repetition_penalty": _Range(1e-30, 1e30, 1),
    "presence_penalty": _Range(-1e30, 1e30, 0),
    "frequency_penalty": _Range(-1e30, 1e30, 0),
}
"""Every number that a Sampler has, in the order in which tables hold them."""

PENALTIES = tuple(name for name in OPTIONS if name.endswith("_penalty"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """How tokens are chosen. Every number may also be a tensor with one for each row of logits.

    temperature: 0 takes the most probable token. top_k: the k most probable tokens; 0 for all. top_p: the shortest
    prefix of the most probable tokens whose mass reaches p of the whole. min_p: tokens of at least this share of the
    largest probability. typical_p: the shortest prefix, by how far −log p lies from the entropy, whose mass reaches p.
    top_n_sigma: tokens whose logit is within n standard deviations of the largest. epsilon: tokens of at least this
    probability. repetition_penalty: r divides the positive and multiplies the negative logits of previous tokens.
    presence_penalty, frequency_penalty: subtracted from logits of previous tokens, once and per occurrence.
    logit_bias: added to the logits of tokens. order: "transformers" has the temperature first, "llama.cpp" last.
    Every filter keeps at least one token, and looks at the distribution that the one before it has left.
    Raises UsageError for numbers out of range, naming the range. Tensors are read when they are used.
    """

    temperature: PerRow = 1.0
    top_k: int | Tensor = 0
    top_p: PerRow = 1.0
    min_p: PerRow = 0.0
    typical_p: PerRow = 1.0
    top_n_sigma: PerRow = math.inf
    epsilon: PerRow = 0.0
    repetition_penalty: PerRow = 1.0
    presence_penalty: PerRow = 0.0
    frequency_penalty: PerRow = 0.0
    logit_bias: Mapping[int, float] | None = None
    order: Order = "transformers"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"order is {self.order!r}; it is one of {', '.join(map(repr, get_args(Order)))}")
        for name, (low, high, _) in OPTIONS.items():
            value = getattr(self, name)
            inside = (value >= low) & (value <= high)
            if not (bool(inside.all()) if isinstance(inside, Tensor) else inside):
                raise UsageError(f"{name} is {value}; it must lie from {low:g} to {high:g}")
        if not isinstance(self.top_k, Tensor) and self.top_k != math.inf and self.top_k != int(self.top_k):
            raise UsageError(f"top_k is {self.top_k}; give a whole number")
        if wrong := [token for token in self.logit_bias or {} if not isinstance(token, int | np.integer)]:
            raise UsageError(f"logit_bias names {wrong[0]!r}; give token numbers, as int")

    @cached_property
    def charges(self) -> bool:
        """Whether tokens are charged for having come before."""
        return any(
            isinstance(value, Tensor) or value != OPTIONS[name].neutral
            for name, value in ((name, getattr(self, name)) for name in PENALTIES)
        )

    @cached_property
    def bias(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that logit_bias names, int64, and what is added to each, float64."""
        items = (self.logit_bias or {}).items()
        return np.array([item[0] for item in items], np.int64), np.array([item[1] for item in items], np.float64)

    @cached_property
    def _numbers(self) -> np.ndarray | None:
        """The table of options where each is one number."""
        values = [getattr(self, name) for name in OPTIONS]
        return None if any(isinstance(value, Tensor) for value in values) else np.array([values], np.float64)

    def table(self, shape: torch.Size) -> np.ndarray:
        """Numbers in float64, (1, options) or (rows, options) for rows of a shape, in the order of OPTIONS.

        Raises UsageError for a tensor of another shape than that of the rows.
        """
        if self._numbers is not None:
            return self._numbers
        columns = [_column(name, getattr(self, name), shape) for name in OPTIONS]
        return torch.stack(columns, dim=1).numpy()


def chosen(sampler: Sampler | None, options: dict[str, Any]) -> Sampler:
    """A sampler with some of its fields replaced; raises UsageError for a field that there is not."""
    if not options:
        return sampler or Sampler()
    known = {field.name: getattr(sampler, field.name, field.default) for field in fields(Sampler)}
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return Sampler(**{**known, **options})


def _column(name: str, value: PerRow | int, shape: torch.Size) -> Tensor:
    """(rows,) in float64, on the CPU."""
    numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu")  # a float as it is
    if numbers.dim() and numbers.shape != shape:
        raise UsageError(
            f"{name} has shape {tuple(numbers.shape)} and the rows of logits {tuple(shape)}; give a number, or one for "
            f"each row: {tuple(shape)}"
        )
    return numbers.expand(shape).reshape(-1)
