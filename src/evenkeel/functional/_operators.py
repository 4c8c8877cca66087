"""Operators in torch's registry: a CPU kernel, a torch path everywhere else, and shapes for tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("evenkeel", "DEF")

NARROW = ("float32", "bfloat16", "float16")
OPERATORS: dict[str, tuple[str, ...]] = {}
"""By operator, the formats for which it has a CPU kernel."""


def operator(
    schema: str,
    *,
    cpu: Callable[..., Any],
    composite: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
    formats: tuple[str, ...] = NARROW,
) -> Callable[..., Any]:
    """Register `evenkeel::schema` and return it.

    cpu: for CPU tensors; goes to `composite` itself for what its kernel does not take. composite: in torch functions,
    for every device. fake: shapes and dtypes of the results. vmap: a batching rule as torch.library.register_vmap
    takes it; by default torch calls the operator once per slice. formats: those that its kernel takes.
    Gradients are the caller's matter: a torch.autograd.Function around the operator costs less than a registered one.
    """
    name = schema.partition("(")[0]
    OPERATORS[name] = formats
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, composite, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"evenkeel::{name}", fake, lib=_LIBRARY)
    if vmap is not None:
        torch.library.register_vmap(f"evenkeel::{name}", vmap, lib=_LIBRARY)
    return getattr(torch.ops.evenkeel, name).default


def is_differentiated(*tensors: torch.Tensor) -> bool:
    """Whether autograd, a function transform or a compiler has to know of an operation on these tensors.

    If not, the operator alone does, without the cost of a torch.autograd.Function. Forward-mode differentiation, which
    none of them has, is refused there, and would be ignored here.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )
