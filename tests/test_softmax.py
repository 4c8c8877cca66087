"""The softmax family against its definition in float64: values, derivatives, masks, infinities, every mode."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import _softmax as module
from evenkeel.functional._softmax import log_softmax, logsumexp, naive_softmax, softmax, softmax_statistics
from evenkeel.kernels import cpu
from evenkeel.reference import softmax as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float64: 2.0**-45}
# float64 takes torch's own path, which rounds x/T: as much as the reference does, which it is compared with
SMALLEST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float64: 2.0**-1074}
SHAPES = ((0, 4), (1,), (3, 63), (2, 5, 100), (7, 2000))
OPERATORS = ("softmax", "log_softmax", "logsumexp", "softmax_statistics")
FUNCTIONS = (softmax, log_softmax, logsumexp, softmax_statistics)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_relative(result: Tensor, exact: Tensor, epsilons: int = 4) -> None:
    """Within so many epsilon of their value, or of the smallest number that the format has."""
    slack = epsilons * EPSILON[result.dtype] * exact + SMALLEST[result.dtype]
    assert result.shape == exact.shape
    assert bool(((result.double() - exact).abs() <= slack).all())


def assert_logs(result: Tensor, exact: Tensor, size: float) -> None:
    """Within an epsilon of the result plus that of what it was computed from in float32; infinities as they are."""
    finite = exact.isfinite()
    assert torch.equal(result.double()[~finite], exact[~finite])
    computed = min(EPSILON[result.dtype], EPSILON[torch.float32])
    slack = EPSILON[result.dtype] * exact[finite].abs() + 2 * computed * (1 + size)
    assert bool(((result.double()[finite] - exact[finite]).abs() <= slack).all())


def gradients(f, x: Tensor, gradient: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, gradient)[0]


@pytest.mark.parametrize("temperature", (1.0, 0.3, 7.0))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_at_every_length_and_mask(dtype: torch.dtype, temperature: float, poisoned: None):
    for shape in SHAPES:
        x = (4 * torch.randn(shape)).to(dtype)
        mask = torch.rand(shape) > 0.3
        if mask.numel() > 64:
            mask[0] = False
        for given_mask in (None, mask, mask[..., :1], mask[:1]):
            options = {"temperature": temperature, "mask": given_mask}
            exact = (x, temperature, given_mask)
            size = float(x.double().abs().max()) / temperature if x.numel() else 0.0
            assert_relative(softmax(x, **options), reference.softmax(*exact))
            assert_logs(log_softmax(x, **options), reference.log_softmax(*exact), size)
            assert_logs(logsumexp(x, **options), reference.logsumexp(*exact), size)
            statistics = softmax_statistics(x, **options)
            assert statistics.entropy.dtype == (dtype if dtype == torch.float64 else torch.float32)
            assert_logs(statistics.logsumexp, reference.logsumexp(*exact), size)
            assert_logs(statistics.entropy, reference.entropy(*exact), 2.0)
            assert_relative(statistics.participation, reference.participation(*exact), 8)


@pytest.mark.parametrize("length", (128_256, 256_000))
def test_a_vocabulary_of_a_real_model(length: int):
    x = 4 * torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    exact, result = torch.softmax(x.double(), -1), softmax(x)
    assert float(((result.double() - exact) / exact).abs().max()) < 5e-7
    assert float((result.double().sum(-1) - 1).abs().max()) < 3e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_entropy_and_a_probability_that_would_cancel(dtype: torch.dtype):
    x = torch.tensor([[5600.0, 5590.0, 5600.0, -5600.0], [-3e4, -3e4, -3.2e4, 3.0]]).to(dtype)
    statistics = softmax_statistics(x)
    assert_relative(softmax(x), reference.softmax(x))
    assert_logs(statistics.entropy, reference.entropy(x), 1.0)
    assert_relative(statistics.participation, reference.participation(x))


@pytest.mark.parametrize("size", (1e4, 1e7, 1e20, 3e38))
def test_logits_of_any_size(size: float):
    x = (size * torch.randn(4, 200)).clamp(-size, size)
    x[1] = size
    x[2, ::2], x[2, 1::2] = size, -size
    for temperature in (1.0, 1e-3, 1e3, 1e-35, 1e35):
        assert_relative(softmax(x, temperature=temperature), reference.softmax(x, temperature))


def test_subnormal_probabilities_keep_their_bits():
    x = torch.tensor([0.0, -87.5, -95.0, -103.0, -103.9, -104.1, -140.0, -math.inf])
    result, exact = softmax(x), reference.softmax(x)
    assert bool((result[1:5] > 0).all()) and bool((result[5:] == 0).all())
    assert bool(((result.double() - exact).abs() <= 0.51 * 2.0**-149 + 2.0**-22 * exact).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities(dtype: torch.dtype):
    inf = math.inf
    x = torch.tensor([[1, inf, 2, -inf], [inf, 0, inf, 3], [-inf, -inf, -inf, -inf], [-inf, 2, -inf, -inf]]).to(dtype)
    weights = torch.tensor([[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).to(dtype)
    assert torch.equal(softmax(x), weights)
    assert_logs(log_softmax(x), weights.double().log(), 0.0)
    assert torch.equal(logsumexp(x), torch.tensor([inf, inf, -inf, 2.0]).to(dtype))
    statistics = softmax_statistics(x)
    assert torch.allclose(statistics.entropy.double(), torch.tensor([0, math.log(2), 0, 0]).double(), atol=1e-7)
    assert torch.allclose(statistics.participation.double(), torch.tensor([1.0, 2, 0, 1]).double())


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_nan_spoils_its_row_and_no_other(f):
    x = torch.randn(3, 100)
    x[1, 40], x[2, 3] = math.nan, math.inf
    result = f(x)
    for item in (result,) if isinstance(result, Tensor) else result:
        assert bool(item[1].isnan().all()) and not item[[0, 2]].isnan().any()


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_layout_and_dimension(f):
    x = torch.randn(6, 5, 8)
    for view in (
        lambda t: t.transpose(0, 1),
        lambda t: t[::2],
        lambda t: t[..., ::2],
        lambda t: t[:, :1].expand(6, 3, 8),
    ):
        for result, wanted in zip(f(view(x)), f(view(x).contiguous()), strict=True):
            assert torch.equal(result, wanted)
    for dim in range(-3, 3):
        moved = f(x.movedim(dim, -1).contiguous())
        result = f(x, dim)
        if f in (softmax, log_softmax):
            moved = moved.movedim(-1, dim)
        for item, wanted in zip(result, moved, strict=True):
            assert torch.equal(item, wanted)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_derivatives_of_first_and_second_order(f):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 6) > 0.4
    mask[:, 0] = True

    def finite(x: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = f(x, temperature=0.7, mask=mask)
        return result.masked_fill(~mask, 0) if f is log_softmax else result

    for function in (finite, lambda x: f(x, dim=0, temperature=3.0)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("f", (softmax, log_softmax, logsumexp), ids=lambda f: f.__name__)
def test_gradients(f, dtype: torch.dtype, poisoned: None):
    for shape in SHAPES:
        x = (4 * torch.randn(shape)).to(dtype)
        gradient = torch.randn_like(f(x))
        result = gradients(lambda x: f(x, temperature=0.7), x, gradient)
        exact = gradients(lambda x: getattr(torch, f.__name__)(x / 0.7, -1), x.double(), gradient.double())
        assert result.dtype == dtype
        size = 1 + float(gradient.double().abs().sum(-1).max() if gradient.numel() else 0)
        assert bool(((result.double() - exact).abs() <= 4 * EPSILON[dtype] * (exact.abs() + size)).all())


def test_a_row_with_nothing_visible_has_no_gradient():
    x = torch.randn(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    for f in (softmax, logsumexp, lambda x, mask: log_softmax(x, mask=mask), softmax_statistics):
        result = f(x.requires_grad_(), mask=mask)
        total = torch.stack([item[0].sum() for item in (result if isinstance(result, tuple) else (result,))]).sum()
        (gradient,) = torch.autograd.grad(total, x)
        assert not gradient.isnan().any() and not gradient[1].any()


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.floats(-1000, 1000), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_laws(values: list[float], shift: float, temperature: float):
    x = torch.tensor(values, dtype=torch.float64)
    for item in (x, x.float()):
        p = softmax(item, temperature=temperature)
        assert float(p.double().sum()) == pytest.approx(1, abs=1e-6)
        assert bool((p >= 0).all())
        statistics = softmax_statistics(item, temperature=temperature)
        hotter = softmax_statistics(item, temperature=2 * temperature)
        assert float(hotter.entropy) >= float(statistics.entropy) - 1e-6  # entropy grows with temperature
        assert 1 - 1e-6 <= float(statistics.participation) <= len(values) * (1 + 1e-6)
        assert 0 <= float(statistics.entropy) <= math.log(len(values)) + 1e-6
    shifted = logsumexp(x + shift) - shift
    assert float(shifted) == pytest.approx(float(logsumexp(x)), abs=1e-10)
    assert torch.allclose(softmax(x + shift), softmax(x), atol=1e-11)
    order = x.argsort()
    assert bool((softmax(x)[order].diff() >= 0).all())


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_function_transforms_and_compilation(f):
    x = torch.randn(5, 8)

    def total(x: Tensor) -> Tensor:
        result = f(x, dim=-1, temperature=0.7)
        return sum(
            (item.square().sum() for item in ((result,) if isinstance(result, Tensor) else result)), x.new_zeros(())
        )

    expected = gradients(total, x, torch.ones(()))
    assert torch.allclose(torch.func.grad(total)(x), expected)
    assert torch.allclose(torch.func.vmap(torch.func.grad(total))(x), expected)
    assert torch.allclose(torch.func.vmap(total, in_dims=1)(x.t()), torch.func.vmap(total)(x))
    assert torch.func.jacrev(torch.func.jacrev(total))(x).shape == (5, 8, 5, 8)
    torch.compiler.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), total(x))
    assert torch.allclose(gradients(compiled, x, torch.ones(())), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_are_registered_as_torch_wants_them(dtype: torch.dtype):
    x, y = torch.randn(2, 3, 5).to(dtype)
    for name in OPERATORS:
        torch.library.opcheck(getattr(torch.ops.evenkeel, name).default, (x.t(), 0.7))
    for name in ("softmax_backward", "log_softmax_backward"):
        torch.library.opcheck(getattr(torch.ops.evenkeel, name).default, (x, y.t().contiguous().t(), 0.7))


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_without_kernels_the_torch_path_agrees(f, monkeypatch: pytest.MonkeyPatch):
    x = 4 * torch.randn(3, 2000)
    x[0, 5], x[1] = math.inf, -math.inf

    def both(x: Tensor) -> tuple[Tensor, ...]:
        result = f(x, temperature=0.7)
        result = (result,) if isinstance(result, Tensor) else tuple(result)
        return *result, gradients(
            lambda x: torch.stack(list(f(x))), x[2:], torch.ones_like(torch.stack(list(f(x[2:]))))
        )

    fast = both(x)
    monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(fast, both(x), strict=True))


def test_threads_change_no_bit():
    x, before = 4 * torch.randn(64, 4000), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((softmax(x), log_softmax(x), logsumexp(x), *softmax_statistics(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_wrong_variants_would_be_caught():
    x = 4 * torch.randn(2, 5000)
    exact = reference.softmax(x)
    unshifted_in_half = torch.softmax(x.half(), -1).float()
    for wrong in (
        exact.float() * (1 + 1e-6),
        unshifted_in_half,
        torch.softmax(x[:, 1:], -1),
        torch.softmax(x / 1.001, -1),
    ):
        with pytest.raises(AssertionError):
            assert_relative(wrong, exact)
    for wrong in (reference.logsumexp(x) + 1e-5, torch.full((2,), math.nan)):
        with pytest.raises(AssertionError):
            assert_logs(wrong.float(), reference.logsumexp(x), 20.0)
    with pytest.raises(AssertionError):  # shifting by the maximum in float32, as most do
        assert_relative(wrong_by_shifting(x), exact)


def wrong_by_shifting(x: Tensor) -> Tensor:
    """Probabilities whose only error is that x − max was rounded to float32."""
    shifted = (x * 4 - (x * 4).amax(-1, keepdim=True)).double() / 4
    return (shifted.exp() / shifted.exp().sum(-1, keepdim=True)).float()


def test_naive_softmax_is_as_unstable_as_its_definition():
    assert torch.allclose(naive_softmax(torch.randn(3, 4)).sum(-1), torch.ones(3))
    assert naive_softmax(torch.tensor([100.0, 0.0]))[0].isnan()
    assert bool(naive_softmax(torch.tensor([-200.0, -200.0])).isnan().all())
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(naive_softmax, (x,))


def test_other_functions_see_the_call():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            seen.append(function)
            return function(*arguments, **(options or {}))

    with Mode():
        for f in (*FUNCTIONS, naive_softmax):
            f(torch.randn(2, 3))
    assert set(seen) >= {*FUNCTIONS, naive_softmax}


def test_usage_errors_say_what_to_type():
    x = torch.randn(2, 3)
    with pytest.raises(UsageError, match=r"logits\.float\(\)"):
        softmax(x.long())
    with pytest.raises(UsageError, match="dim is 2"):
        softmax(x, 2)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="positive and finite"):
            logsumexp(x, temperature=temperature)
    with pytest.raises(UsageError, match="bool"):
        log_softmax(x, mask=x)
    with pytest.raises(UsageError, match=r"\(4, 2, 3\).*broadcast"):
        softmax_statistics(x, mask=torch.ones(4, 2, 3, dtype=torch.bool))


def test_an_empty_row_is_a_row_with_nothing_visible():
    x = torch.randn(2, 0)
    for dtype in DTYPES:
        assert softmax(x.to(dtype)).shape == log_softmax(x.to(dtype)).shape == (2, 0)
        assert torch.equal(logsumexp(x.to(dtype)), torch.full((2,), -math.inf, dtype=dtype))
        assert not softmax_statistics(x.to(dtype)).entropy.any()
    assert module.SoftmaxStatistics._fields == ("logsumexp", "entropy", "participation")
