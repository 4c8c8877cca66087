"""Calls of attention with any of its options, and what they give by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evenkeel.functional import attention
from evenkeel.reference.attention import attention as reference

TOLERANCES = {  # of the largest value: rounding of the result, and of sums over the keys
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}

MANY = {"causal": True, "mask": "bool b1qk", "softcap": 3.0, "sinks": True, "window": 30}


def named(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items() if value not in (None, False)) or "plain"


class Case:
    """Inputs of a call, and what follows from them by definition."""

    def __init__(
        self,
        queries: int = 20,
        keys: int = 13,
        *,
        batch: int = 2,
        heads: int = 4,
        key_heads: int = 2,
        head_dim: int = 8,
        value_dim: int = 8,
        dtype: torch.dtype = torch.float32,
        mask: str | None = None,
        sinks: bool = False,
        to_mask: bool = False,
        **options: Any,
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.query, self.key, self.value = (
            self.normal(batch, count, length, dim).to(dtype).requires_grad_()
            for count, length, dim in (
                (heads, queries, head_dim),
                (key_heads, keys, head_dim),
                (key_heads, keys, value_dim),
            )
        )
        self.options: dict[str, Any] = options
        self.inputs = [self.query, self.key, self.value]
        if sinks:
            self.options["sinks"] = self.normal(heads).to(dtype).requires_grad_()
            self.inputs.append(self.options["sinks"])
        if mask is not None:
            self.options["mask"] = self.mask(mask, (batch, heads, queries, keys), dtype)
            if to_mask:
                self.inputs.append(self.options["mask"].requires_grad_())
        self.gradient = self.normal(batch, heads, queries, value_dim).to(dtype)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def mask(self, form: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """bool, float, or one of them with some dimensions of size 1, as in "float 1h1k"."""
        kind, _, dims = form.partition(" ")
        full = dict(zip("bhqk", shape, strict=True))
        shape = tuple(full.get(dim, 1) for dim in dims or "bhqk")
        shown = torch.rand(shape, generator=self.generator) < 0.6
        return shown if kind == "bool" else self.normal(*shape).to(dtype).masked_fill(~shown, -torch.inf)

    def found(self) -> list[Tensor]:
        return self.all_of(attention)

    def expected(self) -> list[Tensor]:
        scale = self.options.get("scale", "sqrt")
        dim = max(1, self.query.shape[-1])
        factor = {"sqrt": dim**-0.5, "none": 1.0, "dim": 1 / dim}.get(scale, scale)
        return self.all_of(lambda *tensors, **options: reference(*tensors, **options | {"scale": factor}))

    def all_of(self, function: Callable[..., Tensor]) -> list[Tensor]:
        """The result and its gradients."""
        result = function(self.query, self.key, self.value, **self.options)
        gradients = torch.autograd.grad(result, self.inputs, self.gradient.to(result.dtype), materialize_grads=True)
        return [result.detach(), *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Each tensor within the tolerance of its dtype, as a share of the largest value or of 1.

    Twice that for gradients to sinks and masks, which sum over queries and over what a result lost when it was rounded.
    """
    for place, (own, exact) in enumerate(zip(found, expected, strict=True)):
        assert own.dtype == dtype or place > 3, (place, own.dtype)
        assert own.shape == exact.shape
        if own.numel():
            bound = TOLERANCES[dtype] * (2 if place > 3 else 1) * max(1.0, float(exact.detach().abs().max()))
            error = (own.detach().double() - exact.detach()).abs().max()
            assert float(error) <= bound, (place, float(error), bound)
