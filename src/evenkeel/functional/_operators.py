"""Operators in torch's registry: a CPU kernel, a torch path everywhere else, and shapes for tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_FLOATS = (float, type(None))
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
    Where nothing but the kernel would see the call, `cpu` is called without torch's dispatcher, which takes longer than
    it does.
    """
    name = schema.partition("(")[0]
    OPERATORS[name] = formats
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, composite, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"evenkeel::{name}", fake, lib=_LIBRARY)
    if vmap is not None:
        torch.library.register_vmap(f"evenkeel::{name}", vmap, lib=_LIBRARY)
    registered = getattr(torch.ops.evenkeel, name).default
    floats = [
        place
        for place, argument in enumerate(registered._schema.arguments)
        if str(argument.type) in ("float", "Optional[float]")
    ]

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or not only_the_kernel_sees(arguments):
            return registered(*arguments)
        if any(type(arguments[place]) not in _FLOATS for place in floats):
            arguments = tuple(
                float(item) if place in floats and item is not None else item for place, item in enumerate(arguments)
            )  # as the dispatcher does: kernels are compiled for each type of number
        return cpu(*arguments)

    return call


def only_the_kernel_sees(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors are plain ones on a CPU, and no transform, mode, trace or profile is to see what is done."""
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return False
    for item in arguments:
        if isinstance(item, torch.Tensor) and (type(item) not in _PLAIN or not item.is_cpu or _is_lazy(item)):
            return False
    return True


def apart(*tensors: Any) -> list[Any]:
    """The same, with a view in place of a tensor that came before: torch.compile takes none twice."""
    found: list[Any] = []
    for item in tensors:
        again = isinstance(item, torch.Tensor) and any(item is other for other in found)
        found.append(item.view_as(item) if again else item)
    return found


def _is_lazy(tensor: torch.Tensor) -> bool:
    """Whether something is yet to be done to its memory, or it has none."""
    return tensor.is_neg() or tensor._is_zerotensor() or not torch._C._has_storage(tensor)


def with_batch(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """With the extra dimension of a vmap in front."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def batch_first(name: str) -> Callable[..., Any]:
    """The batching rule of an operator whose tensors may have any dimensions before their last ones."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        arguments = tuple(
            with_batch(item, dim, info.batch_size) if isinstance(item, torch.Tensor) else item
            for item, dim in zip(arguments, in_dims, strict=True)
        )
        result = getattr(torch.ops.evenkeel, name).default(*arguments)
        return result, 0 if isinstance(result, torch.Tensor) else (0,) * len(result)

    return rule


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
