"""An architecture as a person reads it: what it is in one line, its parts, what they cost, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ..description import AttentionPart, Cost, Costs, Description, FeedForwardPart
from ..schema import SEVERITIES, Document, Finding, printable
from .places import compress
from .quantities import count, digits, number, share
from .table import Cell, Table
from .terminal import WIDTH, drawn
from .text import render_findings

_UNITS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def render(
    document: Document, *, width: int | None = None, color: bool = False, new: Collection[Finding] | None = None
) -> str:
    """The whole description. width: columns, 80 if None; color: with terminal escapes; new: findings to mark as new."""
    assert isinstance(document, Description)
    width = width or WIDTH
    sections: list[RenderableType] = [_conclusion(document), _parts(document), _costs(document.costs).draw()]
    sections.append(_closing_costs(document))
    body = drawn(sections, width, color).rstrip("\n")
    findings = render_findings(document, width=width, color=color, new=new).rstrip("\n")
    closing = _closing(document)
    return "\n\n".join(part for part in (body, findings, closing) if part) + "\n"


def _conclusion(document: Description) -> Text:
    costs = document.costs
    size = f"{_scaled(costs.parameters)} parameters"
    if costs.active is not None and _scaled(costs.active) != _scaled(costs.parameters):
        size += f", {_scaled(costs.active)} of them for one token"
    depth = f"{count(document.depth, 'block')}" + (f" of width {document.d_model:,}" if document.d_model else "")
    first = next(iter(document.feedforwards), None)
    made = f", {_form(first)}" if first else ""
    attended = document.attentions[0] if document.attentions else None
    scale = ""
    if attended and attended.scale is not None:
        scale = (
            f", attention scaled by {number(attended.scale) if attended.scale_rule == 'other' else attended.scale_rule}"
        )
    line = f"{document.model.class_name}: {size}; {depth}{made}{scale}"
    return Text(printable(line), "bold")


def _parts(document: Description) -> Group:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, text in _rows(document):
        grid.add_row(label, Text(printable(text)))
    return Group(grid)


def _rows(document: Description) -> Iterator[tuple[str, str]]:
    yield "source", document.source
    for part in document.attentions:
        yield "attention", _attention(part)
    if not document.attentions:
        yield "attention", "none found"
    for part in document.feedforwards:
        yield "feed-forward", _feedforward(part)
    if not document.feedforwards:
        yield "feed-forward", "none found"
    recurrences = [site.path for site in document.sites if site.kind == "recurrence"]
    if recurrences:
        yield "recurrence", f"{count(len(recurrences), 'place')}: {', '.join(compress(recurrences))}"
    norm = document.norm if document.placement in ("none", document.norm) else f"{document.norm}, {document.placement}"
    yield "norm", norm
    yield "positions", ", ".join(document.positions) or "none found"
    yield "head", _head(document)
    for note in document.notes:
        yield "note", note


def _attention(part: AttentionPart) -> str:
    seen = {True: "causal", False: "sees both sides", None: "mask not found"}[part.causal]
    kind = f"{part.kind}, {seen}" if part.kind == "self" else part.kind
    if part.window is not None:
        kind += f", {'chunks of' if part.chunked else 'window'} {part.window:,}"
    heads = f"{count(part.heads, 'head')} of {part.head_dim}"
    if part.value_dim != part.head_dim:
        heads += f" (values {part.value_dim})"
    if part.key_heads != part.heads:
        heads += f", {part.key_heads} for keys and values"
    scale = "scale not found" if part.scale is None else f"scale {number(part.scale)}"
    scale += f" = {part.scale_rule}" if part.scale is not None and part.scale_rule != "other" else ""
    extras = [
        f"soft-cap {number(part.softcap)}" if part.softcap is not None else "",
        "learned sinks" if part.sinks else "",
        f"{part.normalizer} over keys" if part.normalizer != "softmax" else "",
        f"queries and keys normalised ({part.qk_norm})" if part.qk_norm != "none" else "",
        f"{part.rotary_dim} of {part.head_dim} channels rotary" if part.rotary_dim else "",
        *(name for name in part.positions if name != "rotary"),
        f"latent of {part.latent_values} per token" if part.latent_values else "",
    ]
    return "; ".join([f"{part.layers} × {kind}", heads, scale, *filter(None, extras)])


def _form(part: FeedForwardPart) -> str:
    return f"gated feed-forward ({part.gate})" if part.gate else f"{part.activation} feed-forward"


def _feedforward(part: FeedForwardPart) -> str:
    experts = (
        f"{part.experts} experts, {part.active or 'an unknown number'} for one token, each " if part.experts else ""
    )
    form = f"{experts}{_form(part)}, activation {part.activation}" if part.gate else f"{experts}{_form(part)}"
    even = "" if part.experts else {2: "4", 3: "8/3"}.get(part.matrices, "")
    parity = f" ({number(part.parity)} of parity, {even}·d)" if even else ""
    ratio = f"d_ff {part.d_ff:,} = {number(part.ratio)}·d{parity}"
    return f"{part.layers} × {form}; {count(part.matrices, 'matrix', 'matrices')}; {ratio}"


def _head(document: Description) -> str:
    head = document.head
    if not head.outputs:
        return "none found"
    tied = "tied to the embedding" if head.tied else "not tied"
    extras = ["bias"] if head.bias else []
    extras += [f"soft-cap {number(head.softcap)}"] if head.softcap is not None else []
    return ", ".join([f"{head.outputs:,} classes", tied, *extras])


def _costs(costs: Costs) -> Table:
    total = Cost(part="all", parameters=costs.parameters, active=costs.active, flops=costs.flops)
    shown = [*costs.parts, total]
    heads = [("parameters", "all"), ("parameters", "share"), ("parameters", "one token"), ("FLOPs", "per token")]
    heads.append(("FLOPs", "share"))
    return Table("part", [Cell(item.part) for item in shown], heads, [_cells(item, costs) for item in shown])


def _cells(item: Cost, costs: Costs) -> Sequence[Cell]:
    parts = share(item.parameters / costs.parameters) if costs.parameters else ""
    flops = share(item.flops / costs.flops) if costs.flops and item.flops is not None else ""
    texts = (_scaled(item.parameters), parts, _scaled(item.active), _scaled(item.flops), flops)
    return [Cell(text) for text in texts]


def _closing_costs(document: Description) -> Text:
    costs = document.costs
    lines = []
    if costs.flops is not None:
        products = f"(of it {_scaled(costs.attention_flops)} scores and weights)"
        lines.append(
            f"FLOPs: one token of a forward pass that sees {costs.context:,} keys {products}; training takes about "
            f"three times as many, {_scaled(costs.training_flops)}"
        )
    if costs.cached_bytes:
        latent = f"; as latents {_in_bytes(costs.latent_bytes)}" if costs.latent_bytes else ""
        whole = _in_bytes(costs.context_bytes)
        lines.append(
            f"KV cache: {_in_bytes(costs.cached_bytes)} per token in {document.model.dtype}{latent}; "
            f"{whole} for {costs.context:,} tokens"
        )
    if document.method == "shrunk":
        lines.append("seen on a small instance of the same config; parameters are counted on the whole one")
    return Text("\n".join(lines))


def _closing(document: Description) -> str:
    found = Counter(finding.severity for finding in document.findings)
    plurals = {"error": "errors", "warning": "warnings", "info": "info"}
    parts = [count(found[severity], severity, plurals[severity]) for severity in SEVERITIES if found[severity]]
    passed = sum(status.status == "pass" for status in document.rules)
    return f"{', '.join(parts) or 'no findings'}; {count(passed, 'rule')} passed"


def _scaled(value: float | None) -> str:
    """405.9 G as three digits and a letter; 0 as 0, None as a question mark."""
    if value is None:
        return "?"
    for size, letter in _UNITS:
        if value >= size:
            return f"{digits(value / size)} {letter.replace('G', 'B') if isinstance(value, int) else letter}"
    return f"{value:,.0f}"


def _in_bytes(size: int) -> str:
    for unit, name in _BYTES:
        if size >= unit:
            return f"{number(size / unit)} {name}"
    return f"{size} bytes"
