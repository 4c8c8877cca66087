"""Pointwise expressions: which function of one tensor another tensor is, and what that function is called.

`x * sigmoid(1.702 * x)` is three calls and one activation. Each tensor remembers, for a few of its ancestors, the
expression that leads from there to it; an expression is named by evaluating it on a grid beside the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..functional import ACTIVATIONS
from ..reference.activations import REFERENCES
from .functions import ANCHORS, CASTS

UNKNOWN = "unknown pointwise"
AFFINE = "affine"

_LARGEST = 24  # calls in one expression; the longest formula in use (tanh-GELU spelled out) has nine
_TOLERANCE = 2e-5  # GELU and its tanh form differ by 4.7e-4, float32 evaluation of either by 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """One call in an expression: arguments are Nodes, None (the root tensor), or constants wrapped in a 1-tuple."""

    func: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    key: str
    size: int
    anchored: bool
    cast: bool

    def __call__(self, root: Tensor, *, casts: bool = True) -> Tensor:
        """The expression's value; `casts=False` leaves conversions out, to see the bare function."""
        values = [
            root if item is None else item(root, casts=casts) if isinstance(item, Node) else item[0]
            for item in self.arguments
        ]
        if self.cast and not casts:
            return values[0]
        return self.func(*values, **self.keywords)


@dataclass(frozen=True, slots=True)
class Cut:
    """An ancestor and the expression from it (None: the tensor is that ancestor itself)."""

    root: Tensor
    node: Node | None


def compose(
    func: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    cuts_of: Callable[[Tensor], tuple[Cut, ...]],
) -> tuple[Cut, ...]:
    """The cuts of `func(*args, **kwargs)`: every ancestor of which *all* its tensor arguments are functions."""
    if any(isinstance(value, Tensor) for value in kwargs.values()):
        return ()
    if any(isinstance(item, Tensor) and item.dim() == 0 for item in args):
        return ()  # a scalar on the device: its value is not known without waiting for it
    constant = [not isinstance(item, Tensor) for item in args]
    variable = [item for item, fixed in zip(args, constant, strict=True) if not fixed]
    if not variable:
        return ()
    choices = [{id(cut.root): cut for cut in (*cuts_of(item), Cut(item, None))} for item in variable]
    found = []
    for identity, first in choices[0].items():
        if not all(identity in choice for choice in choices):
            continue
        parts = iter([choice[identity].node for choice in choices])
        arguments = tuple((item,) if fixed else next(parts) for item, fixed in zip(args, constant, strict=True))
        node = _node(func, name, arguments, kwargs)
        if node.size <= _LARGEST:
            found.append(Cut(first.root, node))
    return tuple(found[-6:])


def on_a_copy(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function that may write into its first argument, made safe to call again."""
    return lambda x, *rest, **keywords: func(x.clone(), *rest, **keywords)


def _node(func: Callable[..., Any], name: str, arguments: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
    nodes = [item for item in arguments if isinstance(item, Node)]
    keys = ("x" if item is None else item.key if isinstance(item, Node) else repr(item[0]) for item in arguments)
    return Node(
        func,
        arguments,
        dict(kwargs),
        key=f"{name}({','.join(keys)};{','.join(f'{key}={value!r}' for key, value in kwargs.items())})",
        size=1 + sum(node.size for node in nodes),
        anchored=name in ANCHORS or any(node.anchored for node in nodes),
        cast=name in CASTS,
    )


@contextmanager
def _apart() -> Iterator[None]:
    """Real numbers, no gradients, no function modes, and the random state as it was."""
    with (
        unset_fake_temporarily(),
        torch.no_grad(),
        torch._C.DisableTorchFunction(),
        torch.random.fork_rng(devices=()),
    ):
        yield


class Namer:
    """Names functions by their values on a grid; remembers what it has named."""

    def __init__(self) -> None:
        self._named: dict[str, str] = {}
        with unset_fake_temporarily(), torch.device("cpu"):
            inner = torch.linspace(-8, 8, 193, dtype=torch.float64)  # 200 points with the tails
            tails = torch.tensor([-60.0, -30.0, -15.0, 12.0, 17.0, 25.0, 60.0], dtype=torch.float64)
            self.grid = torch.cat([inner, tails])
            own = {name: entry.function for name, entry in ACTIVATIONS.items() if name not in REFERENCES}
            self._expected = {name: function(self.grid) for name, function in {**REFERENCES, **own}.items()}

    def of_node(self, node: Node) -> str:
        """The catalogue's name of an expression, `affine`, or `unknown pointwise`."""
        if node.key not in self._named:
            self._named[node.key] = self.of_function(lambda x: node(x, casts=False))
        return self._named[node.key]

    def of_function(self, function: Callable[[Tensor], Tensor]) -> str:
        """The same for any elementwise function that runs on the CPU in float64 or float32."""
        with _apart():
            values = self._evaluate(function)
            return UNKNOWN if values is None else self._of_values(values)

    def _of_values(self, values: Tensor) -> str:
        for name, expected in self._expected.items():
            if bool(((values - expected).abs() <= _TOLERANCE * (1 + expected.abs())).all()):
                return AFFINE if name == "identity" else name
        first, last = values[0], values[-1]
        line = first + (last - first) * (self.grid - self.grid[0]) / (self.grid[-1] - self.grid[0])
        affine = bool(((values - line).abs() <= _TOLERANCE * (1 + line.abs())).all())
        return AFFINE if affine else UNKNOWN

    def _evaluate(self, function: Callable[[Tensor], Tensor]) -> Tensor | None:
        for dtype in (torch.float64, torch.float32):
            try:
                return function(self.grid.to(dtype, copy=True)).double()  # some write into what they are given
            except Exception:  # a module of somebody's may raise anything when it is shown a grid
                continue
        return None

    def is_elementwise(self, function: Callable[[Tensor], Tensor]) -> bool:
        """Whether each output value depends on the input value at its own place alone."""
        size = self.grid.numel()
        with _apart():
            order = torch.arange(size).mul(7).remainder(size)
            whole = self._evaluate(function)  # one row a value: what drops rows at random is found out here
            mixed = self._evaluate(lambda x: function(x[order].reshape(8, 5, -1)).reshape(-1))
            part = self._evaluate(lambda x: function(x[: size // 2].reshape(1, 2, -1)).reshape(-1))
            if whole is None or mixed is None or part is None or whole.shape != self.grid.shape:
                return False
            return all(
                values.shape == again.shape and torch.allclose(values, again, rtol=_TOLERANCE, atol=1e-9)
                for values, again in ((whole[order], mixed), (whole[: size // 2], part))  # vector code may differ
            )
