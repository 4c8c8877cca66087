"""Pointwise calls: when they make an activation, when a product is a gate, and when a sum carries a recurrence on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..facts import FACTS
from ..functional import ACTIVATIONS, CLAMPED_AT
from . import exponentials, norms
from .call import Call
from .events import ActivationEvent, GateEvent
from .expressions import AFFINE, UNKNOWN, Cut, Node, compose, on_a_copy
from .frames import Frame
from .functions import AFFINE as AFFINE_CALLS
from .functions import ANCHORS, PRODUCTS
from .provenance import Candidate, Normalised, Tag, same_values, spacing
from .trace import Trace

_RECURRENT_FROM = 4  # chained steps state' = decay·state + input that make a recurrence (a rotation has one)

_SCALINGS = {"mul": 1, "multiply": 1, "div": -1, "divide": -1, "true_divide": -1}  # powers of the number

GATES = {
    "sigmoid": "glu",
    "relu": "reglu",
    "gelu": "geglu",
    "gelu_tanh": "geglu_tanh",
    "silu": "swiglu",
    "identity": "bilinear",
}


def activation_event(candidate: Candidate) -> ActivationEvent:
    """What instruments see of an activation that turned out to be one."""
    assert candidate.output is not None
    return ActivationEvent(
        input=candidate.input.detach(),
        output=candidate.output.detach(),
        function=candidate.function,
        channel_dim=candidate.channel_dim,
        fan_in=candidate.fan_in,
    )


def module_call(trace: Trace, frame: Frame, op: str, function: Callable[[Tensor], Tensor], output: Tensor) -> None:
    """A parameterless elementwise module has ended: one call, whatever was inside."""
    assert frame.before is not None
    before = trace.tags[frame.before]
    call = Call(on_a_copy(function), f"module{id(frame.module)}", False, (frame.before,), {})
    cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: trace.tags[item].cuts)
    tag = Tag(
        cuts=cuts,
        parts=before.parts,
        producer=before.producer,
        epsilon=before.epsilon,
        channel_dim=before.channel_dim,
    )
    if op == AFFINE:
        trace.tags.set(output, replace(before, cuts=cuts))
        return
    candidate = Candidate(frame.path, op, frame.before, output, call.func, before.channel_dim, before.fan_in)
    trace.add_candidate(candidate)
    normalised = _sigmoid_scores(trace, op, frame.before, candidate)
    trace.tags.set(output, replace(tag, parts=(*before.parts, candidate), gate=candidate, normalised=normalised))


def function_call(trace: Trace, call: Call) -> Any:
    """A function of each element: alone, with scalars, or of several tensors of one shape."""
    in_place = call.in_place or (call.name in ANCHORS and call.kwargs.get("inplace") is True)
    if not call.args or not isinstance(call.args[0], Tensor) or not trace.frames.stack:
        return _carry(trace, call)
    if not in_place:
        return _composed(trace, call, call.args, call.func)
    if call.name in ANCHORS:
        before = call.args[0].detach().clone()
        trace.tags.set(before, trace.tags[call.args[0]])
        return _composed(trace, call, (before, *call.args[1:]), on_a_copy(call.func))
    return _written(trace, call)


def _carry(trace: Trace, call: Call) -> Any:
    """Outside the model only the logits' origin matters, and how a loss of them is spelled out."""
    result = call.run()
    tags = [trace.tags[item] for item in call.tensors]
    if tags and tags[0].producer is not None:
        tag = Tag(producer=tags[0].producer, epsilon=max(tags[0].epsilon, spacing(result)))
        trace.tags.set(result, exponentials.follow(trace, call, call.tensors, tags, result, tag))
    return result


def _composed(trace: Trace, call: Call, args: tuple[Any, ...], func: Callable[..., Any]) -> Any:
    result = call.run()
    cuts = compose(func, call.name, args, call.kwargs, lambda item: trace.tags[item].cuts)
    _conclude(trace, call, args, cuts, result)
    return result


def _conclude(trace: Trace, call: Call, args: tuple[Any, ...], cuts: tuple[Cut, ...], result: Any) -> None:
    """What the result is now known to be: an activation, a gated product, or something on the way."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return
    tensors = [item for item in args if isinstance(item, Tensor) and item.dim() > 0] or [args[0]]
    tags = [trace.tags[item] for item in tensors]
    tag = Tag(
        cuts=cuts,
        parts=tuple(dict.fromkeys(part for tag in tags for part in tag.parts)),
        producer=next((tag.producer for tag in tags if tag.producer is not None), None),
        epsilon=max(spacing(result), *(tag.epsilon for tag in tags)),
        channel_dim=tags[0].channel_dim,
        fan_in=tags[0].fan_in,
        added=tags[0].added,
        factor=tags[0].factor * _number(call, tensors),
        **_recurrent_state(trace, call, tags),
    )
    if call.name in AFFINE_CALLS:
        tag = replace(
            tag, normalised=tags[0].normalised, normalised_dim=tags[0].normalised_dim, visible=tags[0].visible
        )
        if len(tensors) == 1:
            tag = replace(tag, gate=tags[0].gate, chosen=tags[0].chosen)
    tag = _recognised(trace, call, result, tag)
    if call.name in PRODUCTS and len(tensors) == 2 and tag.gate is None and not cuts:
        _gate(trace, tensors[0], tensors[1], result)
    tag = norms.follow(trace, call, tensors, tags, result, tag)
    trace.tags.set(result, exponentials.follow(trace, call, tensors, tags, result, tag))


def _number(call: Call, tensors: list[Any]) -> float:
    """What a product with one number multiplies by: NaN where a tensor holds it, 1 for every other call."""
    if call.name not in _SCALINGS or (len(tensors) > 1 and all(item.numel() > 1 for item in tensors)):
        return 1.0
    numbers = [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, int | float)]
    if len(numbers) != 1 or not numbers[0]:
        return math.nan
    return float(numbers[0]) ** _SCALINGS[call.name]


def _recognised(trace: Trace, call: Call, result: Tensor, tag: Tag) -> Tag:
    """If the largest nameable expression that ends here is an activation, hold it as one."""
    for cut in tag.cuts:
        node = cut.node
        if node is None or isinstance(cut.root, nn.Parameter):
            continue
        if _is_softcap(node):
            for part in tag.parts:
                part.taken = True
            return replace(tag, parts=())
        op = trace.namer.of_node(node)
        single = node.size == 1 and call.name in ANCHORS
        if op == UNKNOWN and single:
            op = call.name
        if op in (UNKNOWN, AFFINE):
            continue
        candidate = Candidate(trace.frames.path, op, cut.root, result, node, tag.channel_dim, tag.fan_in)
        trace.add_candidate(candidate, tag.parts)
        normalised = _sigmoid_scores(trace, op, cut.root, candidate)
        return replace(tag, parts=(candidate,), gate=candidate, normalised=normalised)
    return tag


def _is_softcap(node: Node) -> bool:
    """cap·tanh(x / cap): how scores and logits are bounded, no activation."""
    if node.key.startswith(("mul(tanh(div(x,", "mul(tanh(mul(x,")):
        inner = node.arguments[0].arguments[0]
        outer_cap, inner_cap = node.arguments[1], inner.arguments[1]
        if isinstance(outer_cap, tuple) and isinstance(inner_cap, tuple):
            cap, scale = float(outer_cap[0]), float(inner_cap[0])
            return abs(cap - (scale if "tanh(div" in node.key else 1 / scale)) <= 1e-6 * abs(cap)
    return False


def _sigmoid_scores(trace: Trace, op: str, scores: Tensor, candidate: Candidate) -> Normalised | None:
    """A sigmoid may turn out to choose experts or to weigh values; one of the chosen experts' scores has chosen."""
    if op != "sigmoid":
        return None
    chosen = trace.tags[scores].chosen
    normalised = Normalised("sigmoid", trace.frames.path, scores, -1, None, candidate=candidate, router=chosen)
    candidate.taken = chosen is not None
    trace.add_normalised(normalised)
    return normalised


def _gate(trace: Trace, first: Any, second: Any, product: Tensor) -> None:
    for activated, up in ((first, second), (second, first)):
        if not isinstance(activated, Tensor) or not isinstance(up, Tensor):
            return
        candidate = trace.tags[activated].gate
        if candidate is None or same_values(up, candidate.input) or isinstance(up, nn.Parameter):
            continue
        if activated.shape != up.shape and not _lets_a_share_through(candidate, up, product):
            continue
        op = GATES.get(candidate.op, f"gated_{candidate.op}")
        if candidate.op == "quick_gelu" and any(
            cut.node is not None and "clamp" in cut.node.key for cut in trace.tags[candidate.input].cuts
        ):
            op = "clamped_swiglu"
        event = GateEvent(
            activated=activated.detach(),
            up=up.detach(),
            product=product.detach(),
            channel_dim=candidate.channel_dim,
        )
        trace.emit(trace.site("gate", op), event)
        return


def _lets_a_share_through(candidate: Candidate, up: Tensor, product: Tensor) -> bool:
    """Whether one value gates several: as a share, like a sigmoid's, not as a size, like Mamba's steps; no router's."""
    bounded = candidate.op in FACTS and FACTS[candidate.op].bounded
    return bounded and product.shape == up.shape and not candidate.taken


def fused_gate(trace: Trace, call: Call) -> Any:
    """evenkeel's own gated products, whose inside no function mode sees: the activation is computed once more."""
    result = call.run()
    if not trace.frames.stack or call.source is None:
        return result
    first = call.source
    up = call.argument(1, "up")
    clamped = call.name == "clamped_swiglu"
    activation = "quick_gelu" if clamped else call.argument(2, "activation", "silu")
    function = ACTIVATIONS[activation].function
    with torch.no_grad(), torch._C.DisableTorchFunction():
        gate, up = first.detach().chunk(2, -1) if up is None else (first.detach(), up.detach())
        if clamped:
            gate, up = gate.clamp(max=CLAMPED_AT), up.clamp(-CLAMPED_AT, CLAMPED_AT) + 1
        activated = function(gate)
    channel_dim, fan_in = trace.tags[first].channel_dim, trace.tags[first].fan_in
    trace.add_candidate(Candidate(trace.frames.path, activation, gate, activated, function, channel_dim, fan_in))
    op = "clamped_swiglu" if clamped else GATES.get(activation, f"gated_{activation}")
    event = GateEvent(activated=activated, up=up, product=result.detach(), channel_dim=channel_dim)
    trace.emit(trace.site("gate", op), event)
    return result


def _written(trace: Trace, call: Call) -> Any:
    """A sum or product in place: what was known of the written tensor is now known of a copy of its old values."""
    target = call.args[0]
    tags = [trace.tags[item] for item in call.tensors]
    parts = {part for tag in tags for part in tag.parts if target is part.input or target is part.output}
    cuts: tuple[Cut, ...] = ()
    if len(call.tensors) == 2:
        cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: trace.tags[item].cuts)
    gated = call.name in PRODUCTS and any(tag.gate is not None for tag in tags)
    before = target
    if cuts or parts or gated:
        before = target.detach().clone()
        trace.tags.set(before, tags[0])
    for part in parts:
        part.input = before if part.input is target else part.input
        part.output = before if part.output is target else part.output
    result = call.run()
    cuts = tuple(
        Cut(before if cut.root is target else cut.root, replace(cut.node, func=on_a_copy(call.func)))
        for cut in cuts
        if cut.node is not None
    )
    _conclude(trace, call, (before, *call.args[1:]), cuts, result)
    return result


def _recurrent_state(trace: Trace, call: Call, tags: list[Tag]) -> dict[str, Any]:
    """Follow state' = decay·state + input; a chain of these is a recurrence."""
    if len(call.tensors) != 2:
        return {}
    if call.name in PRODUCTS:
        trained = any(isinstance(item, nn.Parameter) for item in call.tensors)  # a residual stream's own scale
        return {} if trained else {"scaled": True, "linear_state": max(tag.linear_state for tag in tags)}
    if call.name != "add" or not any(tag.scaled for tag in tags):
        return {}
    steps = 1 + max(tag.linear_state for tag in tags if tag.scaled)
    if steps == _RECURRENT_FROM:
        trace.not_measured("recurrence", "linear", "no instrument reads a recurrence's state yet", numbered=False)
    return {"linear_state": steps}
