"""How scores came to be: from a softmax's input back to queries and keys, with every factor, cap and term between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ...tracing.functions import CASTS, MATMULS
from .graph import BLANK, COPIES, Node, Value, source
from .maps import Norms, factors, map_at
from .masks import evaluate

_ON_THE_WAY = COPIES | {"mul", "div"}
_CLAMPS = frozenset("clamp clamp_min clamp_max clip maximum minimum max nan_to_num softmax_backward".split())


@dataclass
class Scores:
    """scores = cap·tanh(scale·⟨q, k⟩ / cap) + terms.

    scale is None where a factor could not be read. terms: (value, sense) as masks are read. sinks: whether a learned
    logit stands beside the keys' scores.
    """

    query: Value | None = None
    key: Value | None = None
    product: Node | None = None
    scale: float | None = 1.0
    softcap: float | None = None
    sinks: bool = False
    terms: list[tuple[Value, bool | None]] = field(default_factory=list)
    unread: bool = False
    """Whether something that depends on the tokens was added, which may hide keys."""
    learned: list[Value] = field(default_factory=list)
    """Terms that weights went into."""

    def multiply(self, factor: float | None) -> None:
        self.scale = None if factor is None or self.scale is None else self.scale * factor


def read_scores(value: Value) -> Scores:
    """What leads to the input of a softmax over keys."""
    scores = Scores()
    for _ in range(64):
        node = value.node
        if node.name in MATMULS and map_at(node) is None:
            _product(scores, node)
            return scores
        following = _step(scores, value)
        if following is None:
            return scores
        value = following
    return scores


def _product(scores: Scores, node: Node) -> None:
    scores.product = node
    pair = factors(node)
    if len(pair) == 2:
        scores.query, scores.key = pair
    if node.name in ("baddbmm", "addbmm", "addmm"):
        scores.multiply(float(node.kwargs.get("alpha", 1)))
        add_term(scores, node.inputs[0])


def _step(scores: Scores, value: Value) -> Value | None:
    """One call back; None where the way is lost."""
    node = value.node
    content = [item for item in node.inputs if item.node.content]
    if not content:
        return None
    if node.name in ("add", "sub") and len(content) > 1:
        wide = [item for item in content if item.tensor.shape[-1] > 1]  # one number a row changes no softmax
        scores.unread = scores.unread or len(wide) > 1
        return _nearest_product(wide or content)
    if node.name in ("mul", "div") and len(content) > 1:
        return None
    if node.name in ("mul", "div"):
        others = [item for item in node.inputs if item is not content[0] and item.tensor.numel() > 1]
        if others:
            scores.terms += [(item, True) for item in others if not item.node.weight]
            scores.unread = scores.unread or any(item.node.weight for item in others)
        else:
            scores.multiply(scalar_factor(node))
    elif node.name == "tanh":
        scores.softcap = scores.scale
    elif node.name in ("add", "sub"):
        for item in node.inputs:
            if not item.node.content:
                add_term(scores, item)
    elif node.name == "cat":
        scores.sinks = scores.sinks or any(item.node.weight for item in node.inputs)
    elif node.name == "masked_fill":
        scores.terms.append((node.inputs[1], False))
    elif node.name == "where":
        scores.terms.append((node.inputs[0], _is(node.args[1], content[0].tensor)))
    elif node.name not in COPIES | _CLAMPS:
        return None
    return content[0]


def _nearest_product(values: list[Value]) -> Value:
    """Of several summands the one that is queries times keys."""
    return next((value for value in values if source(value, _ON_THE_WAY).node.name in MATMULS), _largest(values))


def _is(first: object, second: Tensor) -> bool:
    return first is second


def _largest(values: list[Value]) -> Value:
    return max(values, key=lambda value: value.tensor.numel())


def add_term(scores: Scores, value: Value) -> None:
    """Something that is added to scores; sums are taken apart, so that a mask is seen beside a learned bias."""
    plain = value
    while plain.node.name in COPIES and plain.node.inputs:
        plain = plain.node.inputs[0]
    if plain.node.name == "add" and len(plain.node.inputs) == 2 and _weighted(plain):
        for item in plain.node.inputs:
            add_term(scores, item)
    elif _weighted(value):
        scores.learned.append(value)
    elif value.tensor.dim() > 0:
        scores.terms.append((value, None))


def _weighted(value: Value) -> bool:
    """Whether weights went into a value."""
    waiting, seen = [value.node], set()
    while waiting:
        node = waiting.pop()
        if node.index in seen:
            continue
        seen.add(node.index)
        if node.name == "parameter":
            return True
        waiting += [item.node for item in node.inputs if node.name not in BLANK]
    return False


def scalar_factor(node: Node) -> float | None:
    """The number that a call multiplies by: a Python number, or a tensor of one entry that can be made again."""
    others = [item for item in node.args if not (isinstance(item, Tensor) and item.dim() > 0)]
    if len(others) == 1 and isinstance(others[0], int | float):
        number = float(others[0])
    else:
        single = [item for item in node.inputs if not item.node.content and item.tensor.numel() == 1]
        if len(single) != 1:
            return None
        found = evaluate(single[0])
        if found is None:
            return None
        number = float(found)
    if node.name == "div":
        return 1 / number if number and not isinstance(node.args[0], int | float) else None
    return number


def way_back(value: Value, norms: Norms) -> Iterator[tuple[Value, str]]:
    """The calls from queries or keys back to the linear map that made them, each with what it does.

    "map", "norm", "factor", "position" (a product with something made from positions), "sum", or "copy".
    """
    for _ in range(64):
        node = value.node
        if map_at(node) is not None:
            yield value, "map"
            return
        norm = norms.around(value)
        if norm is not None:
            yield value, "norm"
            value = norm.source
            continue
        content = [item for item in node.inputs if item.node.content]
        if not content:
            return
        yield value, _meaning(node, content)
        value = _largest(content) if node.name not in COPIES else content[0]


def _meaning(node: Node, content: list[Value]) -> str:
    if node.name in ("mul", "div") and len(content) == 1:
        other = [item for item in node.inputs if not item.node.content]
        if not other or other[0].tensor.numel() == 1:
            return "factor"
        return "position" if not other[0].node.weight else "gain"
    if node.name in ("add", "sub"):
        return "sum"
    return "copy" if node.name in COPIES | CASTS else "other"


def factor_on_the_way(value: Value, norms: Norms) -> float | None:
    """The product of all numbers that queries (or keys) are multiplied by behind their map or norm; None if unread."""
    product = 1.0
    for item, meaning in way_back(value, norms):
        if meaning in ("map", "norm"):
            break
        if meaning == "factor":
            factor = scalar_factor(item.node)
            if factor is None:
                return None
            product *= factor
    return product


def is_close(first: float, second: float) -> bool:
    """Whether two scales are the same number, computed twice."""
    return math.isclose(first, second, rel_tol=1e-5)
