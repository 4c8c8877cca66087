"""From a subject to a description: run it once, read the graph, count, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from torch import Tensor

from ...description import NOT_FOUND, AttentionPart, HeadPart
from ...diagnosis import judge_readings
from ...errors import EvenkeelError, ModelError, NothingMeasuredError
from ...precision import FORMATS
from ...schema import DataInfo, Reading, Site, clean_name, in_one_line
from ...settings import Settings
from ...tracing.events import Event, RouterEvent
from ...tracing.provenance import tensors_in
from ...tracing.structure import Structure
from ...watching import model_info
from . import attention, feedforward
from .blocks import Blocks
from .counting import Anatomy, claims, costs, parts_of, unread
from .graph import COPIES, Graph, Node, Recorder, Value, ancestors
from .maps import Map, Norm, Norms, map_at, nearest_maps
from .scores import scalar_factor
from .shrinking import enlarged, shrunk
from .subjects import Subject

DEFAULT_CONTEXT = 4096
"""Keys that attention is counted at where the config allows as many."""


def assemble(subject: Subject, context: int | None, settings: Settings | None = None) -> dict[str, Any]:
    """The fields of a description, from a run on shapes alone, else from one of a small instance with values."""
    try:
        fields, _ = _assemble(subject, context, settings)
    except EvenkeelError:
        raise
    except Exception as error:  # a model may ask for any value, and fail in any way where there is none
        small = shrunk(subject, error)
        try:
            fields, owners = _assemble(small, context, settings)
        except Exception as second:
            name = clean_name(subject.name)
            raise ModelError(
                f"{name} cannot be run on shapes alone ({in_one_line(error)}), nor as a small instance: "
                f"{in_one_line(second)}; check its config"
            ) from second
        fields = enlarged(fields, owners, small.model, subject.model)
    return fields


def _assemble(
    subject: Subject, context: int | None, settings: Settings | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields, and the part that each parameter belongs to."""
    graph, sites, output, choices = record(subject)
    norms = Norms(graph)
    found = attention.attentions(graph, sites)
    products = {node.index for item in found for node in item.products}
    fed = feedforward.feedforwards(graph, sites, lambda node: node.index in products)
    head, capped = _head(graph, output)
    if not (found or fed or head or any(site.kind == "recurrence" for site in sites)):
        raise NothingMeasuredError(
            f"no attention, feed-forward, recurrence or head was found in {clean_name(subject.name)}; is it a "
            "transformer, and do its inputs reach its layers?"
        )
    lengths = _lengths(subject, found)
    anatomy = Anatomy(graph, norms, sites, found, _in_blocks(fed, sites), head, choices, lengths)
    each = [attention.part(item, norms) for item in found]
    parts = _grouped(each)
    feeding = _grouped([feedforward.part(item, *anatomy.choice_for(item)) for item in anatomy.feedforwards])
    info = model_info(subject.model)
    dtype = subject.dtype or (info.dtype if info.dtype in FORMATS else "float32")
    belonging = claims(anatomy)
    counted = costs(anatomy, subject.model, belonging, parts, _context(subject, context), FORMATS[dtype].bytes)
    norm, placement = _norms(anatomy)
    numbers = [*_scales(found, each), *_shapes(anatomy)]
    shown = tuple(site for site in sites if site.kind != "module")
    data = DataInfo(source="no data: shapes alone", kind="given")
    judgement = judge_readings(shown, numbers, (), info, data, settings)
    fields = {
        "tool": f"evenkeel {version('evenkeel')}",
        "model": replace(info, parameters=counted.parameters, dtype=dtype, device="none"),
        "data": data,
        "sites": shown,
        "readings": tuple(numbers),
        "findings": judgement.findings,
        "rules": judgement.statuses,
        "notes": (*subject.notes, *unread(anatomy, subject.model), *judgement.notes),
        "source": subject.name,
        "method": "shapes",
        "depth": sum(site.kind == "residual" for site in sites),
        "d_model": _d_model(anatomy),
        "norm": norm,
        "placement": placement,
        "positions": _positions(anatomy, parts),
        "attentions": tuple(parts),
        "feedforwards": tuple(feeding),
        "head": HeadPart(
            outputs=head.width_out if head else 0,
            tied=head is not None and _is_tied(graph, head),
            bias=head is not None and any(value.tensor.dim() == 1 for value in head.node.inputs if value.node.weight),
            softcap=capped,
        ),
        "costs": counted,
    }
    return fields, parts_of(anatomy, belonging)


def record(subject: Subject) -> tuple[Graph, tuple[Site, ...], Any, dict[str, tuple[int, int]]]:
    """Run the model once: its graph, its sites, what it returned, and its routers' choices."""
    choices: dict[str, tuple[int, int]] = {}

    def observe(site: Site, event: Event) -> None:
        if isinstance(event, RouterEvent):
            choices[site.path] = (event.experts, event.chosen.shape[-1])

    recorder = Recorder(Structure(subject.model), observe, subject.values)
    recorder.graph.enter(subject.inputs)
    with subject.running(), recorder:
        given = subject.inputs
        output = subject.model(**given) if isinstance(given, dict) else subject.model(*given)
    for node in recorder.graph.nodes:
        k = node.argument(1, "k") if node.name == "topk" else None
        if isinstance(k, int):
            choices.setdefault(node.path, (node.inputs[0].tensor.shape[-1], k))
    return recorder.graph, recorder.sites, output, choices


def _in_blocks(found: Sequence[feedforward.FeedForward], sites: Sequence[Site]) -> list[feedforward.FeedForward]:
    """Those with all their maps in one block; all of them where a model has no blocks."""
    blocks = Blocks(sites)

    def inside(item: feedforward.FeedForward) -> bool:
        block = blocks.around(item.path)
        maps = (*item.leading_in, *item.leading_out)
        return block is not None and all(blocks.around(each.node.path) == block for each in maps)

    return [item for item in found if inside(item)] if blocks.paths else list(found)


def _grouped(parts: list[Any]) -> list[Any]:
    """Parts that are alike but for their place, as one."""
    found: dict[Any, list[Any]] = {}
    for part in parts:
        found.setdefault(replace(part, paths=(), layers=1), []).append(part)
    return [
        replace(key, layers=len(items), paths=tuple(path for item in items for path in item.paths))
        for key, items in found.items()
    ]


def _context(subject: Subject, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    return min(subject.context, DEFAULT_CONTEXT) or DEFAULT_CONTEXT


def _lengths(subject: Subject, found: Sequence[attention.Attention]) -> tuple[int, ...]:
    given = subject.inputs if isinstance(subject.inputs, dict) else {}
    ids = [given[name].numel() for name in ("input_ids", "decoder_input_ids") if isinstance(given.get(name), Tensor)]
    if ids or not found:
        first = next(iter(tensors_in(subject.inputs)))
        return tuple(ids) or (max(first.numel() // first.shape[-1], 1),)
    return (found[0].sizes[1] * found[0].batch,)


def _head(graph: Graph, output: Any) -> tuple[Map | None, float | None]:
    """The map that made the logits, and the cap behind it."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        return None, None
    value, factor, cap = graph.value(logits), 1.0, None
    for _ in range(16):
        found = map_at(value.node)
        if found is not None:
            return found, cap
        content = [item for item in value.node.inputs if item.node.content]
        if not content:
            return None, None
        if value.node.name in ("mul", "div"):
            factor *= scalar_factor(value.node) or 1.0
        elif value.node.name == "tanh":
            cap = factor
        value = content[0]
    return None, None


def _is_tied(graph: Graph, head: Map) -> bool:
    embedded = {name for node in graph.nodes if node.name == "embedding" for v in node.inputs for name in v.node.weight}
    return bool(head.weights & embedded)


def _d_model(anatomy: Anatomy) -> int:
    widths = Counter(item.d_model for item in anatomy.feedforwards)
    if anatomy.head is not None:
        widths[anatomy.head.width_in] += 1
    return widths.most_common(1)[0][0] if widths else 0


def _norms(anatomy: Anatomy) -> tuple[str, str]:
    """Kind and place of the norms around the branches of blocks."""
    kinds: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for starts, middle in _branches(anatomy):
        before = _norm_before(anatomy, starts)
        after = _norm_after(anatomy, middle)
        kinds.update(item.kind for item in (before, after[0]) if item is not None)
        places[_placement(before, *after)] += 1
    if not places:
        return NOT_FOUND, NOT_FOUND
    return (kinds.most_common(1)[0][0] if kinds else "none"), places.most_common(1)[0][0]


def _branches(anatomy: Anatomy) -> list[tuple[list[Value], Node]]:
    found = [([item.query, item.key], item.node) for item in anatomy.attentions]
    return found + [([each.node.value for each in item.leading_in], item.middle) for item in anatomy.feedforwards]


def _placement(before: Norm | None, after: Norm | None, joined: bool) -> str:
    """joined: whether the norm after a branch comes behind the sum with the residual stream."""
    if after is not None and joined:
        return "post"
    if before is not None:
        return "sandwich" if after is not None else "pre"
    return "output" if after is not None else "none"


def _norm_before(anatomy: Anatomy, starts: list[Value]) -> Norm | None:
    """The norm through which a branch reads the residual stream: the last one before the stream on the way back."""
    width = _d_model(anatomy)
    found = None
    behind = [item.source for item in nearest_maps(starts, lambda value: False)]
    for value in ancestors(behind, lambda item: item.node.index in anatomy.junctions or item.node.name == "embedding"):
        norm = anatomy.norms.around(value)
        if norm is not None and norm.width == width:
            found = norm
    return found


def _norm_after(anatomy: Anatomy, middle: Node) -> tuple[Norm | None, bool]:
    """The norm behind a branch's last map, and whether the branch had joined the stream before it."""
    width = _d_model(anatomy)
    starting = {norm.source.node.index: norm for norm in anatomy.norms.by_end.values() if norm.width == width}
    waiting, seen = [middle], set()
    while waiting:
        node = waiting.pop(0)
        for child in anatomy.graph.children(node):
            if child.index in seen or not child.content or child.name == "detach":
                continue
            seen.add(child.index)
            if child.index in starting and child.index not in anatomy.junctions:
                return starting[child.index], False
            if child.index in anatomy.junctions:
                return _post(anatomy, child, starting)
            waiting.append(child)
    return None, False


def _post(anatomy: Anatomy, junction: Node, starting: dict[int, Norm]) -> tuple[Norm | None, bool]:
    """A norm right behind the sum, if the stream goes on through it alone."""
    norm = starting.get(junction.index)
    if norm is None:
        return None, False
    onward = any(_carries_on(anatomy, child, norm) for child in anatomy.graph.children(junction))
    return (None, False) if onward else (norm, True)


def _carries_on(anatomy: Anatomy, node: Node, norm: Norm, steps: int = 4) -> bool:
    """Whether a call takes the stream to its next sum, by way of copies and scalings."""
    if node.index in anatomy.junctions:
        return True
    if node.index in norm.nodes or not node.content or node.name not in COPIES | {"mul", "div"} or not steps:
        return False
    return any(_carries_on(anatomy, child, norm, steps - 1) for child in anatomy.graph.children(node))


def _positions(anatomy: Anatomy, parts: Sequence[AttentionPart]) -> tuple[str, ...]:
    """What tells tokens their places: sums before the first block, and what the attentions have."""
    sums = [node for node in anatomy.graph.nodes if node.name == "add" and node.content and _is_early(anatomy, node)]
    found = [_table(anatomy, value) for node in sums for value in node.inputs if not value.node.content]
    return tuple(dict.fromkeys([*filter(None, found), *(name for part in parts for name in part.positions)]))


def _is_early(anatomy: Anatomy, node: Node) -> bool:
    return node.output.dim() > 1 and anatomy.block_of(node.path) is None


def _table(anatomy: Anatomy, value: Value) -> str:
    """Whether a summand has a row per token: of a trained table that is long enough, or made by a formula."""
    shape = value.tensor.shape
    if len(shape) < 2 or shape[-2] not in anatomy.lengths:
        return ""
    leaves = [item.node for item in ancestors([value], lambda item: False) if item.node.name == "parameter"]
    if not leaves:
        return "fixed"
    return "learned" if any(max(leaf.output.shape[:-1], default=0) >= shape[-2] for leaf in leaves) else ""


def _scales(found: Sequence[attention.Attention], parts: Sequence[AttentionPart]) -> Iterator[Reading]:
    """Readings of attention sites, named as the attention instrument names them."""
    for item, part in zip(found, parts, strict=True):
        if part.scale is not None:
            yield _number(item.site, "score_scale", part.scale, "1")
            yield _number(item.site, "head_dim", part.head_dim, "channels")


def _shapes(anatomy: Anatomy) -> Iterator[Reading]:
    """Readings of the activations of feed-forwards, named as the activation instrument names them."""
    for item in anatomy.feedforwards:
        if item.site is not None:
            yield _number(item.site, "channels", item.d_ff, "count")
            yield _number(item.site, "fan_in", item.d_model, "count")


def _number(site: Site, stat: str, value: float, unit: str) -> Reading:
    return Reading(site=site.id, step=0, phase="forward", stat=stat, values=(float(value),), unit=unit)
