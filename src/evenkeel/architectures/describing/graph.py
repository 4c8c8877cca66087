"""The calls of one forward pass as a graph: what each tensor was made from, as the tracer saw it being made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...schema import Site, clean_name
from ...tracing.functions import CASTS, VIEWS, FunctionNames
from ...tracing.hooks import in_transform
from ...tracing.provenance import Candidate, tensors_in
from ...tracing.structure import Structure
from ...tracing.trace import Observe
from ...tracing.tracer import Tracer

COPIES = CASTS | VIEWS | {"data", "real", "pad", "roll", "flip", "index_copy", "gather", "take_along_dim"}
"""Functions whose result holds values of their first argument."""

BLANK = frozenset("zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty new_tensor".split())
"""Functions that take of a tensor no more than its shape and dtype."""

_LIKE = frozenset("expand_as view_as reshape_as type_as".split())  # of the second argument, shape or dtype alone

_WRITES = frozenset(("setitem",))
WRITTEN = "written"
"""What a tensor is called of which a part was written into."""


class Value(NamedTuple):
    """A tensor and the call that made it."""

    node: Node
    tensor: Tensor


@dataclass(eq=False)
class Node:
    """One call, or a leaf: a parameter, a buffer, an input of the model, or a tensor of unknown origin.

    real: what a leaf holds, where that is known. content: whether its result depends on the model's tokens (or its
    floating inputs) beyond their number. weight: names of the parameters that the result is a function of, where it is
    a function of nothing else.
    """

    index: int
    name: str
    path: str
    func: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    real: Tensor | None = None
    content: bool = False
    weight: frozenset[str] = frozenset()

    @property
    def output(self) -> Tensor:
        return self.outputs[0]

    @property
    def value(self) -> Value:
        return Value(self, self.output)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Graph:
    """Nodes in the order in which they ran; tensors are kept, so this is for fake ones and small ones."""

    def __init__(self, model: nn.Module, values: Mapping[int, Tensor]) -> None:
        self.nodes: list[Node] = []
        self._values = values
        self.sites: dict[str, Node] = {}
        """The node at which each site (attention, gate) was seen, by the site's id."""
        self.activations: list[tuple[Site, Value, Value]] = []
        """(site, what went in, what came out)."""
        self.batch = 1
        self._producers: dict[int, Node] = {}
        self._children: dict[int, list[Node]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            leaf = self._add(Node(len(self.nodes), "parameter", clean_name(name), outputs=(parameter,)))
            leaf.weight = frozenset((leaf.path,))
        for name, buffer in model.named_buffers():
            self._add(Node(len(self.nodes), "buffer", clean_name(name), outputs=(buffer,), real=values.get(id(buffer))))

    def enter(self, inputs: Any) -> None:
        """The model's own inputs."""
        first = next(iter(tensors_in(inputs)), None)
        self.batch = 1 if first is None or first.dim() == 0 else first.shape[0]
        for tensor in tensors_in(inputs):
            self._add(Node(len(self.nodes), "input", "", outputs=(tensor,), content=tensor.is_floating_point()))

    def call(
        self, name: str, path: str, func: Any, args: Any, kwargs: Any, inputs: tuple[Value, ...], out: Any
    ) -> Node:
        """Add a call with what it returned."""
        made = args[0] if name in _WRITES else out
        node = Node(len(self.nodes), name, path, func, args, kwargs, inputs, tuple(tensors_in(made)))
        node.weight = _weight(node)
        node.content = not node.weight and _content(node)
        return self._add(node)

    def write_through(self, node: Node) -> None:
        """A call has written into a tensor that may be a part of another: that one now holds what was written."""
        whole = source(node.inputs[0], VIEWS)
        if whole.tensor is not node.inputs[0].tensor:
            written = node.inputs[1] if node.name == "copy" and len(node.inputs) > 1 else node.value
            made = Node(len(self.nodes), WRITTEN, node.path, inputs=(whole, written), outputs=(whole.tensor,))
            made.content = whole.node.content or node.content
            self._add(made)

    def value(self, tensor: Tensor) -> Value:
        """A tensor with the call that made it, now."""
        node = self._producers.get(id(tensor))
        if node is None:
            held = self._values.get(id(tensor))
            node = self._add(Node(len(self.nodes), "unknown", "", outputs=(tensor,), real=held))
        return Value(node, tensor)

    def children(self, node: Node) -> list[Node]:
        """The calls that took something that this one made."""
        return self._children[node.index]

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        for tensor in node.outputs:
            self._producers[id(tensor)] = node
        for parent in {value.node.index for value in node.inputs}:
            self._children[parent].append(node)
        return node


class Recorder(Tracer):
    """The tracer, which also keeps the graph of the calls."""

    def __init__(self, structure: Structure, observe: Observe, values: Mapping[int, Tensor]) -> None:
        super().__init__(structure, observe)
        self.graph = Graph(structure.model, values)
        self._plain_names = FunctionNames()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, in_place = self._plain_names(func)
        inputs = () if in_transform() else tuple(self.graph.value(item) for item in tensors_in((args, kwargs)))
        self._trace.latest = None
        result = super().__torch_function__(func, types, args, kwargs)
        if in_transform() or not (name in _WRITES or any(True for _ in tensors_in(result))):
            return result
        if name in COPIES and args and result is args[0]:
            return result  # a conversion with nothing to convert
        node = self.graph.call(name, self._trace.frames.path, func, args, kwargs, inputs, result)
        if (in_place or name in _WRITES) and inputs:
            self.graph.write_through(node)
        if self._trace.latest is not None:
            self.graph.sites[self._trace.latest.id] = node
        return result

    def _hook(self, site: Site, output: Tensor) -> None:
        """Outputs without values are not looked at."""

    def _settle_activation(self, order: int, candidate: Candidate) -> Site | None:
        before, after = candidate.input, candidate.output
        site = super()._settle_activation(order, candidate)
        if site is not None and after is not None:
            self.graph.activations.append((site, self.graph.value(before), self.graph.value(after)))
        return site


def _weight(node: Node) -> frozenset[str]:
    """The parameters of which alone a result is made: by copying from one, or by any function of several."""
    if not node.inputs or node.name == "embedding":
        return frozenset()
    if node.name in COPIES:
        return node.inputs[0].node.weight
    if all(value.node.weight or value.node.name == "buffer" for value in node.inputs):
        return frozenset(name for value in node.inputs for name in value.node.weight)
    return frozenset()


def _content(node: Node) -> bool:
    if node.name in BLANK:
        return False
    if node.name == "embedding":
        return _are_tokens(node.inputs[0]) or node.inputs[0].node.content
    return any(value.node.content for value in (node.inputs[:1] if node.name in _LIKE else node.inputs))


def _are_tokens(ids: Value) -> bool:
    """Whether indices are the model's input, some of them perhaps replaced; what is counted from it is none."""
    kept = COPIES | {"where", "masked_fill", "cat", WRITTEN, *_WRITES}
    return any(value.node.name == "input" for value in ancestors([ids], lambda value: value.node.name not in kept))


def source(value: Value, through: frozenset[str] | set[str] = COPIES) -> Value:
    """The value that this one is a copy of."""
    while value.node.name in through and value.node.inputs:
        value = value.node.inputs[0]
    return value


def ancestors(values: Iterator[Value] | list[Value], stop: Callable[[Value], bool]) -> Iterator[Value]:
    """What values were made of, nearest first, themselves included; behind what `stop` accepts nothing is looked at."""
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop(0)
        key = (value.node.index, id(value.tensor))
        if key in seen:
            continue
        seen.add(key)
        yield value
        if not stop(value):
            waiting += value.node.inputs
