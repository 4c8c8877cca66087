"""Which keys a query sees: the few calls that make a mask are run again, on real numbers.

Masks are made from positions alone, so no weight is needed. A window longer than the row shows as a constant of these
calls: with a small number in its place, the row is long enough to show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from .graph import BLANK, WRITTEN, Node, Value

HIDDEN = -1e3  # scores at or below it weigh nothing

_COMPARED = frozenset("sub add rsub lt le gt ge floor_divide floordiv div remainder".split())
_SMALL = 5
_TOKEN = 3  # a token that is no padding


@dataclass(frozen=True)
class Mask:
    """visible: (queries, keys), how a query sees keys; None where that could not be found out.

    window: query i sees keys with |i − j| below it; chunked: of these only the ones in its own chunk of that length.
    bias: (heads, queries, keys) added to scores that are seen.
    """

    visible: Tensor | None
    window: int | None = None
    chunked: bool = False
    bias: Tensor | None = None

    @property
    def causal(self) -> bool | None:
        """Whether no query sees a key behind its own position."""
        return None if self.visible is None else not bool(self.visible.triu(1).any())


def read_mask(terms: Sequence[tuple[Value, bool | None]], queries: int, keys: int) -> Mask:
    """What some terms make of scores together.

    terms: (value, sense): sense True where a true entry is seen, False where it is hidden, None for what is added.
    """
    if queries != keys:
        return Mask(None)
    try:
        visible, bias = _combined(terms, queries, {})
        window, chunked = _window(terms, visible)
    except _Unknown:
        return Mask(None)
    return Mask(visible, window, chunked, bias)


class _Unknown(Exception):
    """A call that cannot be run again."""


def evaluate(value: Value) -> Tensor | None:
    """The real value of something made from positions and numbers alone; None where more went into it."""
    try:
        return _replayed(value, {})
    except _Unknown:
        return None


def _combined(
    terms: Sequence[tuple[Value, bool | None]], size: int, swapped: dict[int, dict[Any, Any]]
) -> tuple[Tensor, Tensor | None]:
    visible = torch.ones(size, size, dtype=torch.bool)
    bias = None
    for value, sense in terms:
        found = _replayed(value, swapped)
        if found.is_floating_point() and found.numel() == 1:
            continue  # the same for every key
        found = found.expand(torch.broadcast_shapes(found.shape, (size, size)))
        if sense is not None:
            visible = visible & _rows(found == sense, size)
            continue
        if found.dtype == torch.bool:
            visible = visible & _rows(found, size)
            continue
        found = found.float()
        visible = visible & _rows(found > HIDDEN, size)
        kept = torch.where(found > HIDDEN, found, 0).reshape(-1, size, size)
        if bool(kept.any()):
            bias = kept if bias is None else bias + kept
    return visible, bias


def _rows(seen: Tensor, size: int) -> Tensor:
    """(queries, keys) of the first row of a batch and its first head."""
    while seen.dim() > 2:
        seen = seen[0]
    return seen.expand(size, size)


def _window(terms: Sequence[tuple[Value, bool | None]], visible: Tensor) -> tuple[int | None, bool]:
    size = visible.shape[0]
    reach = _reach(visible)
    if reach < size:
        return reach, _is_chunked(visible, reach)
    for constant, places in _large_constants([value for value, _ in terms], size).items():
        swapped = {place: {constant: _SMALL if constant > 0 else -_SMALL} for place in places}
        narrow, _ = _combined(terms, size, swapped)
        if _reach(narrow) < size:
            return abs(int(constant)) + _reach(narrow) - _SMALL, _is_chunked(narrow, _reach(narrow))
    return None, False


def _is_chunked(visible: Tensor, reach: int) -> bool:
    """Whether rows that could see a whole window see different numbers of keys."""
    size = visible.shape[0]
    causal = not bool(visible.triu(1).any())
    counts = visible.sum(-1)[reach - 1 : size if causal else size - reach + 1]
    return bool((counts != counts[:1]).any())


def _reach(visible: Tensor) -> int:
    rows, columns = visible.nonzero(as_tuple=True)
    return int((rows - columns).abs().max()) + 1 if rows.numel() else 0


def _large_constants(values: Sequence[Value], size: int) -> dict[int | float, list[int]]:
    """Numbers beyond the row in comparisons and offsets, and the calls that have them."""
    found: dict[int | float, list[int]] = {}
    for node in _slice(values):
        for item in node.args if node.name in _COMPARED else ():
            if isinstance(item, int | float) and not isinstance(item, bool) and abs(item) >= size:
                found.setdefault(item, []).append(node.index)
    return found


def _slice(values: Sequence[Value]) -> list[Node]:
    """The calls that values were made by, in the order in which they ran."""
    found: dict[int, Node] = {}
    waiting = [value.node for value in values]
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            waiting += [value.node for value in node.inputs if node.name not in BLANK]
    return [found[index] for index in sorted(found)]


def _replayed(value: Value, swapped: dict[int, Any]) -> Tensor:
    known: dict[tuple[int, int], Any] = {}
    with unset_fake_temporarily(), torch.no_grad(), torch._C.DisableTorchFunction():
        for node in _slice([value]):
            _replay(node, known, swapped.get(node.index, {}))
    return known[value.node.index, id(value.tensor)]


def _replay(node: Node, known: dict[tuple[int, int], Any], swapped: dict[Any, Any]) -> None:
    if node.name == WRITTEN:
        whole = node.inputs[0]
        known[node.index, id(node.output)] = known[whole.node.index, id(whole.tensor)]
        return
    if node.func is None:
        if node.real is not None:
            known[node.index, id(node.output)] = node.real.clone()
            return
        if node.name != "input":
            raise _Unknown
        known[node.index, id(node.output)] = torch.full(node.output.shape, _TOKEN, dtype=node.output.dtype)
        return
    if node.content or node.weight:
        raise _Unknown
    waiting = iter(node.inputs)

    def real(item: Any) -> Any:
        if isinstance(item, Tensor):
            made = next(waiting)
            if node.name in BLANK:
                return torch.zeros(made.tensor.shape, dtype=made.tensor.dtype)
            return known[made.node.index, id(made.tensor)]
        return swapped.get(item, item) if isinstance(item, int | float) and not isinstance(item, bool) else item

    args, kwargs = tree_map(real, node.args), tree_map(real, node.kwargs)
    try:
        result = node.func(*args, **kwargs)
    except Exception as error:  # a call may want what was never made
        raise _Unknown from error
    made = [args[0]] if node.name == "setitem" else list(_tensors(result))
    for tensor, again in zip(node.outputs, made, strict=False):
        known[node.index, id(tensor)] = again


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
