"""The residual stream of a graph: which calls add a branch to it."""

from __future__ import annotations

from collections.abc import Iterable

from ...schema import Site
from .graph import COPIES, Graph, Node, Value
from .maps import Norms


class Blocks:
    """The blocks of a model, by the paths of their residual sites."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.paths = tuple(site.path for site in sites if site.kind == "residual")
        self._around: dict[str, str | None] = {}

    def around(self, path: str) -> str | None:
        """The path of the innermost block around a path; None outside every block."""
        if path not in self._around:
            self._around[path] = max((item for item in self.paths if within(path, item)), key=len, default=None)
        return self._around[path]


def within(path: str, around: str) -> bool:
    """Whether a module is another or lies inside it."""
    return path == around or not around or path.startswith(around + ".")


def junctions(graph: Graph, norms: Norms, blocks: Blocks) -> frozenset[int]:
    """The sums that carry the residual stream on.

    Outside the blocks everything is stream; inside one, a sum is if one of its summands is the stream, copied, scaled
    or normalised, and another is not: two branches (experts and a shared expert) or two tokens of the stream make none.
    """
    stream = {node.index for node in graph.nodes if node.content and blocks.around(node.path) is None}
    found = set()
    for node in graph.nodes:
        content = [value for value in node.inputs if value.node.content]
        if node.name != "add" or len(content) < 2 or any(v.tensor.shape != node.output.shape for v in content):
            continue
        carried = [_origin(value, norms, stream).index in stream for value in content]
        if any(carried) and not all(carried):
            found.add(node.index)
            stream.add(node.index)
    return frozenset(found)


def _origin(value: Value, norms: Norms, stream: set[int]) -> Node:
    """The call behind copies, scalings by numbers, and norms."""
    while value.node.index not in stream and value.node.inputs:
        norm = norms.around(value)
        content = [item for item in value.node.inputs if item.node.content]
        if norm is not None:
            value = norm.source
        elif value.node.name in COPIES or (value.node.name in ("mul", "div") and len(content) == 1):
            value = content[0] if content else value.node.inputs[0]
        else:
            break
    return value.node
