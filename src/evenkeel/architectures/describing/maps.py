"""Linear maps and norms among the calls of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...tracing.functions import CASTS, CONVOLUTIONS, MATMULS
from .graph import COPIES, Graph, Node, Value, source

_WITH_SUMMAND = frozenset(("addmm", "baddbmm", "addbmm"))
_GROUPED = frozenset(("grouped_mm", "_grouped_mm", "_grouped_linear"))
PRODUCTS_OF_MATRICES = MATMULS | CONVOLUTIONS | _GROUPED | {"linear"}

_NORM_CALLS = {
    "layer_norm": "layer",
    "rms_norm": "rms",
    "group_norm": "group",
    "batch_norm": "batch",
    "normalize": "l2",
}
_ROOTS = frozenset(("rsqrt", "sqrt", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "std", "pow"))
_TO_A_ROOT = CASTS | {
    "add",
    "clamp",
    "clamp_min",
    "clip",
    "maximum",
    "mul",
    "div",
    "reciprocal",
    "unsqueeze",
    "getitem",
}
_MEANS = frozenset(
    ("mean", "var", "sum", "var_mean", "std", "norm", "vector_norm", "linalg_vector_norm", "linalg_norm")
)
_SQUARES = frozenset(("pow", "square", "mul", "abs"))


def factors(node: Node) -> tuple[Value, ...]:
    """What a matrix product multiplies."""
    inputs = [value for value in node.inputs if value.tensor.dim() > 0]
    return tuple(inputs[1:3] if node.name in _WITH_SUMMAND else inputs[:2])


@dataclass(frozen=True)
class Map:
    """A product of activations with weights: how wide what goes in and what comes out is."""

    node: Node
    source: Value
    width_in: int
    width_out: int

    @property
    def weights(self) -> frozenset[str]:
        return frozenset(name for value in self.node.inputs for name in value.node.weight)


def map_at(node: Node) -> Map | None:
    """The linear map that a call is, if it is one."""
    if node.name not in PRODUCTS_OF_MATRICES:
        return None
    pair = factors(node)
    weighted = [bool(value.node.weight) for value in pair]
    if sum(weighted) != 1 or len(pair) != 2:
        return None
    first = weighted[0]
    data, weight = (pair[1], pair[0]) if first else pair
    if not data.node.content:
        return None
    if node.name in CONVOLUTIONS:
        return Map(node, data, math.prod(weight.tensor.shape[1:]), weight.tensor.shape[0])
    if node.name == "linear":
        return Map(node, data, weight.tensor.shape[-1], weight.tensor.shape[-2])
    if node.name == "einsum":
        width = contraction(node)
        return Map(node, data, width, weight.tensor.numel() // max(width, 1))
    shape = weight.tensor.shape[-2:]
    return Map(node, data, shape[1], shape[0]) if first else Map(node, data, shape[0], shape[-1])


def contraction(node: Node) -> int:
    """Over how many products each entry of a matrix product sums."""
    pair = factors(node)
    if node.name in CONVOLUTIONS:
        return math.prod(pair[1].tensor.shape[1:])
    if node.name == "einsum":
        return _summed_in_einsum(node)
    return pair[0].tensor.shape[-1]


def _summed_in_einsum(node: Node) -> int:
    equation = str(node.args[0]).replace(" ", "")
    inputs, _, output = equation.partition("->")
    sizes = {
        letter: size
        for letters, value in zip(inputs.split(","), node.inputs, strict=False)
        for letter, size in zip(letters, value.tensor.shape, strict=False)
    }
    return math.prod(size for letter, size in sizes.items() if letter not in output)


@dataclass(frozen=True)
class Norm:
    """A normalisation: what goes in, the call that ends it, and which calls belong to it.

    kind: rms, layer, l2, group or batch. width: over how many channels.
    """

    kind: str
    source: Value
    end: Node
    width: int
    nodes: frozenset[int]


class Norms:
    """Every norm of a graph, called as one or spelled out."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.by_end: dict[int, Norm] = {}
        for node in graph.nodes:
            found = self._called(node) or self._spelled_out(node)
            if found is not None:
                self.by_end[found.end.index] = found
        self.nodes = frozenset(index for norm in self.by_end.values() for index in norm.nodes)

    def around(self, value: Value) -> Norm | None:
        """The norm whose output a value is, casts and views between left aside."""
        return self.by_end.get(value.node.index)

    def _called(self, node: Node) -> Norm | None:
        kind = _NORM_CALLS.get(node.name)
        if kind is None or not node.inputs or not node.inputs[0].node.content:
            return None
        return Norm(kind, node.inputs[0], *self._with_weights(node, node.output.shape[-1], {node.index}))

    def _spelled_out(self, node: Node) -> Norm | None:
        """x·rsqrt(mean(x²) + ε) or x / sqrt(...): a product of x with a root of a mean of x."""
        if node.name not in ("mul", "div") or len(node.inputs) != 2:
            return None
        for data, root in (node.inputs, reversed(node.inputs)):
            if root.tensor.dim() == 0 or root.tensor.shape[-1] != 1 or data.tensor.shape[-1] == 1:
                continue
            inner = _norm_root(root, data)
            if inner is not None:
                names = {item.name for item in inner}
                start, centred = _uncentred(data)
                kind = "layer" if centred or names & {"var", "var_mean", "std"} else "rms" if "mean" in names else "l2"
                own = {item.index for item in inner} | ({data.node.index} if centred else set())
                return Norm(kind, start, *self._with_weights(node, data.tensor.shape[-1], own | {node.index}))
        return None

    def _with_weights(self, node: Node, width: int, own: set[int]) -> tuple[Node, int, frozenset[int]]:
        """A norm with the gain and the bias behind it, and the calls that prepare them."""
        while True:
            following = [child for child in self._graph.children(node) if child.name != "detach"]
            if len(following) != 1 or following[0].name not in CASTS | {"mul", "add"}:
                return node, width, frozenset(own)
            others = [value.node for value in following[0].inputs if value.node is not node]
            if following[0].name in ("mul", "add") and not (others and all(item.weight for item in others)):
                return node, width, frozenset(own)
            node = following[0]
            own |= {node.index}


def _norm_root(root: Value, data: Value) -> list[Node] | None:
    """The calls from x to the root of its mean square, if that is what `root` is."""
    start = {id(source(data, CASTS).tensor), id(_uncentred(data)[0].tensor), id(data.tensor)}
    value, inner = root, []
    for _ in range(12):
        inner.append(value.node)
        if value.node.name in _MEANS:
            behind = value.node.inputs[0]
            if behind.node.name in _SQUARES:
                inner.append(behind.node)
                behind = behind.node.inputs[0]
            met = {id(behind.tensor), id(source(behind, CASTS).tensor), id(_uncentred(behind)[0].tensor)}
            rooted = any(item.name in _ROOTS for item in inner)
            return inner if rooted and met & start else None
        if value.node.name not in _ROOTS | _TO_A_ROOT or not value.node.inputs:
            return None
        value = next((item for item in value.node.inputs if item.node.content), value.node.inputs[0])
    return None


def _uncentred(value: Value) -> tuple[Value, bool]:
    """x of x − mean(x)."""
    plain = source(value, CASTS)
    if plain.node.name == "sub" and len(plain.node.inputs) == 2 and plain.node.inputs[1].tensor.shape[-1:] == (1,):
        return source(plain.node.inputs[0], CASTS), True
    return plain, False


def nearest_maps(values: Iterable[Value], stop: Callable[[Value], bool]) -> Iterator[Map]:
    """The linear maps met first on the way back from some values; what `stop` accepts is not passed."""
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop(0)
        key = (value.node.index, id(value.tensor))
        if key in seen or not value.node.content or stop(value):
            continue
        seen.add(key)
        found = map_at(value.node)
        if found is not None:
            yield found
        elif value.node.name in COPIES:
            waiting.append(value.node.inputs[0])
        else:
            waiting += value.node.inputs


def next_maps(graph: Graph, node: Node, stop: Callable[[Node], bool]) -> Iterator[Map]:
    """The linear maps met first on the way on from a call; what `stop` accepts is not passed."""
    waiting, seen = graph.children(node)[:], set()
    while waiting:
        child = waiting.pop(0)
        if child.index in seen:
            continue
        seen.add(child.index)
        found = map_at(child)
        if found is not None:
            yield found
        elif child.content and not stop(child):
            waiting += graph.children(child)
