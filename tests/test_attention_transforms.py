"""Attention under differentiation to any order, function transforms and compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import MANY, Case, named
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from evenkeel.functional import attention, attention_statistics, score_statistics

pytestmark = pytest.mark.usefixtures("poisoned")

DIFFERENTIABLE = [{}, {"softcap": 1.5, "sinks": True}, {"normalizer": "sigmoid", "window": 3}, MANY]


@pytest.mark.parametrize("options", [*DIFFERENTIABLE, {"mask": "float 1hqk", "to_mask": True}], ids=named)
def test_first_and_second_derivatives(options: dict[str, Any]):
    case = Case(4, 5, batch=1, heads=2, key_heads=1, head_dim=3, value_dim=2, dtype=torch.float64, **options)
    given = dict(case.options)
    if options.get("to_mask"):
        case.inputs[-1] = given["mask"] = given["mask"].detach().clamp(min=-3).requires_grad_()

    def call(query: Tensor, key: Tensor, value: Tensor, *more: Tensor) -> Tensor:
        names = [name for name in ("sinks", "mask") if name in given and given[name].requires_grad]
        changed: dict[str, Any] = given | dict(zip(names, more, strict=True))
        return attention(query, key, value, **changed)

    assert gradcheck(call, case.inputs)
    assert gradgradcheck(call, case.inputs)


@pytest.mark.parametrize("options", DIFFERENTIABLE, ids=named)
def test_vmap_and_grad(options: dict[str, Any]):
    """Gradients per example are those of each example alone."""
    case = Case(5, 6, batch=3, heads=2, key_heads=1, dtype=torch.float64, **options)
    given: dict[str, Any] = {name: getattr(item, "data", item) for name, item in case.options.items()}
    masks = given.pop("mask", torch.ones(3, 1, 5, 6, dtype=torch.bool))

    def loss(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return attention(query[None], key[None], value[None], mask=mask[None], **given).square().sum()

    inputs = [item.detach() for item in (case.query, case.key, case.value)]
    gradient: Any = torch.func.grad(loss, argnums=(0, 1, 2))
    together = torch.func.vmap(gradient)(*inputs, masks)
    alone = [gradient(*(item[place] for item in (*inputs, masks))) for place in range(3)]
    for own, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(own, torch.stack(parts))


@pytest.mark.parametrize("in_dims", [(0, None, None, None), (None, 1, 2, None), (0, 0, 0, 0), (None, None, None, 1)])
@pytest.mark.parametrize("mask_batch", [1, 2])
def test_vmap_over_some_inputs(in_dims: tuple[int | None, ...], mask_batch: int):
    """And gradients to a mask that is shared or has examples of its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 4, 3), (2, 1, 5, 3), (2, 1, 5, 3), (mask_batch, 1, 4, 5)]
    inputs = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        whole = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        inputs.append(whole[0] if dim is None else whole.movedim(0, dim))

    def loss(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return attention(query, key, value, mask=mask, softcap=2.0).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    together = torch.func.vmap(gradient, in_dims)(*inputs)
    for place in range(3):
        alone = gradient(
            *(item if dim is None else item.select(dim, place) for item, dim in zip(inputs, in_dims, strict=True))
        )
        for own, part in zip(together, alone, strict=True):
            torch.testing.assert_close(own[place], part)


@pytest.mark.parametrize("options", DIFFERENTIABLE, ids=named)
def test_compiled(options: dict[str, Any]):
    case = Case(**options)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for own, one in zip(case.all_of(compiled), case.found(), strict=True):
        torch.testing.assert_close(own, one, rtol=1e-6, atol=1e-6)


def test_compiled_on_one_tensor_for_all():
    x = torch.randn(1, 2, 6, 4, requires_grad=True)
    compiled = torch.compile(lambda x: attention(x, x, x, softcap=3.0), backend="aot_eager", fullgraph=True)
    found, exact = (torch.autograd.grad(f.sum(), x)[0] for f in (compiled(x), attention(x, x, x, softcap=3.0)))
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("to_mask", [False, True])
def test_operators_are_registered_in_order(dtype: torch.dtype, to_mask: bool):
    """torch's own checks of an operator: schema, shapes under tracing, dispatch."""
    case = Case(6, 5, dtype=dtype, mask="float 1hqk", sinks=True)
    tensors = [item.detach() for item in (case.query, case.key, case.value, case.options["mask"])]
    tensors.append(case.options["sinks"].detach().expand(2, 4))
    options = (0.5, 2.0, 3, 0, False)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.evenkeel.attention.default, (*tensors, *options), test_utils=tests)
    output, logsumexp = torch.ops.evenkeel.attention(*tensors, *options)
    arguments = (case.gradient, *tensors, output, logsumexp, to_mask, *options)
    torch.library.opcheck(torch.ops.evenkeel.attention_backward.default, arguments, test_utils=tests)
    torch.library.opcheck(
        torch.ops.evenkeel.attention_statistics.default, (*tensors[:2], tensors[3], 0.5, 2.0, 3, 0), test_utils=tests
    )
    torch.library.opcheck(torch.ops.evenkeel.score_statistics.default, (tensors[3], None), test_utils=tests)


@pytest.mark.parametrize("mask_batch", [None, 1, 2])
def test_statistics_under_vmap_and_compiled(mask_batch: int | None):
    """Over examples with masks of their own, or one for all; and as part of a compiled function."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 2, 2, 9, 4, generator=generator) for _ in range(2))
    masks = torch.rand(3, mask_batch or 1, 1, 9, 9, generator=generator) < 0.6

    def entropy(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        fused = attention_statistics(query, key, scale=0.5, causal=True, mask=mask).entropy
        return fused + score_statistics(query @ key.mT, visible=mask).entropy

    dim = 0 if mask_batch else None
    shared = masks if mask_batch else masks[0]
    alone = [entropy(query[place], key[place], masks[place if mask_batch else 0]) for place in range(3)]
    torch.testing.assert_close(torch.func.vmap(entropy, (0, 0, dim))(query, key, shared), torch.stack(alone))
    compiled = torch.compile(entropy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(query[0], key[0], masks[0]), alone[0])
