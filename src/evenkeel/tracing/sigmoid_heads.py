"""Losses that make each logit a yes or a no of its own: the head of independent sigmoids."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional import sigmoid_cross_entropy
from .call import Call
from .events import SigmoidHeadEvent
from .trace import Trace, quietly


def own(trace: Trace, call: Call) -> Any:
    """evenkeel.functional.sigmoid_cross_entropy(logits, target): one class a row."""
    result = call.run()
    if call.func is sigmoid_cross_entropy and call.source is not None:
        target, ignored = call.argument(1, "target"), call.kwargs["ignore_index"]
        _head(trace, call.source, (target != ignored).long())
    return result


def binary(trace: Trace, call: Call) -> Any:
    """F.binary_cross_entropy(probabilities, target), or with logits: targets of the logits' own shape."""
    result = call.run()
    target = call.argument(1, "target")
    if call.source is not None and isinstance(target, Tensor) and target.dim() >= 2 and target.shape[-1] > 1:
        with quietly():
            wanted = (target >= 0.5).sum(-1)
        _head(trace, call.source, wanted)
    return result


def _head(trace: Trace, logits: Tensor, wanted: Tensor) -> None:
    path = trace.tags[logits].producer
    if path is None and not trace.frames.stack:
        return  # a loss of something else than this model's output
    rows = logits.detach().reshape(-1, logits.shape[-1])
    trace.head(path or "", [SigmoidHeadEvent(logits=rows, wanted=wanted.reshape(-1))], op="sigmoid")
