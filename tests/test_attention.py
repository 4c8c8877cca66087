"""Attention with all its options against the definition, query by query in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from evenkeel.errors import UsageError
from evenkeel.functional import _attention_blockwise as blockwise
from evenkeel.functional import _attention_statistics as statistics
from evenkeel.functional._attention import attention
from evenkeel.kernels import attention as torch_passes
from evenkeel.reference.attention import attention as reference

TOLERANCES = {  # of the largest value: rounding of the result, and of sums over the keys
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices, and other tests may run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["numba", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of the row passes."""
    if request.param == "torch":
        for module in (blockwise, statistics):
            monkeypatch.setattr(module, "passes_for", lambda *tensors: torch_passes)
    return request.param


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
            error = (own.double() - exact.detach()).abs().max()
            assert float(error) <= bound, (place, float(error), bound)


# --- the oracle itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_reference_has_torchs_result(causal: bool):
    case = Case(9, 9, dtype=torch.float64, causal=causal)
    whole = F.scaled_dot_product_attention(case.query, case.key, case.value, is_causal=causal, enable_gqa=True)
    assert_close([reference(case.query, case.key, case.value, scale=8**-0.5, causal=causal)], [whole], torch.float64)


def test_reference_of_options_by_hand():
    """Two keys with scores 2 and 1 for a query: cap, sink, window and sigmoid as their formulas say."""
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([2.0, 1.0]).view(1, 1, 2, 1)
    value = torch.eye(2).view(1, 1, 2, 2)

    def weights(**options: Any) -> Tensor:
        return reference(query, key, value, scale=1.0, **options).flatten()

    scores = torch.tensor([2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights(softcap=1.5), (1.5 * (scores / 1.5).tanh()).softmax(0))
    torch.testing.assert_close(weights(sinks=torch.tensor([3.0])), scores.exp() / (scores.exp().sum() + math.exp(3.0)))
    torch.testing.assert_close(weights(window=1), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(weights(normalizer="sigmoid"), 1 / (1 + 2 * (-scores).exp()))


# --- exactness ---------------------------------------------------------------------------------------------------

COMBINATIONS = [
    {"causal": causal, "mask": mask, "softcap": softcap, "sinks": sinks, "window": window, "normalizer": normalizer}
    for causal, mask, softcap, sinks, window, normalizer in itertools.product(
        (False, True), (None, "bool b1qk", "float 1h1k"), (None, 1.5), (False, True), (None, 5), ("softmax", "sigmoid")
    )
    if not (sinks and normalizer == "sigmoid")
]


def named(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items() if value not in (None, False)) or "plain"


@pytest.mark.parametrize("options", COMBINATIONS, ids=named)
def test_every_combination_of_options(options: dict[str, Any], passes: str):
    case = Case(**options)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize("scale", ["sqrt", "none", "dim", 0.3, -0.2])
def test_scales(scale: str | float):
    for softcap in (None, 2.0):
        case = Case(scale=scale, softcap=softcap)
        assert_close(case.found(), case.expected())


MANY = {"causal": True, "mask": "bool b1qk", "softcap": 3.0, "sinks": True, "window": 30}
SHAPES = [(0, 5), (5, 0), (0, 0), (1, 1), (1, 100), (63, 100), (100, 63)]


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"normalizer": "sigmoid"}, MANY], ids=named)
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_odd_shapes(queries: int, keys: int, options: dict[str, Any], passes: str):
    case = Case(queries, keys, batch=1, heads=2, **options)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize(
    ("batch", "heads", "key_heads", "head_dim"), [(0, 2, 1, 8), (1, 0, 0, 8), (1, 2, 2, 0), (1, 2, 1, 1)]
)
def test_no_batch_no_heads_and_no_head_dim(batch: int, heads: int, key_heads: int, head_dim: int):
    case = Case(3, 4, batch=batch, heads=heads, key_heads=key_heads, head_dim=head_dim, softcap=2.0)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"sinks": True, "causal": True}, {"window": 7}], ids=named)
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 1), (6, 2), (3, 3)])
def test_heads_that_share_keys(heads: int, key_heads: int, options: dict[str, Any], passes: str):
    """And a value dimension of its own."""
    case = Case(heads=heads, key_heads=key_heads, value_dim=5, **options)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"normalizer": "sigmoid"}, MANY], ids=named)
def test_several_tiles_of_queries(options: dict[str, Any], passes: str):
    case = Case(300, 300, batch=1, heads=2, key_heads=1, **options)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize(
    "options", [{"softcap": 2.0}, {"normalizer": "sigmoid"}, {"sinks": True, "window": 4200}], ids=named
)
def test_several_tiles_of_keys(options: dict[str, Any], passes: str):
    """Keys grow with their position, so that the running maximum rises from tile to tile."""
    case = Case(2, 5000, batch=1, heads=2, key_heads=1, **options)
    with torch.no_grad():
        case.key *= torch.linspace(0.1, 6, 5000)[:, None]
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "mask": "float b1qk"}, {"sinks": True}, MANY], ids=named)
def test_dtypes(dtype: torch.dtype, options: dict[str, Any]):
    case = Case(dtype=dtype, **options)
    assert_close(case.found(), case.expected(), dtype)


@pytest.mark.parametrize(
    "form", ["float", "float 1111", "float 1hq1", "float qk", "float k", "float b11k", "float 1hqk"]
)
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "causal": True}, {"normalizer": "sigmoid"}], ids=named)
def test_gradients_to_masks(form: str, options: dict[str, Any]):
    """Of every shape that broadcasts."""
    case = Case(mask=form, to_mask=True, **options)
    found, expected = case.found(), case.expected()
    hidden = case.options["mask"] == -torch.inf
    assert_close([*found[:4], found[4].masked_fill(hidden, 0)], [*expected[:4], expected[4].masked_fill(hidden, 0)])


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"window": 3, "sinks": True}], ids=named)
@pytest.mark.parametrize("form", ["bool bhq1", "float bhq1"])
def test_queries_that_see_nothing(options: dict[str, Any], form: str, passes: str):
    """Their rows are zeros, and no gradient comes from them."""
    case = Case(mask=form, **options)
    found = case.found()
    assert_close(found, case.expected())
    mask = case.options["mask"]
    blind = (~mask if mask.dtype == torch.bool else mask == -torch.inf).expand(2, 4, 20, 1)
    assert blind.any()
    for item in found[:2]:
        assert not item[blind.expand(item.shape)].any()


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, MANY], ids=named)
def test_layouts(options: dict[str, Any], passes: str):
    """Heads behind queries, every second channel, expanded heads, a mask with strides of its own."""
    case = Case(**options)
    expected = case.expected()
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
        lambda x: x.mT.contiguous().mT,
    ]
    for layout in layouts:
        case.query, case.key, case.value = (layout(item.detach()).requires_grad_() for item in case.inputs[:3])
        case.inputs[:3] = case.query, case.key, case.value
        if "mask" in case.options:
            case.options["mask"] = layout(case.options["mask"])
        assert_close(case.found(), expected)


def test_broadcast_inputs(passes: str):
    """One key and value for a whole batch, by expand; a mask expanded over heads."""
    case = Case(softcap=2.0, mask="bool b1qk")
    case.options["mask"] = case.options["mask"].expand(2, 4, 20, 13)
    key, value = (item[:1].detach().requires_grad_() for item in (case.key, case.value))
    case.inputs = [case.query, key, value]
    case.key, case.value = key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1)
    assert_close(case.found(), case.expected())


def test_tall_scores(passes: str):
    """Scores near 5,000 and −5,000, one row's weight on a single key: no overflow, weights as exact as their scores."""
    case = Case(sinks=True, scale="none")
    with torch.no_grad():
        case.query *= 40
        case.key *= 40
    found, expected = case.found(), case.expected()
    rounding = 5000 * 2**-22
    assert float((found[0] - expected[0]).abs().max()) < rounding
    assert all(bool(item.isfinite().all()) for item in found)


@pytest.mark.parametrize("options", [{"sinks": True}, MANY], ids=named)
@pytest.mark.parametrize("queries", [1, 20])
def test_inputs_are_not_written_to(options: dict[str, Any], queries: int, passes: str):
    case = Case(queries, **options)
    tensors = [item for item in (*case.inputs, *case.options.values()) if isinstance(item, Tensor)]
    before = [item.detach().clone() for item in tensors]
    case.found()
    assert all(torch.equal(item, copy) for item, copy in zip(tensors, before, strict=True))


def test_same_on_several_threads():
    case = Case(200, 200, softcap=2.0, causal=True)
    alone = case.found()
    torch.set_num_threads(2)
    for own, one in zip(case.found(), alone, strict=True):
        assert torch.equal(own, one)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_propagate(value: float, passes: str):
    case = Case(softcap=2.0, mask="bool b1qk")
    with torch.no_grad():
        case.query[1, 2, 3] = value
    result = case.found()[0]
    assert bool(result[1, 2, 3].isnan().all())
    assert bool(result[0].isfinite().all())
    assert int(result.isnan().any(-1).sum()) == 1


# --- differentiation, transforms, compilation --------------------------------------------------------------------

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


# --- wrong variants must be caught -------------------------------------------------------------------------------


def called(case: Case, **changed: Any) -> Tensor:
    options: dict[str, Any] = {"query": case.query, "key": case.key, "value": case.value} | case.options | changed
    return attention(**options)


WRONG: dict[str, Callable[[Case], Tensor]] = {
    "no cap": lambda case: called(case, softcap=None),
    "scale off by a thousandth": lambda case: called(case, scale=8**-0.5 * 1.001),
    "window one wider": lambda case: called(case, window=6),
    "no sinks": lambda case: called(case, sinks=None),
    "sinks in another order": lambda case: called(case, sinks=case.options["sinks"].flip(0)),
    "not causal": lambda case: called(case, causal=False),
    "heads share keys in turns": lambda case: called(
        case, key=case.key.repeat(1, 2, 1, 1), value=case.value.repeat(1, 2, 1, 1)
    ),
    "aligned bottom-right": lambda case: called(
        case, query=F.pad(case.query, (0, 0, 5, 0)), mask=F.pad(case.options["mask"], (0, 0, 5, 0))
    )[:, :, 5:],
    "cap after the mask": lambda case: called(
        case, mask=(2 * (case.options["mask"] / 2).tanh()).masked_fill(case.options["mask"].isinf(), -torch.inf)
    ),
    "rounded to bf16": lambda case: called(case, query=case.query.bfloat16().float()),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_variants_are_caught(name: str):
    case = Case(13, 18, causal=True, softcap=2.0, sinks=True, window=5, mask="float 1hqk")
    expected = case.expected()[:1]
    assert_close([called(case).detach()], expected)
    with pytest.raises(AssertionError):
        assert_close([WRONG[name](case).detach()], expected)


# --- memory, errors ----------------------------------------------------------------------------------------------

MEMORY = """
import re, torch
from evenkeel.functional._attention import attention

def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
torch.manual_seed(0)
query, key, value = (torch.randn(1, 2, 8192, 64, requires_grad=True) for _ in range(3))
sinks = torch.zeros(2, requires_grad=True)

def step(length):
    parts = (item[:, :, :length] for item in (query, key, value))
    attention(*parts, softcap=30.0, causal=True, sinks=sinks).sum().backward()

step(256)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kibibytes("VmRSS")
step(8192)
print((kibibytes("VmHWM") - before) * 1024 / (query.numel() * query.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_linear_in_the_length():
    """Forward and backward at 8,192 tokens: less than 16 times the query; one matrix of scores is 128 times it."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": "cube"}, r"'cube'.*'sqrt', 'none', 'dim'"),
        ({"softcap": -1.0}, r"softcap is -1\.0"),
        ({"window": 0}, "window is 0"),
        ({"normalizer": "entmax"}, "'entmax'.*'softmax' or 'sigmoid'"),
        ({"sinks": torch.zeros(3)}, r"\(3,\).*\(4,\)"),
        ({"sinks": torch.zeros(4), "normalizer": "sigmoid"}, "leave sinks out"),
        ({"mask": torch.ones(20, 12)}, r"\(20, 12\).*\(2, 4, 20, 13\)"),
        ({"mask": torch.ones(20, 13, dtype=torch.int32)}, "int32"),
    ],
)
def test_options_that_do_not_fit(changed: dict[str, Any], message: str):
    case = Case()
    with pytest.raises(UsageError, match=message):
        attention(case.query, case.key, case.value, **changed)


def test_inputs_that_do_not_fit():
    case = Case()
    with pytest.raises(UsageError, match="multiple"):
        attention(case.query[:, :3], case.key, case.value)
    with pytest.raises(UsageError, match="multiple"):
        attention(case.query, case.key, case.value[:, :, 1:])
    with pytest.raises(UsageError, match=r"bfloat16.*float32"):
        attention(case.query.bfloat16(), case.key, case.value)
