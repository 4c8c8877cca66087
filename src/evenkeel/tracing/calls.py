"""What each kind of call means to the tracer: pointwise functions, products, views, softmax, choices, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import attention
from .events import ActivationEvent, GateEvent, HeadEvent
from .expressions import AFFINE, UNKNOWN, Cut, Node, compose, on_a_copy
from .frames import Frame
from .functions import (
    ANCHORS,
    CASTS,
    CHOICES,
    CONVOLUTIONS,
    MATMULS,
    POINTWISE,
    PRODUCTS,
    RECURRENCES,
    VIEWS,
)
from .functions import AFFINE as AFFINE_CALLS
from .provenance import Candidate, Normalised, Tag, same_values, tensors_in

if TYPE_CHECKING:
    from .tracer import Tracer

_RECURRENT_FROM = 4  # chained steps state' = decay·state + input that make a recurrence (a rotation has one)

GATES = {
    "sigmoid": "glu",
    "relu": "reglu",
    "gelu": "geglu",
    "gelu_tanh": "geglu_tanh",
    "silu": "swiglu",
    "identity": "bilinear",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One intercepted call."""

    func: Callable[..., Any]
    name: str
    in_place: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors given by position."""
        return [item for item in self.args if isinstance(item, Tensor)]


Handler = Callable[["Tracer", Call], Any]


def handlers() -> dict[str, Handler]:
    """The handler of each function name."""
    table: dict[str, Handler] = {name: _pointwise for name in POINTWISE}
    table.update(dict.fromkeys(CASTS, _cast))
    table.update(dict.fromkeys(VIEWS, _view))
    table.update(dict.fromkeys(MATMULS, _matmul))
    table.update(dict.fromkeys(CONVOLUTIONS, _convolution))
    table.update(dict.fromkeys(CHOICES, _choice))
    table.update(dict.fromkeys(RECURRENCES, _recurrence))
    table.update(
        linear=_linear,
        glu=_glu,
        softmax=_softmax,
        log_softmax=_log_softmax,
        masked_fill=_masked_fill,
        where=_where,
        cross_entropy=_cross_entropy,
        nll_loss=_nll_loss,
        scaled_dot_product_attention=attention.fused,
        multi_head_attention_forward=attention.multi_head,
        flex_attention=attention.flexible,
    )
    return table


# --- pointwise functions and gates -------------------------------------------------------------------------------


def activation_event(candidate: Candidate) -> ActivationEvent:
    return ActivationEvent(
        input=candidate.input.detach(),
        output=candidate.output.detach(),
        function=candidate.function,
        channel_dim=candidate.channel_dim,
    )


def pointwise_module(
    tracer: Tracer, frame: Frame, op: str, function: Callable[[Tensor], Tensor], output: Tensor
) -> None:
    """A parameterless elementwise module has ended: one call, whatever was inside."""
    assert frame.before is not None
    before = tracer.tags[frame.before]
    call = Call(on_a_copy(function), f"module{id(frame.module)}", False, (frame.before,), {})
    cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: tracer.tags[item].cuts)
    tag = Tag(cuts=cuts, parts=before.parts, producer=before.producer, channel_dim=before.channel_dim)
    if op == AFFINE:
        tracer.tags.set(output, replace(before, cuts=cuts))
        return
    candidate = Candidate(frame.path, op, frame.before, output, call.func, before.channel_dim)
    tracer.add_candidate(candidate)
    normalised = _sigmoid_scores(tracer, op, frame.before, candidate)
    tracer.tags.set(
        output, replace(tag, parts=(*before.parts, candidate), gate=candidate, normalised=normalised)
    )


def _pointwise(tracer: Tracer, call: Call) -> Any:
    in_place = call.in_place or (call.name in ANCHORS and call.kwargs.get("inplace") is True)
    if not call.args or not isinstance(call.args[0], Tensor) or not tracer.frames.stack:
        return _carry(tracer, call)
    if not in_place:
        return _composed(tracer, call, call.args, call.func)
    if call.name in ANCHORS:
        before = call.args[0].detach().clone()
        tracer.tags.set(before, tracer.tags[call.args[0]])
        return _composed(tracer, call, (before, *call.args[1:]), on_a_copy(call.func))
    return _written(tracer, call)


def _composed(tracer: Tracer, call: Call, args: tuple[Any, ...], func: Callable[..., Any]) -> Any:
    result = call.run()
    cuts = compose(func, call.name, args, call.kwargs, lambda item: tracer.tags[item].cuts)
    _conclude(tracer, call, args, cuts, result)
    return result


def _conclude(tracer: Tracer, call: Call, args: tuple[Any, ...], cuts: tuple[Cut, ...], result: Any) -> None:
    """What the result of a pointwise call is now known to be: an activation, a gated product, or something on the way."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return
    tensors = [item for item in args if isinstance(item, Tensor) and item.dim() > 0] or [args[0]]
    tags = [tracer.tags[item] for item in tensors]
    tag = Tag(
        cuts=cuts,
        parts=tuple(dict.fromkeys(part for tag in tags for part in tag.parts)),
        producer=next((tag.producer for tag in tags if tag.producer is not None), None),
        channel_dim=tags[0].channel_dim,
        **_recurrent_state(tracer, call, tags),
    )
    if call.name in AFFINE_CALLS:
        tag = replace(tag, normalised=tags[0].normalised, normalised_dim=tags[0].normalised_dim, visible=tags[0].visible)
        if len(tensors) == 1:
            tag = replace(tag, gate=tags[0].gate, chosen=tags[0].chosen)
    tag = _recognised(tracer, call, result, tag)
    if call.name in PRODUCTS and len(tensors) == 2 and tag.gate is None and not cuts:
        _gate(tracer, tensors[0], tensors[1], result)
    tracer.tags.set(result, tag)


def _recognised(tracer: Tracer, call: Call, result: Tensor, tag: Tag) -> Tag:
    """If the largest nameable expression that ends here is an activation, hold it as one."""
    for cut in tag.cuts:
        node = cut.node
        if node is None or isinstance(cut.root, nn.Parameter):
            continue
        if _is_softcap(node):
            for part in tag.parts:
                part.taken = True
            return replace(tag, parts=())
        op = tracer.structure.namer.of_node(node)
        single = node.size == 1 and call.name in ANCHORS
        if op == UNKNOWN and single:
            op = call.name
        if op in (UNKNOWN, AFFINE):
            continue
        candidate = Candidate(tracer.frames.path, op, cut.root, result, node, tag.channel_dim)
        tracer.add_candidate(candidate, tag.parts)
        normalised = _sigmoid_scores(tracer, op, cut.root, candidate)
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


def _sigmoid_scores(tracer: Tracer, op: str, scores: Tensor, candidate: Candidate) -> Normalised | None:
    """A sigmoid may turn out to choose experts or to weigh values."""
    if op != "sigmoid":
        return None
    normalised = Normalised("sigmoid", tracer.frames.path, scores, -1, None, candidate=candidate)
    tracer.add_normalised(normalised)
    return normalised


def _gate(tracer: Tracer, first: Any, second: Any, product: Tensor) -> None:
    for activated, up in ((first, second), (second, first)):
        if not isinstance(activated, Tensor) or not isinstance(up, Tensor) or activated.shape != up.shape:
            return
        candidate = tracer.tags[activated].gate
        if candidate is None or same_values(up, candidate.input) or isinstance(up, nn.Parameter):
            continue
        op = GATES.get(candidate.op, f"gated_{candidate.op}")
        if candidate.op == "quick_gelu" and any(
            cut.node is not None and "clamp" in cut.node.key for cut in tracer.tags[candidate.input].cuts
        ):
            op = "clamped_swiglu"
        event = GateEvent(
            activated=activated.detach(),
            up=up.detach(),
            product=product.detach(),
            channel_dim=candidate.channel_dim,
        )
        tracer.emit(tracer.site("gate", op), event)
        return


def _written(tracer: Tracer, call: Call) -> Any:
    """A sum or product in place: what was known of the written tensor is now known of a copy of its old values."""
    target = call.args[0]
    tags = [tracer.tags[item] for item in call.tensors]
    parts = {part for tag in tags for part in tag.parts if target is part.input or target is part.output}
    cuts: tuple[Cut, ...] = ()
    if len(call.tensors) == 2:
        cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: tracer.tags[item].cuts)
    gated = call.name in PRODUCTS and any(tag.gate is not None for tag in tags)
    before = target
    if cuts or parts or gated:
        before = target.detach().clone()
        tracer.tags.set(before, tags[0])
    for part in parts:
        part.input = before if part.input is target else part.input
        part.output = before if part.output is target else part.output
    result = call.run()
    cuts = tuple(
        Cut(before if cut.root is target else cut.root, replace(cut.node, func=on_a_copy(call.func)))
        for cut in cuts
        if cut.node is not None
    )
    _conclude(tracer, call, (before, *call.args[1:]), cuts, result)
    return result


def _recurrent_state(tracer: Tracer, call: Call, tags: list[Tag]) -> dict[str, Any]:
    """Follow state' = decay·state + input; a chain of these is a recurrence."""
    if len(call.tensors) != 2:
        return {}
    if call.name in PRODUCTS:
        return {"scaled": True, "linear_state": max(tag.linear_state for tag in tags)}
    if call.name != "add" or not any(tag.scaled for tag in tags):
        return {}
    steps = 1 + max(tag.linear_state for tag in tags if tag.scaled)
    if steps == _RECURRENT_FROM:
        tracer.not_measured("recurrence", "linear", "no instrument reads a recurrence's state yet", numbered=False)
    return {"linear_state": steps}


# --- casts and views ---------------------------------------------------------------------------------------------


def _carry(tracer: Tracer, call: Call) -> Any:
    """Outside the model only the logits' origin matters."""
    result = call.run()
    for item in call.tensors[:1]:
        tag = tracer.tags[item]
        if tag.producer is not None:
            tracer.tags.set(result, Tag(producer=tag.producer))
    return result


def _cast(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if not call.args or not isinstance(call.args[0], Tensor) or not isinstance(result, Tensor) or result is call.args[0]:
        return result
    tag = tracer.tags[call.args[0]]
    cuts: tuple[Cut, ...] = ()
    if "dropout" not in call.name and result.is_floating_point():
        cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: tracer.tags[item].cuts)
    tracer.tags.set(result, replace(tag, cuts=cuts))
    return result


def _view(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if not call.args or not isinstance(call.args[0], Tensor):
        return result
    source = call.args[0]
    tag = tracer.tags[source]
    kept = Tag(
        gate=tag.gate, producer=tag.producer, linear_state=tag.linear_state, chosen=tag.chosen, visible=None,
        channel_dim=tag.channel_dim if call.name == "getitem" else -1,
    )
    if tag.normalised is not None:
        for item in tensors_in(result):
            dim = _dim_after(call, source, item, tag.normalised_dim)
            tracer.tags.set(item, replace(kept, normalised=tag.normalised if dim else None, normalised_dim=dim or -1))
    elif kept != Tag():
        tracer.tags.set(result, kept)
    return result


def _dim_after(call: Call, source: Tensor, result: Tensor, dim: int) -> int | None:
    """Where the softmax's dimension (counted from the end) lies after a view; None where it is lost."""
    if call.name in ("transpose", "swapaxes", "swapdims", "mT", "T", "t"):
        first, second = (call.args[1], call.args[2]) if len(call.args) > 2 else (-1, -2)
        first, second = (item if item < 0 else item - source.dim() for item in (first, second))
        return second if dim == first else first if dim == second else dim
    if call.name == "permute":
        order = call.args[1] if isinstance(call.args[1], tuple | list) else call.args[1:]
        places = [item if item < 0 else item - source.dim() for item in order]
        return places.index(dim) - len(places)
    if dim == -1 and result.dim() > 0:
        sliced = call.name in ("getitem", "narrow", "split", "chunk")
        return -1 if sliced or result.shape[-1] == source.shape[-1] else None
    return dim if result.dim() == source.dim() else None


# --- linear maps -------------------------------------------------------------------------------------------------


def _linear(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    _count_linear(tracer)
    tracer.tags.set(result, Tag(producer=tracer.frames.path))
    return result


def _count_linear(tracer: Tracer) -> None:
    if tracer.frames.stack:
        tracer.frames.stack[-1].linears += 1


def _convolution(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    tracer.tags.set(result, Tag(producer=tracer.frames.path, channel_dim=1))
    return result


def _matmul(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if tracer.frames.stack:
        attention.product(tracer, call)
        if any(isinstance(item, nn.Parameter) for item in call.tensors):
            _count_linear(tracer)
    tracer.tags.set(result, Tag(producer=tracer.frames.path))
    return result


def _glu(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if tracer.frames.stack:
        dim = call.argument(1, "dim", -1)
        up, gate = call.args[0].detach().chunk(2, dim)
        with torch._C.DisableTorchFunction():
            activated = torch.sigmoid(gate)
        tracer.emit(
            tracer.site("gate", "glu"),
            GateEvent(activated=activated, up=up, product=result.detach(), channel_dim=tracer.tags[call.args[0]].channel_dim),
        )
    return result


def _recurrence(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if tracer.frames.stack:
        tracer.not_measured("recurrence", call.name, "the fused call shows no gate tensors")
    return result


# --- softmax, masks and choices ----------------------------------------------------------------------------------


def _softmax(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if not tracer.frames.stack or not isinstance(call.args[0], Tensor) or call.in_place:
        return result
    scores = call.args[0]
    dim = call.argument(1, "dim", -1)
    dim = -1 if dim is None else dim if dim < 0 else dim - scores.dim()
    tag = tracer.tags[scores]
    normalised = Normalised("softmax", tracer.frames.path, scores, dim, tag.visible)
    if tag.chosen is not None:
        normalised.router = tag.chosen
    tracer.add_normalised(normalised)
    tracer.tags.set(result, Tag(normalised=normalised, normalised_dim=dim))
    return result


def _choice(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if not call.args or not isinstance(call.args[0], Tensor):
        return result
    source = call.args[0]
    position = 2 if call.name == "topk" else 1
    dim = call.argument(position, "dim", -1)
    if dim is None or call.name in ("sort", "argsort"):
        return result
    values, indices = (None, result) if isinstance(result, Tensor) else (result[0], result[1])
    indices = indices.unsqueeze(dim) if call.name == "argmax" and not call.argument(2, "keepdim", False) else indices
    indices = indices.movedim(dim, -1)
    experts = source.shape[dim]
    normalised = tracer.tags[source].normalised
    if normalised is not None and experts == normalised.scores.shape[normalised.dim]:
        normalised.router = (indices, experts)
        if normalised.candidate is not None:
            normalised.candidate.taken = True
    elif values is not None:
        tracer.tags.set(values, Tag(chosen=(indices, experts)))
    return result


def _masked_fill(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    tag = tracer.tags[call.args[0]]
    mask, value = call.argument(1, "mask"), call.argument(2, "value")
    visible = tag.visible
    if isinstance(value, int | float) and value <= -1e3 and isinstance(mask, Tensor):
        visible = ~mask if visible is None else visible & ~mask
    tracer.tags.set(result, Tag(producer=tag.producer, normalised=tag.normalised, normalised_dim=tag.normalised_dim, visible=visible))
    return result


def _where(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    if len(call.args) != 3:
        return result
    condition, chosen, other = call.args
    for kept, filled, visible in ((chosen, other, condition), (other, chosen, None)):
        if isinstance(kept, Tensor) and isinstance(filled, int | float) and filled <= -1e3:
            visible = ~condition if visible is None else visible
            tracer.tags.set(result, replace(tracer.tags[kept], cuts=(), parts=(), gate=None, visible=visible))
    return result


# --- losses ------------------------------------------------------------------------------------------------------


def _log_softmax(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    tag = tracer.tags[call.args[0]]
    tracer.tags.set(result, Tag(producer=tag.producer, log_softmax_of=call.args[0]))
    return result


def _cross_entropy(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    _loss(tracer, call.args[0], call.argument(1, "target"), call.argument(4, "ignore_index", -100))
    return result


def _nll_loss(tracer: Tracer, call: Call) -> Any:
    result = call.run()
    logits = tracer.tags[call.args[0]].log_softmax_of
    if logits is not None:
        _loss(tracer, logits, call.argument(1, "target"), call.argument(4, "ignore_index", -100))
    return result


def _loss(tracer: Tracer, logits: Tensor, target: Any, ignore_index: int) -> None:
    path = tracer.tags[logits].producer
    if path is None and not tracer.frames.stack:
        return  # a loss of something else than this model's output
    classes_last = logits.movedim(1, -1) if logits.dim() > 2 else logits
    rows = classes_last.detach().reshape(-1, classes_last.shape[-1])
    known = isinstance(target, Tensor) and not target.is_floating_point()
    targets = target.detach().reshape(-1) if known else None
    tracer.head(path or "", HeadEvent(logits=rows, targets=targets, ignore_index=ignore_index))

