"""What a change does to attention: the actions that stand in the place of its calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import attention, scale_factor
from ..tracing.attention import as_computed
from .rewriting import Action, Kept

EPSILON = 1e-6

Function = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
ADDED = ("input", "batch1", "batch2")
MULTI_HEAD = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias")
FLEXIBLE = ("query", "key", "value", "score_mod", "block_mask", "scale")


def unit_rms(x: Tensor) -> Tensor:
    """x / √(mean(x²) + 1e-6) over the last dimension, computed in float32 at least; no weights."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.rms_norm(wide, wide.shape[-1:], eps=EPSILON).to(x.dtype)


def capped(scores: Tensor, softcap: float) -> Tensor:
    """softcap·tanh(scores / softcap)."""
    return softcap * torch.tanh(scores / softcap)


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The first arguments of a call by name, and those that were given by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


@dataclass(frozen=True)
class FusedScale(Action):
    """scaled_dot_product_attention with its scale times a factor."""

    factor: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        given = named(FUSED, args, kwargs)
        return func(**{**given, "scale": fused_scale(given) * self.factor})


@dataclass(frozen=True)
class FusedSoftcap(Action):
    """evenkeel.functional.attention with a softcap in the place of scaled_dot_product_attention."""

    softcap: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        given = named(FUSED, args, kwargs)
        query, key, value = (as_computed(given[name]) for name in FUSED[:3])
        mask, causal, scale = given.get("attn_mask"), given.get("is_causal", False), fused_scale(given)
        dropout = given.get("dropout_p", 0.0)
        if query.dim() == 4 and not dropout:
            return attention(query, key, value, scale=scale, causal=causal, mask=mask, softcap=self.softcap)
        return _dense(query, key, value, mask, causal, scale, self.softcap, dropout)


@dataclass(frozen=True)
class FusedNorm(Action):
    """scaled_dot_product_attention of unit-rms queries and keys; `before` is what the queries were scaled with."""

    before: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        given = named(FUSED, args, kwargs)
        normed = {"query": unit_rms(given["query"]), "key": unit_rms(given["key"])}
        return func(**{**given, **normed, "scale": fused_scale(given) * self.before})


def fused_scale(given: dict[str, Any]) -> float:
    """The scale of a call of scaled_dot_product_attention."""
    scale = given.get("scale")
    return 1 / math.sqrt(given["query"].shape[-1]) if scale is None else scale


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
    dropout: float,
) -> Tensor:
    """The same by definition, with dropout, in O(queries·keys) memory."""
    if query.dim() == 4 and key.shape[1] != query.shape[1]:
        key, value = (item.repeat_interleave(query.shape[1] // key.shape[1], 1) for item in (key, value))
    scores = capped(query @ key.mT * scale, softcap)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    seen = scores.amax(-1, keepdim=True) > -math.inf
    weights = torch.softmax(scores.masked_fill(~seen, 0.0), -1) * seen
    return F.dropout(weights, dropout) @ value


@dataclass(frozen=True)
class OwnScale(Action):
    """evenkeel.functional.attention with its scale times a factor."""

    factor: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        scale = scale_factor(kwargs["scale"], args[0].shape[-1])
        return func(*args, **{**kwargs, "scale": scale * self.factor})


@dataclass(frozen=True)
class OwnSoftcap(Action):
    """evenkeel.functional.attention with another softcap."""

    softcap: float | None

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        return func(*args, **{**kwargs, "softcap": self.softcap})


@dataclass(frozen=True)
class OwnNorm(Action):
    """evenkeel.functional.attention of unit-rms queries and keys."""

    before: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        query, key, *rest = args
        scale = scale_factor(kwargs["scale"], query.shape[-1])
        return func(unit_rms(query), unit_rms(key), *rest, **{**kwargs, "scale": scale * self.before})


@dataclass(frozen=True)
class MultiHeadScale(Action):
    """multi_head_attention_forward with the map that makes its queries times a factor: its scale is out of reach."""

    factor: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
        given = named(MULTI_HEAD, args, kwargs)
        rest = args[len(MULTI_HEAD) :]
        width = given["embed_dim_to_check"]
        for name in ("in_proj_weight", "in_proj_bias"):
            whole = given[name]
            if whole is not None:
                given[name] = torch.cat([whole[:width] * self.factor, whole[width:]])
        if given.get("q_proj_weight") is not None:
            given["q_proj_weight"] = given["q_proj_weight"] * self.factor
        first = [given.pop(name) for name in MULTI_HEAD]
        return func(*first, *rest, **given)


@dataclass(frozen=True)
class FlexibleScale(Action):
    """FlexAttention with its scale times a factor, and where `normed` with unit-rms queries and keys."""

    factor: float
    normed: bool = False

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
        query, key, value, score, mask, scale, *rest = args
        if self.normed:
            query, key = unit_rms(query), unit_rms(key)
        return func(query, key, value, score, mask, scale * self.factor, *rest, **kwargs)


@dataclass(frozen=True)
class NumberScaled(Action):
    """A product or quotient with a number: the number, which is argument `position`, times a factor."""

    position: int
    factor: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        changed = (*args[: self.position], args[self.position] * self.factor, *args[self.position + 1 :])
        return func(*changed, **kwargs)


@dataclass(frozen=True)
class ProductScaled(Action):
    """queries·keysᵀ times a factor; of a product that is added to something (baddbmm) the product alone."""

    factor: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        if is_added(func):
            return func(*args, **{**kwargs, "alpha": kwargs.get("alpha", 1) * self.factor})
        return func(*args, **kwargs) * self.factor


@dataclass(frozen=True)
class ScoresCapped(Action):
    """A softcap on what the call returns, the scaled scores; of a product that is added to something on that alone."""

    softcap: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        if is_added(func):
            added, query, key = factors(args, kwargs)
            scores = capped(torch.bmm(query, key) * kwargs.get("alpha", 1), self.softcap)
            beta = kwargs.get("beta", 1)
            return scores if beta == 0 else scores + beta * added
        return capped(func(*args, **kwargs), self.softcap)


@dataclass(frozen=True)
class CapReplaced(Action):
    """In the place of the tanh of a softcap of `old`: that of another softcap, or of none, for what comes behind it."""

    old: float
    new: float | None

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        if self.new is None:
            return args[0]
        ratio = self.old / self.new
        return func(args[0] * ratio, *args[1:], **kwargs) / ratio


@dataclass(frozen=True)
class FactorsNormed(Action):
    """queries·keysᵀ of unit-rms queries and keys, times what the queries and keys were scaled with before."""

    before: float

    def __call__(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        *added, query, key = factors(args, kwargs)
        rest = {name: value for name, value in kwargs.items() if name not in ADDED}
        return func(*added, unit_rms(query) * self.before, unit_rms(key.mT).mT, **rest)


def factors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The tensors of a product, in order, however they were given."""
    return [*args, *(kwargs[name] for name in ADDED[len(args) :] if name in kwargs)]


def is_added(func: Function) -> bool:
    """Whether a product is added to something in the same call."""
    return getattr(func, "__name__", "") == "baddbmm"
