"""What every attention of a graph is: heads, scale, cap, mask, positions, norms of queries and keys, what is cached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...description import AttentionPart
from ...functional import scale_factor
from ...schema import Site
from ...tracing.attention import MULTI_HEAD
from ...tracing.functions import CASTS, MATMULS
from .graph import COPIES, WRITTEN, Graph, Node, Value, source
from .maps import Norms, factors, map_at
from .masks import Mask, read_mask
from .scores import Scores, add_term, factor_on_the_way, is_close, read_scores, way_back

JOINS = frozenset(("cat", "setitem", WRITTEN))
"""Calls that put several tensors side by side."""

_WHOLE = "multi_head_attention_forward"
_WEIGHING = frozenset(("softmax", "sigmoid"))
_BEHIND = COPIES | CASTS | {"dropout", "where", "masked_fill", "nan_to_num", "mul", "div"}


@dataclass(frozen=True)
class Attention:
    """One attention as the graph shows it; `weighing` is the call after which weights meet values."""

    site: Site
    node: Node
    query: Value
    key: Value
    value: Value
    products: tuple[Node, ...]
    scores: Scores
    normalizer: str
    mask: Mask
    sizes: tuple[int, int, int, int]
    """Heads, queries, keys, channels of a head."""
    batch: int
    whole: bool = False
    """Whether its linear maps are inside the one call, as in nn.MultiheadAttention."""


def attentions(graph: Graph, sites: tuple[Site, ...]) -> list[Attention]:
    """Every attention that was seen, in execution order."""
    found = []
    for site in sites:
        node = graph.sites.get(site.id)
        if site.kind == "attention" and node is not None:
            if node.name == _WHOLE:
                read = _whole(site, node)
            else:
                read = _by_hand(graph, site, node) if node.name in MATMULS else _fused(graph, site, node)
            if read is not None:
                found.append(read)
    return found


def _by_hand(graph: Graph, site: Site, node: Node) -> Attention | None:
    for weights, values in _ordered(factors(node)):
        weighing = source(weights, _BEHIND)
        if weighing.node.name not in _WEIGHING:
            continue
        scores = read_scores(weighing.node.inputs[0])
        if scores.query is None or scores.key is None or scores.product is None:
            return None
        batch = _batch(graph, scores.product)
        sizes = _sizes(scores, batch)
        mask = Mask(None) if scores.unread else read_mask(scores.terms, sizes[1], sizes[2])
        products = (scores.product, node)
        key, query = scores.key, scores.query
        op = weighing.node.name
        return Attention(site, node, query, key, values, products, scores, op, mask, sizes, batch)
    return None


def _ordered(pair: tuple[Value, ...]) -> list[tuple[Value, Value]]:
    return [(pair[0], pair[1]), (pair[1], pair[0])] if len(pair) == 2 else []


def _batch(graph: Graph, product: Node) -> int:
    """Rows whose scores are made at once: the model's own, or the windows that a picture was cut into."""
    made = product.output.shape
    return made[0] if len(made) > 3 and made[1] > 1 else graph.batch


def _sizes(scores: Scores, batch: int) -> tuple[int, int, int, int]:
    assert scores.query is not None and scores.key is not None and scores.product is not None
    made = scores.product.output.shape
    queries, keys = made[-2], made[-1]
    heads = max(math.prod(made[:-2]) // batch, 1)
    return heads, queries, keys, scores.query.tensor.shape[-1]


def _fused(graph: Graph, site: Site, node: Node) -> Attention | None:
    given = {id(value.tensor): value for value in node.inputs}
    names = ("query", "key", "value")
    tensors = [node.argument(place, name) for place, name in enumerate(names)]
    if any(id(item) not in given for item in tensors):
        return None
    query, key, value = (given[id(item)] for item in tensors)
    heads, queries, dim = math.prod(query.tensor.shape[1:-2]), query.tensor.shape[-2], query.tensor.shape[-1]
    keys = key.tensor.shape[-2]
    given_scale = node.argument(6, "scale") if node.name == "scaled_dot_product_attention" else node.kwargs.get("scale")
    given_scale = "sqrt" if given_scale is None else given_scale
    scores = Scores(query, key, node, scale_factor(given_scale, dim), node.kwargs.get("softcap"))
    scores.sinks = node.kwargs.get("sinks") is not None
    given_mask = node.argument(3, "attn_mask", node.kwargs.get("mask"))
    if given_mask is not None and id(given_mask) in given:
        add_term(scores, given[id(given_mask)])
    mask = read_mask(scores.terms, queries, keys)
    mask = _with_flags(
        mask, bool(node.argument(5, "is_causal") or node.kwargs.get("causal")), node.kwargs.get("window")
    )
    normalizer = node.kwargs.get("normalizer", "softmax")
    sizes = (heads, queries, keys, dim)
    return Attention(site, node, query, key, value, (node,), scores, normalizer, mask, sizes, graph.batch)


def _whole(site: Site, node: Node) -> Attention:
    """F.multi_head_attention_forward: its arguments tell all; queries are (length, batch, width)."""
    given = MULTI_HEAD.bind(*node.args, **node.kwargs)
    given.apply_defaults()
    arguments = given.arguments
    values = {id(value.tensor): value for value in node.inputs}
    query, key, value = (values[id(arguments[name])] for name in ("query", "key", "value"))
    heads = arguments["num_heads"]
    dim = arguments["embed_dim_to_check"] // heads
    scores = Scores(query, key, node, dim**-0.5)
    if arguments["attn_mask"] is not None:
        mask = values[id(arguments["attn_mask"])]
        scores.terms.append((mask, False if mask.tensor.dtype == torch.bool else None))
    sizes = (heads, query.tensor.shape[0], key.tensor.shape[0], dim)
    read = read_mask(scores.terms, *sizes[1:3])
    batch = query.tensor.shape[1] if query.tensor.dim() == 3 else 1
    return Attention(site, node, query, key, value, (node,), scores, "softmax", read, sizes, batch, whole=True)


def _with_flags(mask: Mask, causal: bool, window: int | None) -> Mask:
    visible = mask.visible
    if visible is not None and causal:
        visible = visible.tril()
    return Mask(visible, window if window is not None else mask.window, mask.chunked, mask.bias)


def part(attention: Attention, norms: Norms) -> AttentionPart:
    """The attention as plain data."""
    heads, _, keys, dim = attention.sizes
    scale = _scale(attention, norms)
    key_values, value_values = (_per_token(item, keys * attention.batch) for item in (attention.key, attention.value))
    return AttentionPart(
        layers=1,
        paths=(attention.site.path,),
        kind="self" if _same_origin(attention) else "cross",
        heads=heads,
        key_heads=max(1, key_values // dim) if dim else heads,
        head_dim=dim,
        value_dim=_value_dim(attention),
        scale=scale,
        scale_rule=scale_rule(scale, dim),
        normalizer=attention.normalizer,
        softcap=attention.scores.softcap,
        sinks=attention.scores.sinks,
        causal=attention.mask.causal if _same_origin(attention) else False,
        window=attention.mask.window,
        chunked=attention.mask.chunked,
        qk_norm=_qk_norm(attention, norms),
        positions=_positions(attention),
        rotary_dim=0 if attention.whole else _rotary_dim(attention.query),
        cached_values=key_values + value_values,
        latent_values=_latent(attention, keys * attention.batch, norms),
    )


def scale_rule(scale: float | None, dim: int) -> str:
    """The rule that a scale follows: 1/√d, 1/d, 1, other, or that it was not found."""
    if scale is None:
        return "not found"
    for name, rule in (("1/√d", "sqrt"), ("1/d", "dim"), ("1", "none")):
        if is_close(scale, scale_factor(rule, dim)):  # pyright: ignore[reportArgumentType]
            return name
    return "other"


def _scale(attention: Attention, norms: Norms) -> float | None:
    parts = [attention.scores.scale]
    parts += [] if attention.whole else [factor_on_the_way(item, norms) for item in (attention.query, attention.key)]
    known = [item for item in parts if item is not None]
    return math.prod(known) if len(known) == len(parts) else None


def _per_token(value: Value, length: int) -> int:
    """How many numbers a token has in keys or values, copies for several heads not counted."""
    smallest = value.tensor.numel()
    while value.node.name in COPIES and value.node.inputs and value.node.content:
        value = value.node.inputs[0]
        smallest = min(smallest, value.tensor.numel())
    return smallest // max(length, 1)


def _value_dim(attention: Attention) -> int:
    return attention.sizes[3] if attention.whole else attention.value.tensor.shape[-1]


def _same_origin(attention: Attention) -> bool:
    return attention.sizes[1] == attention.sizes[2]


def _qk_norm(attention: Attention, norms: Norms) -> str:
    found = []
    for item in () if attention.whole else (attention.query, attention.key):
        kinds = [value for value, meaning in way_back(item, norms) if meaning == "norm"]
        found.append(norms.by_end[kinds[0].node.index] if kinds else None)
    query, key = found or (None, None)
    if query is None or key is None:
        return "none"
    reach = "per head" if query.width == attention.sizes[3] else "over all heads"
    return f"{query.kind}, {reach}"


def _positions(attention: Attention) -> tuple[str, ...]:
    found = []
    if not attention.whole and _rotary_dim(attention.query):
        found.append("rotary")
    if attention.mask.bias is not None:
        found.append("alibi" if _is_linear(attention.mask) else "fixed bias")
    if attention.scores.learned:
        found.append("relative bias")
    return tuple(found)


def _is_linear(mask: Mask) -> bool:
    """Whether a bias falls by the same step from key to key."""
    assert mask.bias is not None and mask.visible is not None
    last = mask.bias[:, -1, :]
    steps = last.diff(dim=-1)
    return bool((steps - steps[:, :1]).abs().max() <= 1e-4 * steps.abs().max())


def _rotary_dim(query: Value) -> int:
    """How many channels of a head are turned by positions."""
    turned: dict[int, int] = {}
    waiting, seen = [query], set()
    while waiting:
        value = waiting.pop()
        node = value.node
        if node.index in seen or not node.content or map_at(node) is not None:
            continue
        seen.add(node.index)
        if node.name in ("add", "sub") and len(node.inputs) == 2 and all(_by_position(item) for item in node.inputs):
            turned[node.index] = value.tensor.shape[-1]
        elif node.name in ("mul", "multiply") and value.tensor.is_complex() and _by_position(value):
            turned[node.index] = 2 * value.tensor.shape[-1]
        waiting += node.inputs
    return sum(turned.values())


def _by_position(value: Value) -> bool:
    """Whether a value is a product with something made from positions."""
    node = source(value, CASTS).node
    if node.name != "mul" or len(node.inputs) != 2:
        return False
    other = [item for item in node.inputs if not item.node.content]
    return len(other) == 1 and not other[0].node.weight and other[0].tensor.numel() > 1


def _latent(attention: Attention, keys: int, norms: Norms) -> int | None:
    """Numbers per token from which keys and values can be made again by weights alone, where those are fewer."""
    if attention.whole:
        return None
    value_maps = [item for item, meaning in way_back(attention.value, norms) if meaning == "map"]
    if not value_maps:
        return None
    up = map_at(value_maps[0].node)
    if up is None or not _behind_a_map(up.source, norms, attention.site.path):
        return None
    rest = _rest_of_keys(attention.key, up.node, keys)
    total = up.width_in + rest
    full = _per_token(attention.key, keys) + _per_token(attention.value, keys)
    return total if total < full else None


def _behind_a_map(value: Value, norms: Norms, module: str) -> bool:
    """Whether a value comes out of another map in the same module, by way of copies and norms alone."""
    for _ in range(16):
        if map_at(value.node) is not None:
            return value.node.path.startswith(module)
        norm = norms.around(value)
        if norm is not None:
            value = norm.source
        elif value.node.name in COPIES and value.node.content:
            value = value.node.inputs[0]
        else:
            return False
    return False


def _rest_of_keys(key: Value, up: Node, keys: int) -> int:
    """Numbers per token in the parts of keys that do not come from this map."""
    parts, waiting = [], [source(key)]
    while waiting:
        joined = waiting.pop()
        if joined.node.name in JOINS:
            waiting += [source(item) for item in joined.node.inputs if item.node.content]
            parts += [item for item in joined.node.inputs if item.node.content and source(item).node.name not in JOINS]
    return sum(_per_token(item, keys) for item in parts if source(item).node is not up)
