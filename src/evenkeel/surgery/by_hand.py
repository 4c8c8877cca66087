"""Attention by hand: softmax(queries·keysᵀ·scale + mask)·values, followed back from its last product."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import UsageError
from ..tracing.functions import CASTS, MATMULS, PRODUCTS, VIEWS
from .rewriting import Action
from .scores import CapReplaced, FactorsNormed, NumberScaled, ProductScaled, ScoresCapped, factors
from .tape import Entry, Tape

_QUOTIENTS = ("div", "divide", "true_divide")
_SUMS = ("add", "sub", "subtract", "where", "cat")
_HIDING = ("masked_fill",)
_PLAIN = ("matmul", "bmm", "baddbmm")


@dataclass(frozen=True)
class Number:
    """A number that a call multiplies by (or divides by), and which argument it is."""

    position: int
    factor: float


def number_in(entry: Entry) -> Number | None:
    """The number of a product or quotient of a tensor with a number; None for every other call."""
    if entry.name not in (*PRODUCTS, *_QUOTIENTS) or len(entry.args) < 2:
        return None
    for position in (1, 0) if entry.name in PRODUCTS else (1,):
        value = _value(entry.args[position])
        if value is not None and isinstance(entry.args[1 - position], Tensor):
            return Number(position, value if entry.name in PRODUCTS else 1 / value)
    return None


def _value(item: Any) -> float | None:
    if isinstance(item, int | float) and not isinstance(item, bool):
        return float(item)
    if isinstance(item, Tensor) and item.numel() == 1 and not isinstance(item, nn.Parameter):
        return float(item)
    return None


def scaled_before(tape: Tape, tensor: Tensor, entry: Entry) -> float:
    """The numbers that one tensor was multiplied by before a call, as far as it can be followed back."""
    factor = 1.0
    while (maker := tape.maker(tensor, entry)) is not None:
        number = number_in(maker)
        if number is not None:
            factor *= number.factor
            tensor = maker.args[1 - number.position]
        elif maker.name in CASTS | VIEWS and isinstance(maker.args[0], Tensor):
            tensor = maker.args[0]
        else:
            break
        entry = maker
    return factor


@dataclass(frozen=True)
class Step:
    """One call between queries·keysᵀ and the softmax, and what it does to the scores."""

    entry: Entry
    does: Literal["multiply", "bound", "mask"]
    number: Number | None = None


@dataclass
class ByHand:
    """The calls from queries·keysᵀ (`product`) to the softmax, the innermost first."""

    product: Entry
    before: float
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, tape: Tape, values: Entry) -> ByHand:
        """Follow the product with the values back; raises UsageError where the scores cannot be told."""
        softmax = softmax_before(tape, values)
        product, steps = _followed(tape, softmax.args[0], softmax)
        first, second = factors(product.args, product.kwargs)[-2:]
        before = scaled_before(tape, first, product) * scaled_before(tape, second, product)
        return cls(product, before, steps)

    @property
    def head_dim(self) -> int:
        """How many channels are summed over."""
        return factors(self.product.args, self.product.kwargs)[-2].shape[-1]

    @property
    def scale(self) -> float:
        """All numbers that q·k is multiplied by; a softcap c·tanh(x/c) multiplies by c/c."""
        own = self.product.kwargs.get("alpha", 1) if self.product.name == "baddbmm" else 1
        return self.before * own * math.prod(step.number.factor for step in self.steps if step.number is not None)

    @property
    def softcap(self) -> float | None:
        """The number behind the tanh, where there is one."""
        bound = self._bound
        if bound is None:
            return None
        behind = self.steps[bound + 1 :]
        return math.prod(step.number.factor for step in behind if step.number is not None)

    @property
    def _bound(self) -> int | None:
        return next((index for index, step in enumerate(self.steps) if step.does == "bound"), None)

    def scaled(self, factor: float) -> list[tuple[Entry, Action]]:
        first = self.steps[0] if self.steps else None
        if first is None or first.number is None or self.product.name == "baddbmm":
            return [(self.product, ProductScaled(factor))]
        of_number = factor if first.entry.name in PRODUCTS else 1 / factor
        return [(first.entry, NumberScaled(first.number.position, of_number))]

    def capped(self, softcap: float | None) -> list[tuple[Entry, Action]]:
        mask = next((index for index, step in enumerate(self.steps) if step.does == "mask"), len(self.steps))
        if any(step.does != "mask" for step in self.steps[mask:]):
            raise UsageError("its scores are scaled after the mask was added, so no softcap can be put between them")
        if self._bound is not None and self.softcap is not None:
            return [(self.steps[self._bound].entry, CapReplaced(self.softcap, softcap))]
        last = self.steps[mask - 1].entry if mask else self.product
        return [] if softcap is None else [(last, ScoresCapped(softcap))]

    def normed(self) -> list[tuple[Entry, Action]]:
        return [(self.product, FactorsNormed(self.before))]


def softmax_before(tape: Tape, values: Entry) -> Entry:
    """The softmax whose weights a product puts on values."""
    for tensor in (item for item in _flat(values.args) if isinstance(item, Tensor)):
        entry = values
        while (maker := tape.maker(tensor, entry)) is not None:
            if maker.name == "softmax":
                return maker
            passes = (*CASTS, *VIEWS, *_HIDING, *PRODUCTS, "clamp", "nan_to_num")
            if maker.name not in passes or not isinstance(maker.args[0], Tensor):
                break
            tensor, entry = maker.args[0], maker
    raise UsageError("its softmax cannot be told from the product with its values")


def _flat(args: tuple[Any, ...]) -> list[Any]:
    return [part for item in args for part in (item if isinstance(item, tuple | list) else (item,))]


def _followed(tape: Tape, scores: Tensor, user: Entry) -> tuple[Entry, list[Step]]:
    found = _leads(tape, scores, user)
    if not found:
        raise UsageError("its scores cannot be followed back to a product of queries and keys")
    if len(found) > 1:
        raise UsageError(f"its scores are a sum of {len(found)} products, and which one has the scale is not known")
    product, steps = found[0]
    if product.name not in _PLAIN:
        raise UsageError(f"its queries and keys meet in a call of {product.name}, where they cannot be told apart")
    return product, steps


def _leads(tape: Tape, tensor: Tensor, user: Entry) -> list[tuple[Entry, list[Step]]]:
    """Every product of two tensors that the scores are made of, with the calls from there on."""
    maker = tape.maker(tensor, user)
    if maker is None:
        return []
    tensors = [item for item in (*_flat(maker.args), *maker.kwargs.values()) if isinstance(item, Tensor)]
    if maker.name in MATMULS:
        return [] if any(isinstance(item, nn.Parameter) for item in tensors) else [(maker, [])]
    number = number_in(maker)
    if number is not None:
        step = Step(maker, "multiply", number)
        tensors = [maker.args[1 - number.position]]
    elif maker.name == "tanh":
        step = Step(maker, "bound")
    elif maker.name in (*_SUMS, *_HIDING, *PRODUCTS):
        step = Step(maker, "mask")
        tensors = tensors[:1] if maker.name in _HIDING else tensors
    elif maker.name in CASTS | VIEWS and tensors:
        return _leads(tape, tensors[0], maker)
    else:
        return []
    return [(product, [*steps, step]) for item in tensors for product, steps in _leads(tape, item, maker)]
