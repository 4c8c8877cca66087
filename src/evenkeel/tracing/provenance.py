"""What is remembered of the tensors of a measured step: where a value came from and what it may yet become."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from .expressions import Cut

Value = TypeVar("Value")

_NOTHING: frozenset[int] = frozenset()


@dataclass(eq=False, slots=True)
class Candidate:
    """An activation that was recognised and waits to see whether a larger expression takes it in."""

    path: str
    op: str
    input: Tensor
    output: Tensor | None
    function: Callable[[Tensor], Tensor]
    channel_dim: int
    fan_in: int = 0
    taken: bool = False

    def settled(self) -> None:
        """Let go of the output: its own tag leads here, and would keep it alive."""
        self.output = None


@dataclass(eq=False, slots=True)
class Normalised:
    """A softmax (or sigmoid) over scores that waits to meet values, experts, or neither."""

    op: str
    path: str
    scores: Tensor
    dim: int
    visible: Tensor | None
    added: Tensor | None = None  # what the product of queries and keys was added to
    candidate: Candidate | None = None  # of a sigmoid: the activation that it is if it turns out to be nothing else
    router: tuple[Tensor, int] | None = None  # the chosen experts (..., k) and how many there are
    used: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """(mean square + epsilon)^power over the last dimension of a tensor of this shape; op: the norm it may become."""

    op: str
    shape: torch.Size
    epsilon: float = 0.0
    power: float = 1.0


@dataclass(eq=False, slots=True)
class Normed:
    """What was divided by the root of its own moment, waiting until its frame ends for its gain and bias."""

    path: str
    input: Tensor | None
    output: Tensor | None
    epsilon: float
    op: str
    reads_stream: bool

    def settled(self) -> None:
        """Let go of the tensors: the output's own tag leads here, and would keep them alive."""
        self.input = self.output = None


@dataclass(slots=True)
class Tag:
    """What is known of one tensor; every field is handed on along casts, and along views where it says so."""

    cuts: tuple[Cut, ...] = ()
    parts: tuple[Candidate, ...] = ()
    gate: Candidate | None = None  # along views, affine scalars and clamps too
    normalised: Normalised | None = None  # along views; `dim` counts from the end
    normalised_dim: int = -1
    producer: str | None = None  # along views and pointwise functions: the path of the linear map that made it
    channel_dim: int = -1  # along casts and pointwise functions: 1 behind a convolution
    epsilon: float = 0.0  # along with it: the spacing at 1 of the coarsest format that its output has been held in
    fan_in: int = 0  # along views and pointwise functions: how many inputs that linear map has
    added: Tensor | None = None  # along views and pointwise functions: what a product of two tensors was added to
    factor: float = 1.0  # along views and pointwise functions: what a linear map's output was multiplied by since
    chosen: tuple[Tensor, int] | None = None  # top-k indices and how many there were to choose from
    visible: Tensor | None = None  # the bool mask that was filled into these scores
    log_softmax_of: Tensor | None = None
    linear_state: int = 0  # how many steps of a linear recurrence led here
    scaled: bool = False  # a product of two tensors, as a recurrence's decay times its state
    moment: Moment | None = None
    normed: Normed | None = None  # along casts, and products and sums with a number per channel
    exponents: Tensor | None = None  # of an exponential: what was raised; along masks and casts
    total: tuple[Tensor, int] | None = None  # of a sum of exponentials, along views: the exponents, the dimension


class _Reference(ref[Tensor]):
    __slots__ = ("place",)


class _OfTensors(Generic[Value]):
    """A value for each of some live tensors, told apart by identity; it goes when its tensor goes.

    torch.utils.weak has the same for keys that may be dead or asked for; a lookup there takes several times as long.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[_Reference, Value]] = {}

    def get(self, tensor: Tensor) -> Value | None:
        found = self._held.get(id(tensor))
        return None if found is None else found[1]

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._held

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        found = self._held.get(id(tensor))
        if found is None:
            reference = _Reference(tensor, self._forget)
            reference.place = id(tensor)
        else:
            reference = found[0]
        self._held[id(tensor)] = reference, value

    def clear(self) -> None:
        self._held.clear()

    def _forget(self, reference: _Reference) -> None:
        self._held.pop(reference.place, None)


class Provenance:
    """Tags of live tensors; a tag dies with its tensor."""

    def __init__(self) -> None:
        self._blank = Tag()
        self._tags: _OfTensors[Tag] = _OfTensors()
        self._outputs: _OfTensors[int] = _OfTensors()
        self._carried: _OfTensors[frozenset[int]] = _OfTensors()

    def __getitem__(self, tensor: Tensor) -> Tag:
        return self._tags.get(tensor) or self._blank

    def set(self, value: Any, tag: Tag) -> None:
        """Give every tensor in a call's result this tag."""
        for tensor in tensors_in(value):
            self._tags[tensor] = tag

    def note(self, value: Any) -> None:
        """Remember that a call's result was seen to be made."""
        for tensor in tensors_in(value):
            if tensor not in self._tags:
                self._tags[tensor] = self._blank

    def unseen(self, tensor: Tensor) -> bool:
        """Whether a tensor came out of something that no function mode sees, as a fused kernel does."""
        if tensor in self._tags or not tensor.is_floating_point() or isinstance(tensor, nn.Parameter):
            return False
        return isinstance(tensor.grad_fn, BackwardCFunction) if torch.is_grad_enabled() else True

    def carried(self, tensor: Tensor) -> frozenset[int]:
        """Which running blocks' inputs this tensor still holds: they came here by elementwise functions alone."""
        return self._carried.get(tensor) or _NOTHING

    def carry(self, value: Any, marks: frozenset[int]) -> None:
        """The floating-point tensors of a call's result hold these blocks' inputs."""
        for tensor in tensors_in(value):
            if tensor.is_floating_point() and marks != self.carried(tensor):
                self._carried[tensor] = marks

    def first_sight(self, tensor: Tensor) -> bool:
        """True the first time a tensor's values are shown, and again after they were written to in place.

        Parents often return their last child's output, and pass on what they were given.
        """
        version = 0 if tensor.is_inference() else tensor._version
        if self._outputs.get(tensor) == version:
            return False
        self._outputs[tensor] = version
        return True

    def clear(self) -> None:
        """Forget them all."""
        for held in (self._tags, self._outputs, self._carried):
            held.clear()


def tensors_in(value: Any) -> Iterable[Tensor]:
    """The tensors of a call's result: itself, or the entries of a tuple, a list or a mapping."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def spacing(value: Any) -> float:
    """The distance from 1 to the next larger number of a tensor's format; 0 for what holds no floating point."""
    return torch.finfo(value.dtype).eps if isinstance(value, Tensor) and value.is_floating_point() else 0.0


def same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory, perhaps viewed differently."""
    return first is second or (
        first.numel() == second.numel()
        and first.storage_offset() == second.storage_offset()
        and first.untyped_storage()._cdata == second.untyped_storage()._cdata
    )
