"""Attention in every form it is called: fused, through nn.MultiheadAttention, through FlexAttention, by hand."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import scale_factor
from .call import Call
from .events import AttentionEvent
from .trace import Trace

MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
"""Its arguments tell all that its inside would show."""

_MOST_FLEXIBLE = 2**24
_FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def fused(trace: Trace, call: Call) -> Any:
    """F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)."""
    result = call.run()
    if not trace.frames.stack:
        return result
    given = {**dict(zip(_FUSED, call.args, strict=False)), **call.kwargs}
    query, key = (four_dims(as_computed(given[name].detach())) for name in ("query", "key"))
    scale = given.get("scale")
    mask = given.get("attn_mask")
    event = AttentionEvent(
        query=query,
        key=key,
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        causal=bool(given.get("is_causal", False)),
        factor=trace.tags[given["query"]].factor * trace.tags[given["key"]].factor,
        mask=None if mask is None else _four_dims_mask(mask.detach(), given["query"]),
        padded_queries=trace.frames.padding(query.shape[0], query.shape[2]),
    )
    trace.emit(trace.site("attention", "softmax"), event)
    return result


def own(trace: Trace, call: Call) -> Any:
    """evenkeel.functional.attention(query, key, value, *, scale, causal, mask, softcap, sinks, window, normalizer)."""
    result = call.run()
    if not trace.frames.stack:
        return result
    options = call.kwargs
    if options["normalizer"] == "sigmoid":
        trace.not_measured("attention", "sigmoid", "no instrument reads sigmoid attention yet")
    elif options["sinks"] is not None:
        trace.not_measured("attention", "softmax", "no instrument reads attention with learned sinks yet")
    else:
        query, key = (as_computed(item.detach()) for item in call.args[:2])
        mask = options["mask"]
        event = AttentionEvent(
            query=query,
            key=key,
            scale=scale_factor(options["scale"], query.shape[-1]),
            factor=trace.tags[call.args[0]].factor * trace.tags[call.args[1]].factor,
            causal=options["causal"],
            mask=None if mask is None else mask.detach()[(None,) * (4 - mask.dim())],
            softcap=options["softcap"],
            window=options["window"],
            padded_queries=trace.frames.padding(query.shape[0], query.shape[2]),
        )
        trace.emit(trace.site("attention", "softmax"), event)
    return result


def multi_head(trace: Trace, call: Call) -> Any:
    """F.multi_head_attention_forward, whose inside no function mode sees: its arguments tell all."""
    result = call.run()
    if trace.frames.stack:
        given = MULTI_HEAD.bind(*call.args, **call.kwargs)
        given.apply_defaults()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            event = _multi_head_event(given.arguments)
        trace.emit(trace.site("attention", "softmax"), event)
    return result


def _multi_head_event(given: dict[str, Any]) -> AttentionEvent:
    query, key = given["query"], given["key"]
    if query.dim() == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    width, heads = given["embed_dim_to_check"], given["num_heads"]
    if given["use_separate_proj_weight"]:
        query_weight, key_weight = given["q_proj_weight"], given["k_proj_weight"]
    else:
        query_weight, key_weight = given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]
    bias = given["in_proj_bias"]
    queries = F.linear(query, query_weight, None if bias is None else bias[:width])
    keys = F.linear(key, key_weight, None if bias is None else bias[width : 2 * width])
    if given["static_k"] is not None:
        keys = given["static_k"].transpose(0, 1).reshape(-1, queries.shape[1], width)
    if given["bias_k"] is not None:
        keys = torch.cat([keys, given["bias_k"].expand(1, keys.shape[1], width).to(keys.dtype)])
    if given["add_zero_attn"]:
        keys = torch.cat([keys, keys.new_zeros(1, *keys.shape[1:])])
    queries, keys = (item.reshape(*item.shape[:2], heads, -1).permute(1, 2, 0, 3) for item in (queries, keys))
    padding = given["key_padding_mask"]
    padding = None if padding is None else padding.reshape(queries.shape[0], -1)
    padded = None
    if padding is not None and given["query"] is given["key"]:
        padded = padding if padding.dtype == torch.bool else padding == -math.inf
    return AttentionEvent(
        query=queries,
        key=keys,
        scale=1 / math.sqrt(queries.shape[-1]),
        mask=_multi_head_mask(given["attn_mask"], padding, queries.shape[0], heads, keys.shape[2]),
        padded_queries=padded,
    )


def _multi_head_mask(mask: Tensor | None, padding: Tensor | None, batch: int, heads: int, keys: int) -> Tensor | None:
    """One mask from both, in scaled_dot_product_attention's sense (True = visible; float = added)."""
    parts = []
    if mask is not None:
        parts.append(mask.reshape(batch, heads, *mask.shape[-2:]) if mask.dim() == 3 else mask[None, None])
    if padding is not None:
        parts.append(padding[:, None, None, :])
    if not parts:
        return None
    parts = [F.pad(part, (0, keys - part.shape[-1])) for part in parts]
    if all(part.dtype == torch.bool for part in parts):
        return ~parts[0] if len(parts) == 1 else ~(parts[0] | parts[1])
    parts = [
        torch.zeros(part.shape).masked_fill(part.cpu(), -math.inf).to(part.device) if part.dtype == torch.bool else part
        for part in parts
    ]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def flexible(trace: Trace, call: Call) -> Any:
    """FlexAttention's operator (query, key, value, score function, block mask, scale, ...): its scores in full."""
    result = call.run()
    if not trace.frames.stack:
        return result
    query, key = (as_computed(item.detach()) for item in call.args[:2])
    size = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if size > _MOST_FLEXIBLE:
        reason = (
            f"FlexAttention over {size:,} scores; they are made in full only up to {_MOST_FLEXIBLE:,}: use fewer tokens"
        )
        trace.not_measured("attention", "softmax", reason)
        return result
    with torch.no_grad(), torch._C.DisableTorchFunction():
        scores, visible = _flexible_scores(query, key, call.args[3], call.args[4], call.args[5])
    padded = trace.frames.padding(query.shape[0], query.shape[2])
    event = AttentionEvent(scores=scores, visible=visible, padded_queries=padded)
    trace.emit(trace.site("attention", "softmax"), event)
    return result


def _flexible_scores(
    query: Tensor, key: Tensor, score_function: Any, block_mask: Any, scale: float
) -> tuple[Tensor, Tensor]:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.float() @ key.float().mT * scale
    places = [torch.arange(size, device=scores.device) for size in scores.shape]
    batch, head, row, column = torch.meshgrid(*places, indexing="ij")
    scores = _on_every_score(score_function)(scores, batch, head, row, column)
    visible = _on_every_score(lambda _, *place: block_mask[-1](*place))(scores, batch, head, row, column)
    return scores, visible


def _on_every_score(function: Any) -> Any:
    for _ in range(4):
        function = torch.vmap(function)
    return function


def product(trace: Trace, call: Call) -> None:
    """A matrix product: if one factor is a softmax over what is summed here, these are attention weights on values."""
    for weights, values, summed in _factors(call):
        tag = trace.tags[weights]
        normalised = tag.normalised
        if normalised is None or normalised.used or tag.normalised_dim != summed or _is_parameter(values):
            continue
        if normalised.candidate is not None:
            if normalised.scores.dim() < 3:
                continue
            normalised.candidate.taken = True
        normalised.used = True
        if normalised.op == "sigmoid":
            trace.not_measured("attention", "sigmoid", "no instrument reads sigmoid attention yet")
            return
        scores = normalised.scores.detach().movedim(normalised.dim, -1)
        scores = four_dims(scores, batch=trace.batch)
        event = AttentionEvent(
            scores=scores,
            visible=_visible(normalised.visible, normalised.scores, scores),
            added=normalised.added,
            padded_queries=trace.frames.padding(scores.shape[0], scores.shape[2]),
        )
        trace.emit(trace.site("attention", "softmax"), event)
        return


def _visible(visible: Tensor | None, raw: Tensor, scores: Tensor) -> Tensor | None:
    if visible is None or raw.dim() == 4:
        return visible
    return visible.expand(raw.shape).reshape(scores.shape)


def _factors(call: Call) -> list[tuple[Tensor, Tensor, int]]:
    """(possible weights, the other factor, which dimension of the weights is summed over), from the end."""
    tensors = call.tensors
    if call.name == "einsum":
        return _einsum_factors(call)
    if call.name in ("baddbmm", "addmm", "addbmm"):
        tensors = tensors[1:]
    if len(tensors) != 2:
        return []
    first, second = tensors
    return [(first, second, -1), (second, first, -2 if second.dim() > 1 else -1)]


def _einsum_factors(call: Call) -> list[tuple[Tensor, Tensor, int]]:
    equation = call.args[0]
    operands = (
        list(call.args[1]) if len(call.args) == 2 and isinstance(call.args[1], tuple | list) else list(call.args[1:])
    )
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return []
    inputs, output = equation.replace(" ", "").split("->")
    letters = inputs.split(",")
    found = []
    for index in (0, 1):
        own, other = letters[index], letters[1 - index]
        summed = [place - len(own) for place, letter in enumerate(own) if letter in other and letter not in output]
        found += [(operands[index], operands[1 - index], place) for place in summed if letters[index][place] != "."]
    return found


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def as_computed(tensor: Tensor) -> Tensor:
    """The tensor in the dtype in which autocast would have the attention computed."""
    device = tensor.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def four_dims(tensor: Tensor, batch: int | None = None) -> Tensor:
    """(batch, heads, rows, columns); a leading batch·heads dimension is split where the batch size is known."""
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 3:
        if batch and tensor.shape[0] % batch == 0:
            return tensor.reshape(batch, -1, *tensor.shape[1:])
        return tensor.unsqueeze(1)
    return tensor if tensor.dim() == 4 else tensor.reshape(-1, *tensor.shape[-3:])


def _four_dims_mask(mask: Tensor, query: Tensor) -> Tensor:
    if query.dim() == 3 and mask.dim() == 3:
        return mask.unsqueeze(1)
    return mask if mask.dim() <= 4 else mask.reshape(-1, *mask.shape[-3:])
