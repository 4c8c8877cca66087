"""What each kind of call means to the tracer: casts, views, linear maps, softmax, choices, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from . import attention, exponentials, norms, pointwise, recurrence, sigmoid_heads
from .call import Call
from .events import GateEvent, HeadEvent
from .expressions import Cut, compose
from .functions import (
    ADDING_PRODUCTS,
    CASTS,
    CHOICES,
    CONVOLUTIONS,
    MATMULS,
    MOMENTS,
    NORMS,
    POINTWISE,
    RECURRENCES,
    VIEWS,
)
from .provenance import Normalised, Tag, spacing, tensors_in
from .trace import Trace, quietly

_MOST_LOGITS = 2**22  # elements held at a time

Handler = Callable[[Trace, Call], Any]


def handlers() -> dict[str, Handler]:
    """The handler of each function name."""
    table: dict[str, Handler] = dict.fromkeys(POINTWISE, pointwise.function_call)
    table.update(dict.fromkeys(CASTS, _cast))
    table.update(dict.fromkeys(VIEWS, _view))
    table.update(dict.fromkeys(MATMULS, _matmul))
    table.update(dict.fromkeys(CONVOLUTIONS, _convolution))
    table.update(dict.fromkeys(CHOICES, _choice))
    table.update(dict.fromkeys(RECURRENCES, _recurrence))
    table.update(dict.fromkeys(NORMS, norms.fused))
    table.update(dict.fromkeys(MOMENTS, norms.moment))
    table.update(
        linear=_linear,
        sum=exponentials.total,
        glu=_glu,
        gated=pointwise.fused_gate,
        clamped_swiglu=pointwise.fused_gate,
        softmax=_softmax,
        log_softmax=_log_softmax,
        masked_fill=_masked_fill,
        where=_where,
        scatter=_scatter,
        cross_entropy=_cross_entropy,
        nll_loss=_nll_loss,
        linear_cross_entropy=_linear_loss,
        sigmoid_cross_entropy=sigmoid_heads.own,
        binary_cross_entropy=sigmoid_heads.binary,
        binary_cross_entropy_with_logits=sigmoid_heads.binary,
        scaled_dot_product_attention=attention.fused,
        attention=attention.own,
        multi_head_attention_forward=attention.multi_head,
        flex_attention=attention.flexible,
    )
    return table


# --- casts and views ---------------------------------------------------------------------------------------------


def _cast(trace: Trace, call: Call) -> Any:
    result = call.run()
    if (
        not call.args
        or not isinstance(call.args[0], Tensor)
        or not isinstance(result, Tensor)
        or result is call.args[0]
    ):
        return result
    tag = trace.tags[call.args[0]]
    cuts: tuple[Cut, ...] = ()
    if "dropout" not in call.name and result.is_floating_point():
        cuts = compose(call.func, call.name, call.args, call.kwargs, lambda item: trace.tags[item].cuts)
    trace.tags.set(result, replace(tag, cuts=cuts, epsilon=max(tag.epsilon, spacing(call.args[0]), spacing(result))))
    return result


def _view(trace: Trace, call: Call) -> Any:
    result = call.run()
    if not call.args or not isinstance(call.args[0], Tensor):
        return result
    source = call.args[0]
    tag = trace.tags[source]
    kept = Tag(
        gate=tag.gate,
        producer=tag.producer,
        epsilon=tag.epsilon,
        fan_in=tag.fan_in,
        added=tag.added,
        factor=tag.factor,
        linear_state=tag.linear_state,
        chosen=tag.chosen,
        visible=None,
        channel_dim=tag.channel_dim if call.name == "getitem" else -1,
        total=tag.total,
    )
    if tag.normalised is not None:
        for item in tensors_in(result):
            dim = _dim_after(call, source, item, tag.normalised_dim)
            trace.tags.set(item, replace(kept, normalised=tag.normalised if dim else None, normalised_dim=dim or -1))
    elif kept != Tag():
        trace.tags.set(result, kept)
    return result


def _dim_after(call: Call, source: Tensor, result: Tensor, dim: int) -> int | None:
    """Where the softmax's dimension (counted from the end) lies after a view; None where it is lost."""
    if call.name in ("transpose", "swapaxes", "swapdims", "mT", "T", "t"):
        first, second = (call.args[1], call.args[2]) if len(call.args) > 2 else (-1, -2)
        first, second = (item if item < 0 else item - source.dim() for item in (first, second))
        return second if dim == first else first if dim == second else dim
    if call.name == "permute":
        given = call.argument(1, "dims")
        order = given if isinstance(given, tuple | list) else call.args[1:]
        places = [item if item < 0 else item - source.dim() for item in order]
        return places.index(dim) - len(places)
    if dim == -1 and result.dim() > 0:
        sliced = call.name in ("getitem", "narrow", "split", "chunk")
        return -1 if sliced or result.shape[-1] == source.shape[-1] else None
    return dim if result.dim() == source.dim() else None


# --- linear maps -------------------------------------------------------------------------------------------------


def _linear(trace: Trace, call: Call) -> Any:
    result = call.run()
    _count_linear(trace)
    running = trace.frames.running  # outside the model, a map of its output may still be its head
    weight = call.argument(1, "weight")
    fan_in = weight.shape[-1] if isinstance(weight, Tensor) else 0
    producer = _origin(trace, call) if running is None else running
    trace.tags.set(result, Tag(producer=producer, epsilon=spacing(result), fan_in=fan_in))
    return result


def _origin(trace: Trace, call: Call) -> str | None:
    """Where the values come from that a map outside the model is applied to."""
    return next((path for item in call.tensors if (path := trace.tags[item].producer) is not None), None)


def _count_linear(trace: Trace) -> None:
    if trace.frames.stack:
        trace.frames.stack[-1].linears += 1


def _convolution(trace: Trace, call: Call) -> Any:
    result = call.run()
    trace.tags.set(result, Tag(producer=trace.frames.running, channel_dim=1))
    return result


def _matmul(trace: Trace, call: Call) -> Any:
    result = call.run()
    mapped = any(isinstance(item, nn.Parameter) for item in call.tensors)
    if trace.frames.stack:
        attention.product(trace, call)
        if mapped:
            _count_linear(trace)
    added = call.source if call.name in ADDING_PRODUCTS and not mapped else None
    running = trace.frames.running  # outside the model, a map of its output may still be its head
    fan_in = next((item.shape[0] for item in call.tensors if isinstance(item, nn.Parameter) and item.dim() == 2), 0)
    producer = _origin(trace, call) if running is None else running
    added = None if added is None else added.detach()
    trace.tags.set(result, Tag(producer=producer, epsilon=spacing(result), fan_in=fan_in, added=added))
    return result


def _glu(trace: Trace, call: Call) -> Any:
    result = call.run()
    if trace.frames.stack:
        dim = call.argument(1, "dim", -1)
        up, gate = call.args[0].detach().chunk(2, dim)
        with torch._C.DisableTorchFunction():
            activated = torch.sigmoid(gate)
        trace.emit(
            trace.site("gate", "glu"),
            GateEvent(
                activated=activated, up=up, product=result.detach(), channel_dim=trace.tags[call.args[0]].channel_dim
            ),
        )
    return result


def _recurrence(trace: Trace, call: Call) -> Any:
    result = call.run()
    if trace.frames.stack and call.func in (functional.lstm, functional.gru):
        recurrence.own(trace, call)
    elif trace.frames.stack:
        trace.not_measured("recurrence", call.name, "the fused call shows no gate tensors")
    return result


# --- softmax, masks and choices ----------------------------------------------------------------------------------


def _softmax(trace: Trace, call: Call) -> Any:
    result = call.run()
    if call.source is None or call.in_place:
        return result
    scores = call.source
    if not trace.frames.stack:  # probabilities may be taken for logits by the loss
        trace.tags.set(result, Tag(producer=trace.tags[scores].producer))
        return result
    dim = call.argument(1, "dim", -1)
    dim = -1 if dim is None else dim if dim < 0 else dim - scores.dim()
    tag = trace.tags[scores]
    visible, mask = tag.visible, call.kwargs.get("mask")  # the mask and the temperature are evenkeel's own softmax's
    if mask is not None:
        visible = mask if visible is None else visible & mask
    if (temperature := call.kwargs.get("temperature", 1.0)) != 1.0:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            scores = scores.detach() / temperature
    normalised = Normalised("softmax", trace.frames.path, scores, dim, visible, added=tag.added)
    if tag.chosen is not None:
        normalised.router = tag.chosen
    trace.add_normalised(normalised)
    trace.tags.set(result, Tag(producer=tag.producer, normalised=normalised, normalised_dim=dim))
    return result


def _choice(trace: Trace, call: Call) -> Any:
    result = call.run()
    source = call.source
    if source is None:
        return result
    position = 2 if call.name == "topk" else 1
    dim = call.argument(position, "dim", -1)
    if dim is None or call.name in ("sort", "argsort"):
        return result
    values, indices = (None, result) if isinstance(result, Tensor) else (result[0], result[1])
    indices = indices.unsqueeze(dim) if call.name == "argmax" and not call.argument(2, "keepdim", False) else indices
    indices = indices.movedim(dim, -1)
    experts = source.shape[dim]
    normalised = trace.tags[source].normalised
    if normalised is not None and experts == normalised.scores.shape[normalised.dim]:
        normalised.router = (indices, experts)
        if normalised.candidate is not None:
            normalised.candidate.taken = True
    elif values is not None:
        trace.tags.set(values, Tag(chosen=(indices, experts)))
    return result


def _masked_fill(trace: Trace, call: Call) -> Any:
    result = call.run()
    if call.source is None:
        return result
    tag = trace.tags[call.source]
    mask, value = call.argument(1, "mask"), call.argument(2, "value")
    visible = tag.visible
    hides = isinstance(value, int | float) and (value <= -1e3 or (value == 0 and tag.exponents is not None))
    if hides and isinstance(mask, Tensor):
        visible = ~mask if visible is None else visible & ~mask
    trace.tags.set(
        result,
        Tag(
            producer=tag.producer,
            epsilon=tag.epsilon,
            normalised=tag.normalised,
            normalised_dim=tag.normalised_dim,
            visible=visible,
            exponents=tag.exponents,
        ),
    )
    return result


def _where(trace: Trace, call: Call) -> Any:
    result = call.run()
    if len(call.args) != 3:
        return result
    condition, chosen, other = call.args
    for kept, filled, visible in ((chosen, other, condition), (other, chosen, None)):
        if isinstance(kept, Tensor) and isinstance(filled, int | float) and filled <= -1e3:
            visible = ~condition if visible is None else visible
            trace.tags.set(result, replace(trace.tags[kept], cuts=(), parts=(), gate=None, visible=visible))
    return result


def _scatter(trace: Trace, call: Call) -> Any:
    """The chosen experts' scores may be written into a row of all experts, the others at −inf."""
    result = call.run()
    source = call.argument(3, "src")
    if isinstance(source, Tensor) and (chosen := trace.tags[source].chosen) is not None:
        trace.tags.set(result, Tag(chosen=chosen))
    return result


# --- losses ------------------------------------------------------------------------------------------------------


def _log_softmax(trace: Trace, call: Call) -> Any:
    result = call.run()
    assert call.source is not None
    if call.kwargs.get("temperature", 1.0) == 1.0:
        trace.tags.set(result, Tag(producer=trace.tags[call.source].producer, log_softmax_of=call.source))
    return result


def _cross_entropy(trace: Trace, call: Call) -> Any:
    result = call.run()
    assert call.source is not None
    target, ignored = call.argument(1, "target"), call.argument(4, "ignore_index", -100)
    if call.func is functional.cross_entropy:
        _own_loss(trace, call, target, ignored)
    else:
        _loss(trace, call.source, call.source, target, ignored)
    return result


def _own_loss(trace: Trace, call: Call, target: Any, ignored: int) -> None:
    """evenkeel's own has its classes last, and a softcap and a temperature between the logits and the softmax."""
    logits = call.args[0]
    softcap, temperature = call.kwargs["softcap"], call.kwargs["temperature"]
    with torch.no_grad(), torch._C.DisableTorchFunction():
        scores = logits.detach() if softcap is None else softcap * torch.tanh(logits.detach() / softcap)
        scores = scores if temperature == 1.0 else scores / temperature
        scores = scores.movedim(-1, 1) if scores.dim() > 2 else scores
    _loss(trace, logits, scores, target, ignored)


def _linear_loss(trace: Trace, call: Call) -> Any:
    """evenkeel.functional.linear_cross_entropy never holds its logits; they are made again, a chunk at a time."""
    result = call.run()
    path = trace.frames.path if trace.frames.stack else trace.tags[call.args[0]].producer
    trace.head(path or "", _chunks_of_logits(call))
    return result


def _chunks_of_logits(call: Call) -> Iterator[HeadEvent]:
    x, weight, target = (item.detach() for item in call.args[:3])
    bias, softcap, temperature = (call.kwargs[name] for name in ("bias", "softcap", "temperature"))
    rows, targets = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    chunk = max(1, _MOST_LOGITS // weight.shape[0])
    for start in range(0, len(rows), chunk):
        with quietly():
            logits = rows[start : start + chunk] @ weight.to(x.dtype).mT
            logits = logits if bias is None else logits + bias
            logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
        yield HeadEvent(
            logits=logits,
            targets=targets[start : start + chunk],
            ignore_index=call.kwargs["ignore_index"],
            before=targets[start - 1 : start] if start else None,
            epsilon=torch.finfo(torch.float32).eps,
        )


def _nll_loss(trace: Trace, call: Call) -> Any:
    result = call.run()
    assert call.source is not None
    logits = trace.tags[call.source].log_softmax_of
    if logits is not None:
        _loss(trace, logits, logits, call.argument(1, "target"), call.argument(4, "ignore_index", -100))
    return result


def _loss(trace: Trace, logits: Tensor, scores: Tensor, target: Any, ignore_index: int) -> None:
    """A loss of logits, by way of scores (rows, classes, ...) that went into its softmax."""
    path = trace.tags[logits].producer
    if path is None and not trace.frames.stack:
        return  # a loss of something else than this model's output
    classes_last = scores.movedim(1, -1) if scores.dim() > 2 else scores
    rows = classes_last.detach().reshape(-1, classes_last.shape[-1])
    known = isinstance(target, Tensor) and not target.is_floating_point()
    targets = target.detach().reshape(-1) if known else None
    epsilon = trace.tags[logits].epsilon
    trace.head(path or "", [HeadEvent(logits=rows, targets=targets, ignore_index=ignore_index, epsilon=epsilon)])
