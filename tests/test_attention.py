"""Attention with all its options against the definition, query by query in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import MANY, Case, assert_close, named
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import _attention_blockwise as blockwise
from evenkeel.functional import attention
from evenkeel.kernels import attention as torch_passes
from evenkeel.reference.attention import attention as reference

pytestmark = pytest.mark.usefixtures("poisoned")


pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


@pytest.fixture(params=["numba", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of the row passes."""
    if request.param == "torch":
        monkeypatch.setattr(blockwise, "passes_for", lambda *tensors: torch_passes)
    return request.param


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


@pytest.mark.parametrize("options", COMBINATIONS, ids=named)
def test_every_combination_of_options(options: dict[str, Any], passes: str):
    case = Case(**options)
    assert_close(case.found(), case.expected())


@pytest.mark.parametrize("scale", ["sqrt", "none", "dim", 0.3, -0.2])
def test_scales(scale: str | float):
    for softcap in (None, 2.0):
        case = Case(scale=scale, softcap=softcap)
        assert_close(case.found(), case.expected())


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


@pytest.mark.parametrize("options", [{}, {"window": 50}, {"sinks": True}], ids=named)
def test_finite_masks_do_not_hide(options: dict[str, Any], passes: str):
    """Where all keys have the dtype's minimum, the scores drown in it and every key weighs the same, as in torch."""
    case = Case(mask="float", **options)
    mask = torch.where(case.options["mask"].isinf(), torch.finfo(torch.float32).min, case.options["mask"])
    mask[:, :, 3] = torch.finfo(torch.float32).min
    case.options["mask"] = mask
    found = case.found()
    assert_close(found[:1], case.expected()[:1])  # gradients of such a row are off by a factor, as they are in torch
    if "sinks" not in options:
        assert_close([found[0][:, :, 3]], [case.value.detach().mean(2).repeat_interleave(2, 1)])


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
    """But for the last bit: some processors' BLAS add up a product in another order on two threads."""
    case = Case(200, 200, softcap=2.0, causal=True)
    alone = case.found()
    torch.set_num_threads(2)
    for own, one in zip(case.found(), alone, strict=True):
        largest = one.abs().max()
        assert bool(((own - one).abs() <= torch.finfo(one.dtype).eps * largest).all())


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"normalizer": "sigmoid"}], ids=named)
def test_autocast_changes_nothing(options: dict[str, Any], passes: str):
    """What is computed in float32 stays so."""
    case = Case(**options)
    alone = case.found()
    with torch.autocast("cpu", torch.bfloat16):
        together = case.found()
    assert all(torch.equal(own, one) for own, one in zip(together, alone, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_propagate(value: float, passes: str):
    case = Case(softcap=2.0, mask="bool b1qk")
    with torch.no_grad():
        case.query[1, 2, 3] = value
    result = case.found()[0]
    assert bool(result[1, 2, 3].isnan().all())
    assert bool(result[0].isfinite().all())
    assert int(result.isnan().any(-1).sum()) == 1


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
from evenkeel.functional import attention

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
    with pytest.raises(UsageError, match="of the key's dtype"):
        attention(case.query, case.key, case.value[:, :, 1:])
    with pytest.raises(UsageError, match=r"bfloat16.*float32"):
        attention(case.query.bfloat16(), case.key, case.value)
