"""What a call of attention may say, and what it means: shapes, scale, mask, softcap, sinks and window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError

EVERYWHERE = 2**40  # as a reach: farther than any key

Scale = Literal["sqrt", "dim", "none"] | float  # in the order of AttentionConfig: typing keeps one of equal unions
_SCALES: dict[str, Callable[[int], float]] = {
    "sqrt": lambda dim: dim**-0.5,
    "none": lambda dim: 1.0,
    "dim": lambda dim: 1 / dim,
}


def scale_factor(scale: Scale, head_dim: int) -> float:
    """The number that a scale stands for: 1/√head_dim, 1/head_dim, 1, or itself."""
    if isinstance(scale, str):
        if scale not in _SCALES:
            raise UsageError(f"scale is {scale!r}; it is one of {', '.join(map(repr, _SCALES))}, or a number")
        return _SCALES[scale](max(1, head_dim))
    return float(scale)


def are_grouped(query: Tensor, key: Tensor) -> bool:
    """Whether both are (batch, heads, length, head_dim), heads of the query a multiple of the key's, the rest alike."""
    if query.dim() != 4 or key.dim() != 4 or (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        return False
    return query.shape[1] % key.shape[1] == 0 if key.shape[1] else query.shape[1] == 0


def reach(causal: bool, window: int | None) -> tuple[int, int]:
    """How far before and after its own position a query sees.

    Raises UsageError for a window below 1.
    """
    if window is not None and window < 1:
        raise UsageError(f"window is {window}; the smallest, 1, lets a query see its own position only")
    before = EVERYWHERE if window is None else window - 1
    return before, 0 if causal else before


def check_softcap(softcap: float | None) -> None:
    """Raises UsageError for a cap that is not above 0."""
    if softcap is not None and not softcap > 0:
        raise UsageError(f"softcap is {softcap}; it must be above 0, or None for no cap")


def checked(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask with four dimensions, once query, key and mask are known to fit.

    Raises UsageError for shapes or dtypes that do not.
    """
    if not are_grouped(query, key):
        raise UsageError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; they must be (batch, heads, queries, "
            "head_dim) and (batch, key_heads, keys, head_dim), heads a multiple of key_heads"
        )
    if not query.is_floating_point() or query.dtype != key.dtype:
        raise UsageError(
            f"query is {query.dtype} and key {key.dtype}; they must be of one floating dtype: convert with .to()"
        )
    if mask is None:
        return None
    wanted = (*query.shape[:3], key.shape[2])
    fits = mask.dim() <= 4 and all(
        size in (1, full) for size, full in zip(reversed(mask.shape), reversed(wanted), strict=False)
    )
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise UsageError(
            f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; it must be broadcastable to {wanted}, and "
            "bool (True = visible) or floating (added to the scores)"
        )
    return mask[(None,) * (4 - mask.dim())]


def check_value(key: Tensor, value: Tensor) -> None:
    """Raises UsageError for values that do not belong to the keys."""
    if value.dim() != 4 or value.shape[:3] != key.shape[:3] or value.dtype != key.dtype:
        raise UsageError(
            f"value has shape {tuple(value.shape)} in {value.dtype} and key {tuple(key.shape)} in {key.dtype}; value "
            "must be (batch, key_heads, keys, value_dim), of the key's dtype"
        )


def check_sinks(sinks: Tensor | None, heads: int) -> None:
    """Raises UsageError for anything but one floating logit per head."""
    if sinks is not None and (tuple(sinks.shape) != (heads,) or not sinks.is_floating_point()):
        raise UsageError(
            f"sinks have shape {tuple(sinks.shape)} and dtype {sinks.dtype}; they must be ({heads},), one floating "
            "logit per query head"
        )
