"""Parameters, multiplications and cached numbers, each claimed by the part of the model that it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import nn

from ...description import PARTS, AttentionPart, Cost, Costs
from ...schema import Site, clean_name
from ...tracing.functions import CONVOLUTIONS
from .attention import Attention
from .blocks import Blocks, junctions, within
from .feedforward import FeedForward
from .graph import Graph, Node, Value, ancestors, source
from .maps import PRODUCTS_OF_MATRICES, Map, Norms, contraction, factors, map_at

_FIRST_CLAIM = ("embedding", "positions", "norms", "router", "head", "recurrence", "attention", "feed-forward")
_MOST_NAMED = 3  # modules in one note


@dataclass(frozen=True)
class Anatomy:
    """All that was read of a graph before anything is counted.

    lengths: of the rows that ran, the main one first. choices: (experts, how many are chosen) by the path of their
    router.
    """

    graph: Graph
    norms: Norms
    sites: tuple[Site, ...]
    attentions: Sequence[Attention]
    feedforwards: Sequence[FeedForward]
    head: Map | None
    choices: dict[str, tuple[int, int]]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.lengths[0]

    def rows_of(self, node: Node) -> int:
        """The length of the row that a call worked on: an encoder's and a decoder's differ, and both are primes."""
        rows = node.output.numel() // max(node.output.shape[-1], 1)
        return next((length for length in self.lengths if rows % length == 0), self.tokens)

    @cached_property
    def blocks(self) -> Blocks:
        return Blocks(self.sites)

    @cached_property
    def junctions(self) -> frozenset[int]:
        """The calls that add a branch to the residual stream."""
        return junctions(self.graph, self.norms, self.blocks)

    def block_of(self, path: str) -> str | None:
        """The path of the innermost block around a path."""
        return self.blocks.around(path)

    def choice_for(self, found: FeedForward) -> tuple[int, int]:
        """How many experts a feed-forward has and through how many of them a token goes; 0, 0 where it has none."""
        experts = _stacked(self.graph, found.leading_in[0])
        if not experts:
            return 0, 0
        block = self.block_of(found.path) or ""
        chosen = [k for path, (count, k) in self.choices.items() if count == experts and within(path, block)]
        return experts, max(chosen, default=0)


def claims(anatomy: Anatomy) -> dict[int, str]:
    """The part that each call belongs to, by the call's index; what nobody claims is other."""
    found: dict[str, set[int]] = {part: set() for part in PARTS}
    found["norms"] = set(anatomy.norms.nodes)
    for node in anatomy.graph.nodes:
        if node.name == "embedding":
            found["embedding" if node.content else "positions"].add(node.index)
    recurrent = [site.path for site in anatomy.sites if site.kind == "recurrence"]
    found["recurrence"] = {node.index for node in anatomy.graph.nodes if any(within(node.path, p) for p in recurrent)}
    found["router"] = {node.index for node in anatomy.graph.nodes if _routes(node, anatomy)}
    if anatomy.head is not None:
        found["head"] = _before_head(anatomy, anatomy.head)
    for attention in anatomy.attentions:
        values = [attention.query, attention.key, attention.value, *attention.scores.learned]
        starts = [*values, *(value for item in attention.products for value in item.inputs)]
        found["attention"] |= _region(anatomy, attention.site.path, starts, attention.node)
    for item in anatomy.feedforwards:
        starts = [each.node.value for each in item.leading_in] + list(item.middle.inputs)
        found["feed-forward"] |= _region(anatomy, item.path, starts, item.middle)
    return {index: part for part in reversed(_FIRST_CLAIM) for index in found[part]}


def _before_head(anatomy: Anatomy, head: Map) -> set[int]:
    """The head, and what lies between the last block and it."""
    nodes = [value.node for value in ancestors([head.node.value], lambda value: _in_a_block(anatomy, value.node))]
    return {node.index for node in nodes if node.inputs and not _in_a_block(anatomy, node)}


def _in_a_block(anatomy: Anatomy, node: Node) -> bool:
    return not node.inputs or anatomy.block_of(node.path) is not None


def _region(anatomy: Anatomy, path: str, starts: list[Value], middle: Node) -> set[int]:
    """The calls of a branch: back to the residual stream, on to where the branch joins it, never out of its block."""
    block = anatomy.block_of(path)

    def outside(node: Node) -> bool:
        return node.index in anatomy.junctions or (
            block is not None and bool(node.path) and not within(node.path, block)
        )

    back = [value.node for value in ancestors(starts, lambda value: _is_leaf(value.node) or outside(value.node))]
    found = {node.index for node in back if not outside(node)} | {middle.index}
    waiting = [middle]
    while waiting:
        for child in anatomy.graph.children(waiting.pop()):
            if child.index not in found and child.content and not outside(child):
                found |= {child.index, *_making(child)}
                waiting.append(child)
                if child.name in ("mul", "gated"):  # what gates the branch belongs to it
                    gates = ancestors(list(child.inputs), lambda value: _is_leaf(value.node) or outside(value.node))
                    found |= {value.node.index for value in gates if not outside(value.node)}
    return found


def _is_leaf(node: Node) -> bool:
    return not node.inputs or node.name == "embedding"


def _making(node: Node) -> set[int]:
    """The calls that prepare the weights of a call."""
    weights = [value for value in node.inputs if value.node.weight]
    return {value.node.index for value in ancestors(weights, lambda value: False) if value.node.inputs}


def _routes(node: Node, anatomy: Anatomy) -> bool:
    found = map_at(node)
    return found is not None and any(
        found.width_out == experts and within(node.path, path) for path, (experts, _) in anatomy.choices.items()
    )


def costs(
    anatomy: Anatomy,
    model: nn.Module,
    belonging: dict[int, str],
    parts: Sequence[AttentionPart],
    context: int,
    size: int,
) -> Costs:
    """What each part has and does.

    belonging: the part of each call. parts: the attentions as data. size: bytes of a cached number.
    """
    attention_flops = sum(part.layers * _attention_flops(part, context) for part in parts)
    flops = _flops(anatomy, belonging)
    flops["attention"] = flops.get("attention", 0.0) + attention_flops
    total, active = _parameters(anatomy, model, parts_of(anatomy, belonging))
    cached = [part for part in parts if part.kind == "self" and part.causal is not False]
    latent = [part.latent_values or part.cached_values for part in cached]
    any_latent = any(part.latent_values for part in cached)
    return Costs(
        parts=tuple(
            Cost(part=part, parameters=total.get(part, 0), active=active.get(part, 0), flops=flops.get(part, 0.0))
            for part in PARTS
            if total.get(part) or flops.get(part)
        ),
        context=context,
        attention_flops=attention_flops,
        cached_bytes=size * sum(part.layers * part.cached_values for part in cached),
        context_bytes=size * sum(part.layers * part.cached_values * _keys_seen(part, context) for part in cached),
        latent_bytes=size * sum(p.layers * n for p, n in zip(cached, latent, strict=True)) if any_latent else None,
    )


def _attention_flops(part: AttentionPart, context: int) -> float:
    return 2.0 * part.heads * (part.head_dim + part.value_dim) * _keys_seen(part, context)


def _keys_seen(part: AttentionPart, context: int) -> int:
    return context if part.window is None else min(context, part.window)


def _flops(anatomy: Anatomy, belonging: dict[int, str]) -> dict[str, float]:
    """Per token and part, without attention's own products; the maps of experts count for those that are chosen."""
    apart = {node.index for attention in anatomy.attentions for node in attention.products}
    found: dict[str, float] = {}
    for node in anatomy.graph.nodes:
        if node.name == "multi_head_attention_forward":
            maps = [value.tensor for value in node.inputs if value.node.weight and value.tensor.dim() == 2]
            found["attention"] = found.get("attention", 0.0) + 2.0 * sum(item.numel() for item in maps)
        if node.index in apart or node.name not in PRODUCTS_OF_MATRICES or not node.content:
            continue
        part = belonging.get(node.index, "other")
        amount = 2.0 * node.output.numel() * contraction(node) / anatomy.rows_of(node)
        found[part] = found.get(part, 0.0) + amount * _share_that_runs(anatomy, node)
    return found


def _share_that_runs(anatomy: Anatomy, node: Node) -> float:
    """Below 1 where a model runs every expert on every token and then weighs most of them with 0."""
    found = map_at(node)
    if found is None or node.output.dim() < 3:
        return 1.0
    experts = _stacked(anatomy.graph, found)
    if not experts or node.output.shape[0] != experts:
        return 1.0
    chosen = _chosen(anatomy, node.path, experts)
    return chosen / experts if chosen else 1.0


def _chosen(anatomy: Anatomy, path: str, experts: int) -> int:
    block = anatomy.block_of(path) or ""
    return max((k for at, (count, k) in anatomy.choices.items() if count == experts and within(at, block)), default=0)


def _stacked(graph: Graph, found: Map) -> int:
    """How many matrices the weights of a map are a stack of; 0 where they are none."""
    if found.node.name in CONVOLUTIONS:
        return 0
    for value in factors(found.node):
        if value.node.weight:
            leaf = source(value).node
            if leaf.name == "parameter" and leaf.output.dim() == 3:
                return leaf.output.shape[0]
    return 0


def parts_of(anatomy: Anatomy, belonging: dict[int, str]) -> dict[str, str]:
    """The part of each parameter that is read, by its name: the first part that reads it."""
    readers: dict[str, list[str]] = {}
    for node in anatomy.graph.nodes:
        if node.name != "parameter" and node.index in belonging:
            for value in node.inputs:
                for name in value.node.weight:
                    readers.setdefault(name, []).append(belonging[node.index])
    return {name: min(parts, key=_FIRST_CLAIM.index) for name, parts in readers.items()}


def _parameters(anatomy: Anatomy, model: nn.Module, owners: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters by part, in all and for one token; each counts once, and for a token only what its run has read."""
    shares, read = _expert_shares(anatomy), _read(anatomy)
    total: dict[str, int] = {}
    active: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        path = clean_name(name)
        part = owners.get(path, "other")
        share = shares.get(path, 1.0) if part == "feed-forward" else 1.0
        total[part] = total.get(part, 0) + parameter.numel()
        active[part] = active.get(part, 0) + (round(parameter.numel() * share) if path in read else 0)
    return total, active


def _read(anatomy: Anatomy) -> frozenset[str]:
    """The names of the parameters that some call took."""
    calls = [node for node in anatomy.graph.nodes if node.name != "parameter"]
    return frozenset(name for node in calls for value in node.inputs for name in value.node.weight)


def unread(anatomy: Anatomy, model: nn.Module) -> tuple[str, ...]:
    """A note on the modules of which the run has read no parameter, as a tower for pictures beside a row of tokens."""
    read = _read(anatomy)
    known = {prefix for name in read for prefix in _prefixes(name)}
    missing: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        path = clean_name(name)
        if path not in read:
            missing[next(prefix for prefix in _prefixes(path) if prefix not in known)] += parameter.numel()
    if not missing:
        return ()
    shown = ", ".join(name for name, _ in missing.most_common(_MOST_NAMED))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return (f"not read in this run, and counted as other: the parameters of {shown}{more}",)


def _prefixes(name: str) -> Iterator[str]:
    return accumulate(name.split("."), "{}.{}".format)


def _expert_shares(anatomy: Anatomy) -> dict[str, float]:
    """By parameter, the share of a stack of experts that one token goes through; biases are stacked as well."""
    stacks: dict[int, list[Node]] = {}
    for node in anatomy.graph.nodes:
        if node.name == "parameter" and node.output.dim() >= 2:
            stacks.setdefault(node.output.shape[0], []).append(node)
    shares: dict[str, float] = {}
    for found in anatomy.feedforwards:
        experts, chosen = anatomy.choice_for(found)
        if chosen:
            inside = [node for node in stacks[experts] if within(node.path, found.path)]
            shares |= {node.path: chosen / experts for node in inside}
    return shares
