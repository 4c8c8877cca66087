"""Attention with all its options, exact: torch's fused kernel where it has them, else tiles in O(length) memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..errors import UsageError
from ._attention_blockwise import (
    attend,
    attend_backward,
    attend_backward_batched,
    attend_batched,
    shaped,
    shaped_backward,
)
from ._attention_dense import dense_attention
from ._attention_options import Scale, check_sinks, check_softcap, check_value, checked, reach, scale_factor
from ._operators import apart, is_differentiated, operator


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: Scale = "sqrt",
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: int | None = None,
    normalizer: Literal["softmax", "sigmoid"] = "softmax",
) -> Tensor:
    """p·value, (batch, heads, queries, value_dim), with p = softmax(c·tanh(scale·q kᵀ / c) + mask) over visible keys.

    query: (batch, heads, queries, head_dim). key: (batch, key_heads, keys, head_dim), value: (batch, key_heads, keys,
    value_dim), heads a multiple of key_heads: head h attends with key head h // (heads / key_heads).
    scale: "sqrt" = 1/√head_dim, "dim" = 1/head_dim, "none" = 1, or a number. causal: query i sees keys j ≤ i (aligned
    top-left, as in torch). mask: broadcastable to (batch, heads, queries, keys); bool (True = visible) or added to the
    scores, where −inf and nothing else hides. softcap: c in logits; none by default. sinks: (heads,), a logit per head
    that takes its share of the softmax and gives no value. window: query i sees keys with |i − j| < window.
    normalizer: "sigmoid" has p = σ(score − log keys), each key by itself. A query that sees nothing gives zeros.
    All of one floating dtype, which the result has; bfloat16 and float16 are computed in float32. Memory beyond the
    result is O(queries + keys), forward and backward. Gradients to query, key, value, sinks and a float mask; second
    derivatives where torch's fused kernel is not taken, so always in float64, in O(queries·keys) memory.
    Raises UsageError for shapes, dtypes or options that do not fit together.
    Source: Vaswani et al. 2017; Dao et al. 2022 (tiles); Bello et al. 2017 and Gemma 2 (softcap); gpt-oss (sinks);
    Beltagy et al. 2020 (window); Ramapuram et al. 2024 (sigmoid).
    """
    given = tuple(tensor for tensor in (query, key, value, mask, sinks) if tensor is not None)
    if has_torch_function(given):
        named: dict[str, Any] = {"scale": scale, "causal": causal, "mask": mask, "softcap": softcap, "sinks": sinks}
        named |= {"window": window, "normalizer": normalizer}
        return handle_torch_function(attention, given, query, key, value, **named)
    mask = checked(query, key, mask)
    check_value(key, value)
    check_sinks(sinks, query.shape[1])
    if normalizer not in ("softmax", "sigmoid"):
        raise UsageError(f"normalizer is {normalizer!r}; it is 'softmax' or 'sigmoid'")
    if normalizer == "sigmoid" and sinks is not None:
        raise UsageError("sinks take a share of a softmax, and normalizer='sigmoid' shares nothing; leave sinks out")
    check_softcap(softcap)
    before, after = reach(causal, window)
    factor = scale_factor(scale, query.shape[-1])
    plain = softcap is None and sinks is None and window is None and normalizer == "softmax"
    if plain and not (causal and mask is not None) and _is_fused(query, value, mask):
        bias = mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype)
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, bias, 0.0, causal, scale=factor, enable_gqa=grouped)
    if sinks is not None:
        sinks = sinks.expand(query.shape[:2])
    tensors = query, key, value, mask, sinks
    options = factor, softcap, before, after, normalizer == "sigmoid"
    if is_differentiated(*given):
        return _Attention.apply(*apart(*tensors), *options)[0]
    return _attend(*tensors, *options)[0]


def _is_fused(query: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether torch has one kernel for it that need not be differentiated twice."""
    if value.shape[3] != query.shape[3] or min(query.numel(), value.numel()) == 0:
        return False
    if query.dtype == torch.float64 and is_differentiated(query, value):
        return False
    return mask is None or not mask.requires_grad


_OPTIONS = "float scale, float? softcap, int before, int after, bool sigmoid"
_attend = operator(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, "
    + _OPTIONS
    + ") -> (Tensor, Tensor)",
    cpu=attend,
    composite=attend,
    fake=shaped,
    vmap=lambda *arguments: attend_batched(_attend, *arguments),
)
_attend_backward = operator(
    "attention_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, "
    "Tensor output, Tensor logsumexp, bool to_mask, " + _OPTIONS + ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=attend_backward,
    composite=attend_backward,
    fake=shaped_backward,
    vmap=lambda *arguments: attend_backward_batched(_attend_backward, *arguments),
)


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        scale: float,
        softcap: float | None,
        before: int,
        after: int,
        sigmoid: bool,
    ) -> tuple[Tensor, Tensor]:
        return _attend(query, key, value, mask, sinks, scale, softcap, before, after, sigmoid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:5], *output)
        ctx.mark_non_differentiable(output[1])
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_mask, to_sinks = ctx.needs_input_grad[3:5]
        found = _AttentionBackward.apply(gradients[0], *ctx.saved_tensors, to_mask, *ctx.options)
        return *found[:3], found[3] if to_mask else None, found[4] if to_sinks else None, None, None, None, None, None


class _AttentionBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        output: Tensor,
        logsumexp: Tensor,
        to_mask: bool,
        scale: float,
        softcap: float | None,
        before: int,
        after: int,
        sigmoid: bool,
    ) -> tuple[Tensor, ...]:
        saved = (mask, sinks, output, logsumexp, to_mask)
        return _attend_backward(gradient, query, key, value, *saved, scale, softcap, before, after, sigmoid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.to_mask, ctx.options = inputs[8], inputs[9:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *saved = ctx.saved_tensors
        inputs: list[Any] = saved
        places = [0, 1, 2] + [3] * ctx.to_mask + [4] * (inputs[4] is not None)

        def slopes(gradient: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            def attended(*tensors: Tensor) -> Tensor:
                own: dict[int, Any] = dict(zip(places, tensors, strict=True))
                return dense_attention(*(own.get(place, item) for place, item in enumerate(inputs)), *ctx.options)

            return torch.func.vjp(attended, *tensors)[1](gradient)

        pull = torch.func.vjp(slopes, gradient, *(inputs[place] for place in places))[1]
        first, *found = pull(tuple(gradients[place] for place in places))
        second = dict(zip(places, found, strict=True))
        return first, *(second.get(place) for place in range(5)), *(None for _ in range(8))
