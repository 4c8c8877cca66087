"""Softmax and logsumexp spelled out: exp(s) / Σ exp(s) and log Σ exp(s), and what was raised in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .events import ExponentialEvent
from .functions import AFFINE, PRODUCTS, QUOTIENTS
from .provenance import Normalised, Tag
from .trace import Trace


def total(trace: Trace, call: Call) -> Any:
    """A sum over one dimension: of exponentials, it is what they may be divided by."""
    result = call.run()
    source, dim = call.source, call.argument(1, "dim")
    dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
    if source is not None and isinstance(dim, int):
        tag = trace.tags[source]
        if tag.exponents is not None:
            dim = dim if dim < 0 else dim - source.dim()
            trace.tags.set(result, Tag(producer=tag.producer, total=(tag.exponents, dim)))
    return result


def follow(trace: Trace, call: Call, tensors: list[Tensor], tags: list[Tag], result: Tensor, tag: Tag) -> Tag:
    """What elementwise arithmetic makes of exponentials and of their sum."""
    if call.name == "exp":
        return replace(tag, exponents=tensors[0], visible=tags[0].visible)
    if not any(item.exponents is not None or item.total for item in tags):
        return tag
    if len(tensors) == 1:
        if call.name == "log" and tags[0].total:
            _seen(trace, tags[0].total[0], result.dtype, tag.producer)
        return replace(tag, total=tags[0].total) if call.name in AFFINE else tag
    first, second = tags
    if call.name in QUOTIENTS and second.total and first.exponents is second.total[0]:
        return _softmax(trace, *second.total, first.visible, result.dtype, tag)
    if call.name in PRODUCTS:
        for own, mask in ((first, tensors[1]), (second, tensors[0])):
            if own.exponents is not None and not mask.requires_grad:
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    visible = mask != 0 if own.visible is None else own.visible & (mask != 0)
                return replace(tag, exponents=own.exponents, visible=visible)
    return tag


def _softmax(trace: Trace, exponents: Tensor, dim: int, visible: Tensor | None, dtype: torch.dtype, tag: Tag) -> Tag:
    _seen(trace, exponents, dtype, tag.producer)
    normalised = Normalised("softmax", trace.frames.path, exponents, dim, visible)
    trace.add_normalised(normalised)
    return replace(tag, cuts=(), normalised=normalised, normalised_dim=dim)


def _seen(trace: Trace, exponents: Tensor, dtype: torch.dtype, producer: str | None) -> None:
    """A site of its own; behind the model, as in a loss, it belongs to where its numbers come from."""
    path = trace.frames.path if trace.frames.stack else producer
    if path is not None:
        site = trace.site("module", "softmax_by_hand", path)
        trace.emit(site, ExponentialEvent(exponents=exponents.detach(), dtype=dtype))
