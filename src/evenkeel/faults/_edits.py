"""What faults put into a live model where weights alone cannot carry them: other calls, other outputs of a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..errors import NotApplicable
from ..functional import attention, scale_factor
from ..surgery.attending import Fused, Own
from ..surgery.by_hand import ByHand, softmax_before
from ..surgery.edits import ForwardEdit, rewritings
from ..surgery.rewriting import Action, Forward, Kept
from ..surgery.scores import FUSED, capped, factors, fused_scale, named
from ..surgery.tape import Entry
from ._parts import Attended, or_not_applicable
from ._places import Anatomy

Function = Callable[..., Any]
Calls = list[tuple[Entry, Action]]


OnScores = Callable[[Tensor], Tensor]
"""What is done to a mask, or to scores with a mask added: (..., queries, keys), hidden ones far below all others."""

Softmax = Callable[[Tensor], Tensor]
"""What stands in the place of a softmax over the last dimension of scores."""


@dataclass(frozen=True)
class FusedMask(Action):
    """scaled_dot_product_attention with another mask; causality becomes a part of it."""

    change: OnScores

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        given = named(FUSED, args, kwargs)
        mask = added(given["query"], given["key"], given.get("attn_mask"), given.get("is_causal", False))
        return func(**{**given, "attn_mask": self.change(mask), "is_causal": False})


@dataclass(frozen=True)
class OwnMask(Action):
    """evenkeel.functional.attention with another mask; causality becomes a part of it."""

    change: OnScores

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        mask = added(args[0], args[1], kwargs.get("mask"), kwargs.get("causal", False))
        return func(*args, **{**kwargs, "mask": self.change(mask), "causal": False})


@dataclass(frozen=True)
class SoftmaxMask(Action):
    """A softmax of other scores."""

    change: OnScores

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        scores, *rest = args
        return func(self.change(scores), *rest, **kwargs)


@dataclass(frozen=True)
class MaskAdded(Action):
    """A sum of scores and a mask, with another mask (argument `position`)."""

    change: OnScores
    position: int

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        changed = list(args)
        changed[self.position] = self.change(changed[self.position])
        return func(*changed, **kwargs)


@dataclass(frozen=True)
class SoftmaxReplaced(Action):
    """Something else in the place of a softmax."""

    softmax: Softmax

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        return self.softmax(args[0])


@dataclass(frozen=True)
class Dense(Action):
    """Attention written out, with something else in the place of its softmax; scores in `dtype` where it is given."""

    softmax: Softmax
    dtype: torch.dtype | None = None

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        if func is attention:
            query, key, value = args
            mask, causal, softcap = kwargs.get("mask"), kwargs.get("causal", False), kwargs.get("softcap")
            scale = scale_factor(kwargs["scale"], query.shape[-1])
        else:
            given = named(FUSED, args, kwargs)
            query, key, value = (given[name] for name in FUSED[:3])
            mask, causal, softcap = given.get("attn_mask"), given.get("is_causal", False), None
            scale = fused_scale(given)
        if key.shape[1] != query.shape[1]:
            key, value = (item.repeat_interleave(query.shape[1] // key.shape[1], 1) for item in (key, value))
        product = query @ key.mT if self.dtype is None else query.to(self.dtype) @ key.to(self.dtype).mT
        scores = (product * scale).to(query.dtype)
        scores = scores if softcap is None else capped(scores, softcap)
        hidden = added(query, key, mask, causal)
        return self.softmax(scores + hidden) @ value


@dataclass(frozen=True)
class ProductIn(Action):
    """queries·keysᵀ computed in another dtype."""

    dtype: torch.dtype

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        query, key = args
        return func(query.to(self.dtype), key.to(self.dtype), **kwargs).to(query.dtype)


@dataclass(frozen=True)
class LossReplaced(Action):
    """Something else in the place of a cross-entropy: a function of logits (tokens, classes) and targets (tokens,)."""

    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        if func is functional.linear_cross_entropy:
            x, weight, target, *_ = args
            logits = F.linear(x, weight, kwargs.get("bias"))
            softcap = kwargs.get("softcap")
            logits = logits if softcap is None else capped(logits, softcap)
        else:
            given = named(("input", "target"), args, kwargs)
            logits, target = given["input"], given["target"]
        ignored = kwargs.get("ignore_index", -100)
        logits, target = logits.flatten(0, -2), target.flatten()
        return self.loss(logits[target != ignored].float(), target[target != ignored])


@dataclass(eq=False, kw_only=True)
class OutputChanged(Forward):
    """The forward of a module, with its first output changed."""

    change: Callable[[Tensor], Tensor]

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        output = self.before(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.change(output[0]), *output[1:])
        return self.change(output)


def change_output(anatomy: Anatomy, path: str, change: Callable[[Tensor], Tensor]) -> ForwardEdit:
    """Put a change of its first output into a module; the edit takes it out again."""
    edit = ForwardEdit(OutputChanged(module=anatomy.module(path), path=path, rules={}, change=change))
    edit.install(None)
    return edit


def change_calls(anatomy: Anatomy, calls: Iterable[tuple[Entry, Action]]) -> None:
    """Put other calls into the modules that make them."""
    with or_not_applicable():
        edits = rewritings(anatomy.survey, calls)
    for edit in edits:
        edit.install(None)


def masked(anatomy: Anatomy, item: Attended, change: OnScores) -> Calls:
    """The calls to change so that an attention's mask, or its masked scores, are others."""
    if isinstance(item.form, Fused):
        return [(item.form.product, FusedMask(change))]
    if isinstance(item.form, Own):
        return [(item.form.product, OwnMask(change))]
    with or_not_applicable():
        return [(softmax_before(anatomy.survey.tape, item.entry), SoftmaxMask(change))]


def mask_alone(item: Attended, change: OnScores) -> Calls:
    """The calls to change so that an attention's mask is another one; the scores stay out of it."""
    if isinstance(item.form, Fused):
        return [(item.form.product, FusedMask(change))]
    if isinstance(item.form, Own):
        return [(item.form.product, OwnMask(change))]
    steps = item.form.steps if isinstance(item.form, ByHand) else []
    for step in steps:
        tensors = [place for place, given in enumerate(step.entry.args) if isinstance(given, Tensor)]
        if step.does == "mask" and step.entry.name == "add" and tensors == [0, 1]:
            shapes = [step.entry.args[place].shape[-2:] for place in tensors]
            if shapes[0] == shapes[1]:
                return [(step.entry, MaskAdded(change, 1))]
    raise NotApplicable(f"the mask of {item.site.path} is not added to its scores in one call")


def softmaxed(anatomy: Anatomy, item: Attended, softmax: Softmax) -> Calls:
    """The calls to change so that something else stands in the place of an attention's softmax."""
    if isinstance(item.form, Fused | Own):
        return [(item.form.product, Dense(softmax))]
    with or_not_applicable():
        return [(softmax_before(anatomy.survey.tape, item.entry), SoftmaxReplaced(softmax))]


def product_in(item: Attended, dtype: torch.dtype) -> Calls:
    """The calls to change so that an attention computes queries·keysᵀ, and scales it, in a dtype, by hand."""
    if isinstance(item.form, Fused | Own):
        return [(item.form.product, Dense(plain_softmax, dtype))]
    if len(factors(item.form.product.args, item.form.product.kwargs)) != 2:
        raise NotApplicable(f"{item.site.path} adds something to its scores in the product itself")
    return [(item.form.product, ProductIn(dtype))]


def plain_softmax(scores: Tensor) -> Tensor:
    """torch's own."""
    return torch.softmax(scores, -1)


def added(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """A mask and causality as one tensor to add to scores: (..., queries, keys)."""
    result = query.new_zeros(query.shape[-2], key.shape[-2])
    if causal:
        result = result.masked_fill(torch.ones_like(result, dtype=torch.bool).triu(1), -math.inf)
    if mask is None:
        return result
    if mask.dtype != torch.bool:
        return result + mask.to(result.dtype)
    return result.masked_fill(~mask, -math.inf)
