"""Module frames: which module of the watched model is running, under which path, and what was found inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import signature
from typing import Any

from torch import Tensor, nn

from .provenance import tensors_in

PADDING_ARGUMENTS = {"attention_mask": False, "key_padding_mask": True, "src_key_padding_mask": True}
"""Arguments that tell padding, and the value that marks it."""


@dataclass(eq=False)
class Frame:
    """One running call of a module."""

    module: nn.Module
    path: str
    inputs: tuple[Any, ...]
    arguments: Mapping[str, Any]
    pointwise: bool = False
    before: Tensor | None = None
    pending: list[Any] = field(default_factory=list)
    linears: int = 0  # linear maps inside so far
    hidden: int = 0  # how many of them came before a tensor of unseen origin
    found: bool = False  # whether a nonlinear place was found inside
    parts: int = 0  # modules called inside so far
    mark: int = 0  # of a repeated layer: the number by which its input is followed

    @cached_property
    def has_parameters(self) -> bool:
        """Whether the module or one inside it has any."""
        return next(self.module.parameters(), None) is not None

    @cached_property
    def given(self) -> Tensor | None:
        """The first floating-point tensor that the call was given: of a block, its residual stream."""
        return next(
            (item for item in tensors_in([self.inputs, dict(self.arguments)]) if item.is_floating_point()), None
        )

    def padding(self, batch: int, length: int) -> tuple[bool, Tensor | None]:
        """Whether this call was told about padding, and (batch, length) bool, True where a query is padding."""
        names = _argument_names(type(self.module))
        given = {**dict(zip(names, self.inputs, strict=False)), **self.arguments}
        for name, marks in PADDING_ARGUMENTS.items():
            mask = given.get(name, self)
            if mask is None:
                return True, None
            if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
                mask = mask[:, mask.shape[1] - length :]
                return True, mask.bool() if marks else mask == 0
        return False, None


@cache
def _argument_names(module: type[nn.Module]) -> tuple[str, ...]:
    return tuple(signature(module.forward).parameters)[1:]


class FrameStack:
    """The running modules of one model, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Frame] = []

    @property
    def path(self) -> str:
        """The path of the running module; empty outside the model and in the model itself."""
        return self.running or ""

    @property
    def running(self) -> str | None:
        """The path of the running module; None outside the model."""
        return self.stack[-1].path if self.stack else None

    @property
    def in_pointwise(self) -> bool:
        """Whether an elementwise module is running, whose inside is no business of ours."""
        return bool(self.stack) and self.stack[-1].pointwise

    def mark_found(self) -> None:
        """The running modules contain a nonlinear place."""
        for frame in self.stack:
            frame.found = True

    def padding(self, batch: int, length: int) -> Tensor | None:
        """The padding of queries of this shape, as the nearest enclosing call was told it."""
        for frame in reversed(self.stack):
            told, padded = frame.padding(batch, length)
            if told:
                return padded
        return None

    def clear(self) -> None:
        """Nothing runs."""
        self.stack.clear()
