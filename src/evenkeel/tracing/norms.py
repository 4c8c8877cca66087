"""Norms: in one call, or spelled out as x · rsqrt(mean x² + ε), in whatever module."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .events import NormEvent
from .functions import PRODUCTS, QUOTIENTS
from .provenance import Moment, Normed, Tag
from .trace import Trace

_SQUARES = frozenset(("pow(x,2;)", "pow(x,2.0;)", "square(x;)", "mul(x,x;)"))
_ROOTS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
_SUMS = frozenset(("add", "sub", "subtract"))


def fused(trace: Trace, call: Call) -> Any:
    """F.layer_norm (input, normalized_shape, weight, bias, eps), F.rms_norm without bias, F.group_norm."""
    result = call.run()
    x = call.source
    if not trace.frames.stack or x is None or x.numel() == 0:
        return result
    grouped, of_squares = call.name == "group_norm", call.name == "rms_norm"
    if grouped:
        size = x.numel() // (x.shape[0] * call.argument(1, "num_groups"))
    else:
        size = math.prod(call.argument(1, "normalized_shape"))
    epsilon = call.argument(3 if of_squares else 4, "eps", None if of_squares else 1e-5)
    event = NormEvent(
        input=x.detach(),
        output=result.detach(),
        size=size,
        epsilon=torch.finfo(x.dtype).eps if epsilon is None else float(epsilon),
        centred=not of_squares,
        channel_dim=1 if grouped else -1,
        reads_stream=trace.reads_stream(x),
    )
    trace.emit(trace.site("norm", call.name), event)
    return result


def moment(trace: Trace, call: Call) -> Any:
    """The mean of squares, or the variance, over the last dimension: it may become a norm's."""
    result = call.run()
    x, dim = call.source, call.argument(1, "dim")
    kept = call.kwargs.get("keepdim") or (call.name == "mean" and call.argument(2, "keepdim", False))
    if x is None or not kept or dim not in (-1, [-1], (-1,), x.dim() - 1):
        return result
    if call.name == "var":
        trace.tags.set(result, Tag(moment=Moment("layer_norm", x.shape)))
    elif any(cut.node is not None and cut.node.key in _SQUARES for cut in trace.tags[x].cuts):
        trace.tags.set(result, Tag(moment=Moment("rms_norm", x.shape)))
    return result


def follow(trace: Trace, call: Call, tensors: list[Tensor], tags: list[Tag], result: Tensor, tag: Tag) -> Tag:
    """What elementwise arithmetic makes of a moment, and of what was divided by the root of one."""
    if not any(item.moment or item.normed for item in tags):
        return tag
    if len(tensors) == 1:
        return replace(tag, moment=_changed(call, tags[0].moment), normed=tags[0].normed)
    for x, other in (tensors, tensors[::-1]) if len(tensors) == 2 else ():
        root, normed = trace.tags[other].moment, trace.tags[x].normed
        if root is not None and x.shape == root.shape and _divides(call.name, root, other is tensors[1]):
            normed = Normed(trace.frames.path, x, result, root.epsilon, root.op, trace.reads_stream(x))
            trace.add_normed(normed)
            return replace(tag, normed=normed)
        if normed is not None and call.name in PRODUCTS | _SUMS and other.numel() == result.shape[-1]:
            normed.output = result  # the gain and the bias, a number per channel
            return replace(tag, normed=normed)
    return tag


def _changed(call: Call, moment: Moment | None) -> Moment | None:
    numbers = [item for item in call.args[1:] if isinstance(item, int | float)]
    if moment is None:
        return None
    if call.name == "add" and moment.power == 1 and len(numbers) == 1:
        return replace(moment, epsilon=moment.epsilon + float(numbers[0]))
    if call.name in _ROOTS:
        return replace(moment, power=moment.power * _ROOTS[call.name])
    if call.name == "pow" and len(numbers) == 1:
        return replace(moment, power=moment.power * float(numbers[0]))
    return None


def _divides(name: str, root: Moment, second: bool) -> bool:
    return (name in PRODUCTS and root.power == -0.5) or (name in QUOTIENTS and root.power == 0.5 and second)


def event(normed: Normed) -> NormEvent:
    """What instruments see of a norm that a model has spelled out."""
    assert normed.input is not None and normed.output is not None
    return NormEvent(
        input=normed.input.detach(),
        output=normed.output.detach(),
        size=normed.input.shape[-1],
        epsilon=normed.epsilon,
        centred=False,  # where the mean is taken out, it is out of what was divided
        reads_stream=normed.reads_stream,
    )
