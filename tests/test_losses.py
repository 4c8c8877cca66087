"""Losses against their definition in float64 and against torch; the head without its logits; every mode."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import _logit_chunks as chunks
from evenkeel.functional._linear_losses import linear_cross_entropy
from evenkeel.functional._losses import Reduction, cross_entropy
from evenkeel.functional._sigmoid_losses import sigmoid_cross_entropy
from evenkeel.kernels import cpu
from evenkeel.reference import losses as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float64: 2.0**-45}
SHAPES = ((0, 4), (1,), (3, 63), (2, 5, 100), (7, 2000))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.5},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"temperature": 0.7, "softcap": 8.0, "label_smoothing": 0.2, "z_loss": 0.02},
)
SIGMOID_OPTIONS = tuple({k: v for k, v in item.items() if k in ("temperature", "softcap")} for item in OPTIONS[:3])
CASES = (
    *((cross_entropy, reference.cross_entropy, item) for item in OPTIONS),
    *((sigmoid_cross_entropy, reference.sigmoid_cross_entropy, item) for item in SIGMOID_OPTIONS),
)
EVERYTHING = OPTIONS[-1]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few tokens and tiles of a few classes, so that there are many of both."""
    monkeypatch.setattr(chunks, "_CHUNK", 500)
    monkeypatch.setattr(chunks, "_TILE", 48)


def reduced(losses: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() / max(1, int((target != -100).sum())) if reduction == "mean" else losses.sum()


def case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which some are ignored."""
    target = torch.randint(shape[-1], shape[:-1])
    return (4 * torch.randn(shape)).to(dtype), torch.where(torch.rand(shape[:-1]) < 0.2, -100, target)


def assert_near(result: Tensor, exact: Tensor, size: float, epsilon: float) -> None:
    """Within 8 epsilon of the value and of the size of what it is a sum of."""
    assert result.shape == exact.shape
    assert bool(((result.double() - exact).abs() <= 8 * epsilon * (exact.abs() + size)).all())


def gradients(f, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(item.detach().requires_grad_() for item in inputs)
    return torch.autograd.grad(f(*inputs), inputs, gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize(("f", "definition", "options"), CASES)
def test_losses_and_gradients(f, definition, options, reduction: Reduction, dtype: torch.dtype, poisoned: None):
    accuracy = EPSILON[dtype if dtype == torch.float64 else torch.float32]
    for shape in SHAPES:
        logits, target = case(shape, dtype)
        result = f(logits, target, reduction=reduction, **options)
        exact = reduced(definition(logits, target, **options), target, reduction)
        assert result.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert_near(result, exact, 10.0, accuracy)
        gradient = torch.randn_like(exact)
        (slope,) = gradients(
            lambda x, t=target: f(x, t, reduction=reduction, **options), gradient.to(result.dtype), logits
        )
        (wanted,) = gradients(
            lambda x, t=target: reduced(definition(x, t, **options), t, reduction), gradient, logits.double()
        )
        assert slope.dtype == dtype
        scale = float(gradient.abs().max()) if gradient.numel() else 0.0
        assert_near(slope, wanted, accuracy / EPSILON[dtype] * scale + 2.0**-24, EPSILON[dtype])


@pytest.mark.parametrize("size", (1.0, 1e10, 1e18, 1e38))
@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_equal_logits_of_any_size_share_their_weight(size: float, label_smoothing: float, dtype: torch.dtype):
    """Two classes far above a third, which with smoothing costs what it lies below; and 5,000 equal ones."""
    logits = torch.tensor([[size, size, -size], [-size, size, size]], dtype=dtype)
    size, target = logits[0, 0].item(), torch.tensor([0, 1])
    options: dict[str, Any] = {"label_smoothing": label_smoothing}
    losses = cross_entropy(logits, target, reduction="none", **options)
    (slope,) = gradients(lambda x: cross_entropy(x, target, reduction="sum", **options), torch.ones(()), logits)
    third = math.exp(-2 * size)
    exact = torch.full((2,), math.log(2 + third) + label_smoothing / 3 * 2 * size, dtype=torch.float64)
    wanted = (1 - label_smoothing) * F.one_hot(target, 3).double() + label_smoothing / 3
    p = torch.tensor([[1, 1, third], [third, 1, 1]], dtype=torch.float64) / (2 + third)
    assert torch.allclose(losses.double(), exact, rtol=1e-6)
    assert torch.allclose(slope.double(), p - wanted, rtol=0, atol=EPSILON[dtype])
    many = torch.full((1, 5000), size, dtype=dtype)
    row, weight = torch.ones(1, 1, dtype=dtype), many.mT
    for loss in (
        cross_entropy(many, target[:1], **options),
        linear_cross_entropy(row, weight, target[:1], **options),
    ):
        assert loss.item() == pytest.approx(math.log(5000), rel=1e-6)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
def test_the_definition_is_that_of_torch(reduction: Reduction, label_smoothing: float):
    logits, target = case((6, 30), torch.float64)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    assert torch.allclose(cross_entropy(logits, target, **options), F.cross_entropy(logits, target, **options))
    yes = F.one_hot(target.clamp(min=0), 30).double()
    binary = F.binary_cross_entropy_with_logits(logits, yes, reduction="none").sum(-1) * (target >= 0)
    assert torch.allclose(sigmoid_cross_entropy(logits, target, reduction="none"), binary)


@pytest.mark.parametrize("shape", ((0, 8, 5), (1, 8, 1), (2, 5, 12, 63), (9, 16, 200)))
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("options", OPTIONS)
def test_a_head_without_its_logits(
    shape: tuple[int, ...],
    options,
    reduction: Reduction,
    dtype: torch.dtype,
    bias: bool,
    small_chunks: None,
    poisoned: None,
):
    *tokens, width, classes = shape
    x, weight = torch.randn(*tokens, width).to(dtype), torch.randn(classes, width).to(dtype)
    inputs: tuple[Tensor, ...] = (x, weight, torch.randn(classes).to(dtype)) if bias else (x, weight)
    _, target = case((*tokens, classes), dtype)

    def head(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(x, weight, target, bias=bias, reduction=reduction, **options)

    def definition(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = F.linear(x, weight, bias)
        return reduced(reference.cross_entropy(logits, target, **options), target, reduction)

    exact_inputs = tuple(item.double() for item in inputs)
    accuracy = EPSILON[dtype if dtype == torch.float64 else torch.float32]
    exact = definition(*exact_inputs)
    assert_near(head(*inputs), exact, 20.0, accuracy)
    gradient = torch.randn_like(exact)
    found = gradients(head, gradient.to(torch.float32 if dtype != torch.float64 else dtype), *inputs)
    for slope, wanted in zip(found, gradients(definition, gradient, *exact_inputs), strict=True):
        assert slope.dtype == dtype
        size = 4 * float(gradient.abs().sum()) if gradient.numel() else 0.0
        assert_near(slope, wanted, accuracy / EPSILON[dtype] * size + 2.0**-24, EPSILON[dtype])


def head_case() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 5), torch.randn(90, 5), torch.tensor([3, 0, -100, 89, 50, 7])


@pytest.mark.parametrize("wanted", ((0,), (1,), (2,), (0, 2)))
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_only_what_needs_a_gradient_gets_one(wanted: tuple[int, ...], reduction: Reduction, small_chunks: None):
    x, weight, target = head_case()
    inputs = (x, weight, torch.randn(90))
    for number in wanted:
        inputs[number].requires_grad_()
    linear_cross_entropy(*inputs[:2], target, bias=inputs[2], reduction=reduction).sum().backward()
    full = [item.detach().requires_grad_() for item in inputs]
    cross_entropy(F.linear(*full), target, reduction=reduction).sum().backward()
    for number, (mine, other) in enumerate(zip(inputs, full, strict=True)):
        if number in wanted:
            assert mine.grad is not None and other.grad is not None
            assert torch.allclose(mine.grad, other.grad, atol=1e-6)
        else:
            assert mine.grad is None


def test_a_graph_may_be_gone_back_through_again_and_again():
    target = torch.randint(20, (6,))
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    to_x, to_weight = torch.autograd.grad(F.cross_entropy(x @ weight.T, target), (x, weight))
    loss = linear_cross_entropy(x, weight, target)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert x.grad is not None and weight.grad is not None
        assert torch.allclose(x.grad, times * to_x, atol=1e-6)
        assert torch.allclose(weight.grad, times * to_weight, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    gradient.mul_(2)  # clipping, say
    assert torch.allclose(torch.autograd.grad(loss, x)[0], to_x, atol=1e-6)


def test_a_loss_scale_saves_what_float16_cannot_hold():
    x, weight = torch.randn(64, 32).half(), torch.randn(500, 32).half()
    target = (x.double() @ weight.double().T).argmax(-1)  # fitted: most gradients lie below 2^-24
    half = [item.clone().requires_grad_() for item in (x, weight)]
    exact = [item.double().requires_grad_() for item in (x, weight)]
    found = torch.autograd.grad(linear_cross_entropy(half[0], half[1], target) * 65536, half)
    wanted = torch.autograd.grad(F.cross_entropy(exact[0] @ exact[1].T, target) * 65536, exact)
    for a, b in zip(found, wanted, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 1e-3


def test_under_autocast_a_head_is_cast_as_a_linear_layer_is():
    x, weight, target = torch.randn(6, 8), torch.randn(20, 8, requires_grad=True), torch.randint(20, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x.bfloat16(), weight, target)
        expected = F.cross_entropy(F.linear(x, weight).float(), target)
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=2e-2)


def test_gradients_that_were_handed_over_stay_as_they_are():
    x, weight, target = head_case()
    x.requires_grad_()
    weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, target)
    first = torch.autograd.grad(3 * loss, (x, weight), retain_graph=True)
    kept = [item.clone() for item in first]
    second = torch.autograd.grad(-loss, (x, weight), retain_graph=True)
    third = torch.autograd.grad(loss, (x, weight))
    assert all(torch.equal(*pair) for pair in zip(first, kept, strict=True))
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.allclose(a, -3 * b, atol=1e-6) and torch.allclose(a, 3 * c, atol=1e-6)


@pytest.mark.parametrize("options", (*OPTIONS[:2], EVERYTHING))
@pytest.mark.parametrize("f", (cross_entropy, sigmoid_cross_entropy), ids=lambda f: f.__name__)
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_derivatives_of_first_and_second_order(f, options, reduction: Reduction):
    options = {k: v for k, v in options.items() if f is cross_entropy or k in ("temperature", "softcap")}
    logits, target = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.tensor([1, -100, 5, 0])
    assert torch.autograd.gradcheck(lambda x: f(x, target, reduction=reduction, **options), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: f(x, target, reduction=reduction, **options), (logits,))


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_the_head_has_first_derivatives_only(reduction: Reduction, small_chunks: None):
    x, weight, target = (item.double() if item.is_floating_point() else item for item in head_case())
    bias = torch.randn(90, dtype=torch.float64)
    inputs = tuple(item.requires_grad_() for item in (x, weight, bias))

    def head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, target, bias=bias, reduction=reduction, **EVERYTHING)

    assert torch.autograd.gradcheck(head, inputs)
    (first,) = torch.autograd.grad(head(*inputs).sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="first derivatives only"):
        first.sum().backward()


def test_where_no_token_counts_the_mean_is_zero():
    x, weight, _ = head_case()
    ignored = torch.full((6,), -100)
    for f in (cross_entropy, sigmoid_cross_entropy):
        logits = torch.randn(6, 90, requires_grad=True)
        loss = f(logits, ignored)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logits)[0].any()
    weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, ignored)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, weight)[0].any()


def test_an_ignored_token_may_hold_anything():
    for f in (cross_entropy, sigmoid_cross_entropy):
        logits = torch.randn(3, 7)
        logits[1] = math.nan
        target = torch.tensor([2, 9, 4])
        loss = f(logits, target, ignore_index=9)
        (gradient,) = gradients(lambda x, f=f, t=target: f(x, t, ignore_index=9), torch.ones(()), logits)
        assert torch.allclose(loss, f(logits[[0, 2]], target[[0, 2]]))
        assert not gradient.isnan().any() and not gradient[1].any()


@pytest.mark.parametrize("kernels", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_rows_without_a_loss(dtype: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch):
    """No class possible: no gradient; a logit of +inf, whose loss is no number: none either."""
    if not kernels:
        monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    logits = torch.tensor([[-math.inf] * 3, [math.inf, math.inf, 0], [1, 2, 3]], dtype=dtype)
    target = torch.tensor([0, 0, 0])
    losses = cross_entropy(logits, target, reduction="none")
    (slope,) = gradients(lambda x: cross_entropy(x, target, reduction="sum"), torch.ones(()), logits)
    assert losses[:2].isnan().all() and losses[2].isfinite()
    assert (slope[0] == 0).all() and slope[1].isnan().all() and slope[2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_head_with_classes_that_its_bias_forbids(dtype: torch.dtype, small_chunks: None):
    x, weight, bias = torch.randn(6, 8).to(dtype), torch.randn(200, 8).to(dtype), torch.zeros(200, dtype=dtype)
    bias[40:150] = -math.inf  # whole tiles of it
    target = torch.tensor([0, 1, 2, 30, 160, 199])
    wide = [item.double() for item in (x, weight, bias)]
    exact = gradients(lambda x, w: F.cross_entropy(x @ w.mT + wide[2], target), torch.ones(()), *wide[:2])
    found = gradients(lambda x, w: linear_cross_entropy(x, w, target, bias=bias), torch.ones(()), x, weight)
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one.double(), other, rtol=0, atol=8 * EPSILON[dtype])


def test_impossible_classes():
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([2]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    assert float(torch.autograd.grad(loss, logits)[0][0, 1]) == 0
    assert cross_entropy(logits, torch.tensor([1])).item() == math.inf
    assert cross_entropy(logits, torch.tensor([2]), label_smoothing=0.1).item() == math.inf


@given(st.integers(2, 50), st.floats(-100, 100), st.floats(0, 0.9), st.floats(0.2, 5))
@settings(max_examples=40, deadline=None)
def test_laws(classes: int, shift: float, smoothing: float, temperature: float):
    logits, target = torch.randn(5, classes, dtype=torch.float64), torch.randint(classes, (5,))
    options: dict[str, Any] = {"label_smoothing": smoothing, "temperature": temperature}
    for item in (logits, logits.float()):
        losses = cross_entropy(item, target, reduction="none", **options)
        assert bool((losses >= 0).all())
        assert torch.allclose(cross_entropy(item + shift, target, reduction="none", **options), losses, atol=1e-3)
        (slope,) = gradients(lambda x: cross_entropy(x, target, **options), torch.ones((), dtype=item.dtype), item)
        assert bool((slope.sum(-1).abs() < 1e-6).all())  # probabilities and targets both sum to 1
        same = cross_entropy(torch.zeros_like(item), target, **options)
        assert float(same) == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.parametrize("f", (cross_entropy, sigmoid_cross_entropy), ids=lambda f: f.__name__)
def test_every_layout(f):
    x, target = torch.randn(6, 5, 8), torch.randint(8, (6, 5))
    for view, places in (
        (x.transpose(0, 1), target.t()),
        (x[::2], target[::2]),
        (x[..., ::2], target // 2),
        (x[:, :1].expand(6, 3, 8), target[:, :1].expand(6, 3)),
    ):
        assert torch.equal(f(view, places), f(view.contiguous(), places.contiguous()))
        assert torch.equal(f(view, places.int()), f(view, places))


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("f", (cross_entropy, sigmoid_cross_entropy), ids=lambda f: f.__name__)
def test_function_transforms_and_compilation(f, reduction: Reduction):
    logits, target = case((5, 8), torch.float32)

    def total(logits: Tensor, target: Tensor = target) -> Tensor:
        return f(logits, target, reduction=reduction, temperature=0.7).square().sum()

    (expected,) = gradients(total, torch.ones(()), logits)
    assert torch.allclose(torch.func.grad(total)(logits), expected)
    each = torch.func.vmap(torch.func.grad(total))(logits, target)
    rows = [gradients(lambda x, t=t: total(x, t), torch.ones(()), x)[0] for x, t in zip(logits, target, strict=True)]
    assert torch.allclose(each, torch.stack(rows))
    assert torch.func.jacrev(torch.func.jacrev(total))(logits).shape == (5, 8, 5, 8)
    torch.compiler.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), total(logits))
    assert torch.allclose(gradients(compiled, torch.ones(()), logits)[0], expected)


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_function_transforms_and_compilation_of_the_head(reduction: Reduction, small_chunks: None):
    x, weight, target = head_case()

    def total(x: Tensor, weight: Tensor, target: Tensor = target) -> Tensor:
        return linear_cross_entropy(x, weight, target, reduction=reduction).square().sum()

    def full(x: Tensor, weight: Tensor, target: Tensor = target) -> Tensor:
        return cross_entropy(F.linear(x, weight), target, reduction=reduction).square().sum()

    def assert_close(found, wanted) -> None:
        assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(found, wanted, strict=True))

    expected = gradients(full, torch.ones(()), x, weight)
    assert_close(torch.func.grad(total, argnums=(0, 1))(x, weight), expected)
    per_token = (torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None, 0)) for f in (total, full))
    assert_close(*(each(x[:, None], weight, target[:, None]) for each in per_token))
    around = (
        lambda x, f=f: torch.func.vmap(lambda x, t: f(x, weight, t))(x[:, None], target[:, None]).sum()
        for f in (total, full)
    )
    assert_close(*((torch.func.grad(f)(x),) for f in around))
    torch.compiler.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert_close(gradients(compiled, torch.ones(()), x, weight), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(gradients(total, torch.ones(()), x, weight), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_are_registered_as_torch_wants_them(dtype: torch.dtype):
    ops = torch.ops.evenkeel
    logits, target = case((3, 5), dtype)
    weights = torch.rand(3, dtype=dtype if dtype == torch.float64 else torch.float32)
    options = (0.7, 0.1, 0.01, -100)
    _, *sums = ops.cross_entropy.default(logits, target, *options)
    torch.library.opcheck(ops.cross_entropy.default, (logits, target, *options))
    torch.library.opcheck(ops.cross_entropy_backward.default, (weights, logits, target, *sums, *options))
    torch.library.opcheck(ops.sigmoid_cross_entropy.default, (logits, target, 0.7, -100))
    torch.library.opcheck(ops.sigmoid_cross_entropy_backward.default, (weights, logits, target, 0.7, -100))
    head = (torch.randn(3, 4).to(dtype), torch.randn(5, 4).to(dtype), None, target)
    options = (0.7, 3.0, 0.1, 0.01, -100)
    torch.library.opcheck(ops.linear_cross_entropy.default, (*head, *options))
    for needed in ([True, True, False], [False, True, False]):
        torch.library.opcheck(ops.linear_cross_entropy_gradients.default, (*head, weights.double(), needed, *options))


def test_without_kernels_the_torch_path_agrees(monkeypatch: pytest.MonkeyPatch, small_chunks: None):
    logits, target = case((9, 300), torch.float32)
    x, weight = torch.randn(9, 12), torch.randn(300, 12)

    def everything() -> list[Tensor]:
        found = []
        for options in OPTIONS:
            found += gradients(lambda x, o=options: cross_entropy(x, target, **o), torch.ones(()), logits)
            found += gradients(
                lambda x, w, o=options: linear_cross_entropy(x, w, target, **o), torch.ones(()), x, weight
            )
        return found + list(gradients(lambda x: sigmoid_cross_entropy(x, target), torch.ones(()), logits))

    fast = everything()
    monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(fast, everything(), strict=True))


MEASURE = """
import resource, torch
from evenkeel.functional._linear_losses import linear_cross_entropy

def step(tokens, width, classes):
    x, weight = torch.randn(tokens, width, requires_grad=True), torch.randn(classes, width, requires_grad=True)
    target = torch.randint(classes, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (3 * linear_cross_entropy(x, weight, target)).backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024 - (x.grad.numel() + weight.grad.numel()) * 4 / 2**20

step(64, 512, 2000)  # compiles, and fills torch's own pools
print(step(256, 512, 60_000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_beyond_the_gradients():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 64  # MiB; all logits are 59, a second gradient of the weight 117


def test_wrong_variants_would_be_caught():
    logits, target = case((7, 2000), torch.float32)
    exact = reference.cross_entropy(logits, target)
    for wrong in (
        F.cross_entropy(logits.half().float(), target, reduction="none"),
        reference.cross_entropy(logits, target, label_smoothing=1e-4).float(),
        reference.cross_entropy(logits, target.roll(1)).float(),
        exact.float() + 1e-4,
    ):
        with pytest.raises(AssertionError):
            assert_near(wrong, exact, 10.0, EPSILON[torch.float32])


def test_usage_errors_say_what_to_type():
    logits, target = case((4, 9), torch.float32)
    x, weight, classes = head_case()
    for f in (cross_entropy, sigmoid_cross_entropy):
        with pytest.raises(UsageError, match=r"9.*from 0 to 8"):
            f(logits, torch.tensor([1, 2, 9, 3]))
        with pytest.raises(UsageError, match=r"\(4, 9\).*\(3,\).*\(4,\)"):
            f(logits, target[:3])
        with pytest.raises(UsageError, match=r"target\.long\(\)"):
            f(logits, target.float())
        with pytest.raises(UsageError, match="average"):
            f(logits, target, reduction="average")  # pyright: ignore[reportArgumentType]
        with pytest.raises(UsageError, match="softcap is 0"):
            f(logits, target, softcap=0)
        with pytest.raises(UsageError, match="temperature is -1"):
            f(logits, target, temperature=-1)
    with pytest.raises(UsageError, match=r"label_smoothing is 1\.5"):
        cross_entropy(logits, target, label_smoothing=1.5)
    with pytest.raises(UsageError, match="z_loss is -1"):
        linear_cross_entropy(x, weight, classes, z_loss=-1)
    with pytest.raises(UsageError, match=r"90.*from 0 to 89"):
        linear_cross_entropy(x, weight, classes + 1)
    with pytest.raises(UsageError, match=r"\(6, 5\).*\(90, 4\)"):
        linear_cross_entropy(x, weight[:, :4], classes)
    with pytest.raises(UsageError, match="bfloat16"):
        linear_cross_entropy(x, weight.bfloat16(), classes)
    with pytest.raises(UsageError, match=r"bias has shape \(5,\)"):
        linear_cross_entropy(x, weight, classes, bias=torch.randn(5))
