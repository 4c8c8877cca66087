"""Feed-forwards: which matrices lead into an activation or a gate, and which lead out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...description import FeedForwardPart
from ...schema import Site
from .graph import Graph, Node, Value, ancestors
from .maps import Map, map_at, nearest_maps, next_maps

_FUSED_GATES = frozenset(("gated", "clamped_swiglu", "glu"))


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward: the maps that lead in and out, and the call in the middle whose result has d_ff channels.

    site: of its activation, None where a gate has none.
    """

    path: str
    activation: str
    gate: str
    site: Site | None
    middle: Node
    leading_in: tuple[Map, ...]
    leading_out: tuple[Map, ...]

    @property
    def d_ff(self) -> int:
        return self.middle.output.shape[-1]

    @property
    def d_model(self) -> int:
        return self.leading_in[0].width_in

    @property
    def matrices(self) -> int:
        return round(sum(item.width_out for item in self.leading_in) / self.d_ff) + len(self.leading_out)


def feedforwards(graph: Graph, sites: tuple[Site, ...], stop: Callable[[Node], bool]) -> list[FeedForward]:
    """Every feed-forward inside a block, in execution order. stop: calls of attention, which none has inside."""
    kinds = {site.path for site in sites if site.kind == "recurrence"}
    found, gated = [], set()
    for site in sites:
        node = graph.sites.get(site.id)
        if site.kind == "gate" and node is not None and site.path not in kinds:
            activation = _activation_before(graph, node, site)
            gated |= {index for index, _ in activation}
            applied = activation[0][1] if activation else None
            found.append(_read(graph, site.path, applied, site.op, node, list(node.inputs), stop))
    for place, (site, before, after) in enumerate(graph.activations):
        if place not in gated and site.path not in kinds:
            found.append(_read(graph, site.path, site, "", after.node, [before], stop))
    whole = [item for item in found if item is not None]
    return sorted(whole, key=lambda item: item.middle.index)


def _activation_before(graph: Graph, gate: Node, site: Site) -> list[tuple[int, Site]]:
    """Which activations go into a gate: (place in the graph's list, site)."""
    if gate.name in _FUSED_GATES:
        return [(place, found) for place, (found, _, _) in enumerate(graph.activations) if found.path == site.path]
    made = {value.node.index for value in ancestors(list(gate.inputs), lambda value: map_at(value.node) is not None)}
    return [(place, found) for place, (found, _, after) in enumerate(graph.activations) if after.node.index in made]


def _read(
    graph: Graph,
    path: str,
    activation: Site | None,
    gate: str,
    middle: Node,
    before: list[Value],
    stop: Callable[[Node], bool],
) -> FeedForward | None:
    met: list[Value] = []

    def elsewhere(value: Value) -> bool:
        met.extend([value] if stop(value.node) else [])
        return stop(value.node)

    leading_in = tuple(nearest_maps(before, elsewhere))
    leading_out = tuple(next_maps(graph, middle, stop))
    if met or not leading_in or not leading_out or middle.output.dim() == 0:
        return None
    widths = {item.width_in for item in leading_in}
    if len(widths) != 1 or {item.width_in for item in leading_out} != {middle.output.shape[-1]}:
        return None
    op = activation.op if activation is not None else "identity"
    return FeedForward(path, op, gate, activation, middle, leading_in, leading_out)


def part(found: FeedForward, experts: int, active: int) -> FeedForwardPart:
    """The feed-forward as plain data."""
    return FeedForwardPart(
        layers=1,
        paths=(found.path,),
        kind="gated" if found.gate else "plain",
        activation=found.activation,
        gate=found.gate,
        matrices=found.matrices,
        d_model=found.d_model,
        d_ff=found.d_ff,
        experts=experts,
        active=active,
    )
