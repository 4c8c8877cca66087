"""Pointwise functions from the catalogue: each against its float64 reference, to the last bits, and in every mode."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evenkeel as ek
from evenkeel.errors import UsageError
from evenkeel.facts import FACTS
from evenkeel.functional import ACTIVATIONS, register_activation
from evenkeel.kernels import cpu
from evenkeel.nn import FeedForward, FeedForwardConfig
from evenkeel.reference.activations import REFERENCES, SLOPES
from evenkeel.testing import assert_ulp, ulp_error

NAMES = tuple(SLOPES)
NARROW = (torch.bfloat16, torch.float16)
FORMATS = (torch.float32, *NARROW)
ULP = {torch.float32: 2.0, torch.bfloat16: 0.51, torch.float16: 0.51}
NEAR_ZERO, FLOOR = 2.0**-6, 2.0**-8  # within the first of a zero of f′, the ulp of the second is what is held to
EVERY = 2**10  # one of so many float32 patterns: 2^22 of them, at all magnitudes
ODD_SHAPES = ((), (0,), (1,), (63,), (3, 0, 2), (7, 100), (2, 1000))


def function(name: str):
    return ACTIVATIONS[name].function


def patterns(dtype: torch.dtype) -> Tensor:
    if dtype != torch.float32:
        return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    places = torch.arange(2**32 // EVERY, dtype=torch.int64)
    bits = places * EVERY + places * 0x9E3779B1 % EVERY  # low bits of their own for each
    return torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(dtype)


def slope(f, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    y = f(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


def floor(name: str, x: Tensor) -> Tensor:
    zeros = torch.tensor(FACTS[name].derivative_zeros, dtype=torch.float64)
    near = ((x.double()[:, None] - zeros).abs() <= NEAR_ZERO).any(1)
    return torch.where(near, FLOOR, 0.0).double()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_slopes_to_the_last_bits(name: str, dtype: torch.dtype):
    for x in patterns(dtype).split(2**16):
        exact = x.double()
        assert_ulp(function(name)(x), REFERENCES[name](exact), ULP[dtype])
        assert_ulp(slope(function(name), x), SLOPES[name](exact), ULP[dtype], floor=floor(name, x))


@pytest.mark.parametrize("name", NAMES)
def test_the_measure_catches_a_planted_error(name: str):
    x = torch.linspace(0.3, 3, 1000)
    exact = REFERENCES[name](x.double())
    wrong = function(name)(x)
    wrong[617] = torch.nextafter(wrong[617] * (1 + 3 * 2.0**-23), torch.tensor(math.inf))
    with pytest.raises(AssertionError, match="at element 617"):
        assert_ulp(wrong, exact, 2)
    for other in set(NAMES) - {name}:  # no function passes for another
        with pytest.raises(AssertionError):
            assert_ulp(
                function(other)(torch.linspace(-3, 3, 99)), REFERENCES[name](torch.linspace(-3, 3, 99).double()), 2
            )


def test_the_measure_knows_infinities_nan_and_signs_of_zero():
    cases = [  # result, exact, error in ulp
        (1.0, 1 + 2.0**-24, 0.5),
        (1.0, 1 - 2.0**-25, 0.5),
        (2.0**-149, 2.0**-150, 0.5),
        (0.0, -(2.0**-160), math.inf),
        (-0.0, -(2.0**-160), 2.0**-11),
        (math.inf, 1e39, 0.0),
        (math.nan, math.nan, 0.0),
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
    ]
    for result, exact, error in cases:
        found = ulp_error(torch.tensor([result]), torch.tensor([exact], dtype=torch.float64))
        assert found.worst == error, (result, exact)
    assert (
        ulp_error(torch.tensor([1.0]), torch.tensor([1 + 2.0**-24]).double(), floor=torch.ones(1).double() * 4).worst
        <= 0.25
    )


@pytest.mark.parametrize("dtype", (*FORMATS, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_infinities_and_nan(name: str, dtype: torch.dtype):
    f = function(name)
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=dtype)
    y = f(x)
    low, high = FACTS[name].range
    assert y[4].isnan() and slope(f, x)[4].isnan()
    assert not y[:4].isnan().any() and not slope(f, x)[:4].isnan().any()
    assert float(y[2]) == high
    assert float(y[3]) == REFERENCES[name](torch.tensor([-math.inf], dtype=torch.float64)).item()
    if REFERENCES[name](torch.zeros(1, dtype=torch.float64)).item() == 0 and name not in ("relu", "relu2"):
        assert y[:2].tolist() == [0.0, 0.0] and y[:2].signbit().tolist() == [False, True]
    assert low <= float(y[3]) <= high


@pytest.mark.parametrize("dtype", (*FORMATS, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_any_shape_and_strides_and_no_memory_left_unwritten(name: str, dtype: torch.dtype, poisoned: None):
    f = function(name)
    for shape in ODD_SHAPES:
        x = torch.randn(shape).to(dtype)
        y = f(x)
        assert y.shape == x.shape and y.dtype == dtype and not y.isnan().any()
        assert not slope(f, x).isnan().any()
    x = torch.randn(63, 100).to(dtype)
    whole, slopes = f(x), slope(f, x)
    for view in (
        lambda t: t.t(),
        lambda t: t[::2, 3:],
        lambda t: t[:, :1].expand(63, 7),
        lambda t: t.view(9, 7, 100)[1:],
    ):
        assert torch.equal(f(view(x)), view(whole))
        assert torch.equal(slope(f, view(x)), view(slopes))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_first_and_second_order(name: str):
    x = torch.tensor([-3.1, -1.2784, -0.75, -0.1, 0.2, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function(name), x)
    assert torch.autograd.gradgradcheck(function(name), x)


@pytest.mark.parametrize("name", NAMES)
def test_function_transforms_and_compilation(name: str):
    f = function(name)
    x = torch.randn(5, 7)
    by_row = torch.func.vmap(torch.func.grad(lambda row: f(row).sum()))(x)
    assert torch.equal(by_row, slope(f, x))
    assert torch.equal(torch.func.vmap(f, in_dims=1)(x), f(x).t())
    curvature = torch.func.grad(lambda v: torch.func.grad(lambda u: f(u).sum())(v).sum())(x[0])
    exact = slope(SLOPES[name], x[0].double())
    assert torch.allclose(curvature.double(), exact, atol=1e-5)
    torch.compiler.reset()  # every name is one more version of the same code
    compiled = torch.compile(lambda v: f(v) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), f(x) * 2)
    assert torch.equal(slope(compiled, x), slope(f, x) * 2)


@pytest.mark.parametrize("dtype", (*FORMATS, torch.float64), ids=str)
def test_operators_are_registered_as_torch_wants_them(dtype: torch.dtype):
    x = torch.randn(3, 5).to(dtype)
    for arguments in ((x, "silu"), (x.t(), "gelu"), (x[:0], "relu")):
        torch.library.opcheck(torch.ops.evenkeel.pointwise.default, arguments)
        torch.library.opcheck(
            torch.ops.evenkeel.pointwise_backward.default, (torch.randn_like(arguments[0]), *arguments)
        )


@pytest.mark.parametrize("name", NAMES)
def test_one_thread_or_two_and_with_the_torch_path(name: str, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(200_001) * 4
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = function(name)(x)
        torch.set_num_threads(2)
        assert torch.equal(function(name)(x), alone)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    assert torch.allclose(function(name)(x), alone, rtol=1e-4, atol=1e-6)
    assert torch.allclose(slope(function(name), x).double(), SLOPES[name](x.double()), rtol=1e-4, atol=1e-6)


@given(st.floats(-100, 100, width=32))
def test_laws(x: float):
    both = torch.tensor([x, -x])
    for name in ("silu", "gelu", "gelu_tanh", "quick_gelu"):  # x·p(x) with p(x) + p(−x) = 1
        y = function(name)(both).double()
        assert float(y[0] - y[1]) == pytest.approx(x, rel=1e-6, abs=1e-37)
    assert float(function("sigmoid")(both).double().sum()) == pytest.approx(1, abs=1e-7)
    odd = function("tanh")(both)
    assert float(odd[0]) == -float(odd[1])
    assert float(function("softplus")(both)[0].double() - function("softplus")(both)[1].double()) == pytest.approx(
        x, rel=1e-6, abs=1e-6
    )
    for name in NAMES:
        low, high = FACTS[name].range
        assert low - 1e-6 <= float(function(name)(both)[0]) <= high


@given(st.floats(-50, 50, width=32), st.floats(0, 10, width=32))
def test_what_has_no_zero_slope_never_falls(x: float, step: float):
    pair = torch.tensor([x, x + step])
    for name in NAMES:
        if not FACTS[name].derivative_zeros:
            y = function(name)(pair)
            assert float(y[1]) >= float(y[0]), name


def test_a_function_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    def cube(x: Tensor) -> Tensor:
        return x * x * x

    monkeypatch.setattr(ACTIVATIONS, "_entries", dict(ACTIVATIONS._entries))
    register_activation("cube", cube)
    x, up = torch.randn(4, 6), torch.randn(4, 6)
    assert torch.equal(ek.functional.gated(x, up, "cube"), cube(x) * up)
    layers = [FeedForward(6, FeedForwardConfig(d_ff=8, activation="cube", gated=gated)) for gated in (True, False)]
    assert layers[0](x).shape == x.shape
    diagnosis = ek.inspect(layers[1], [x], backward=False)
    assert "cube" in {site.op for site in diagnosis.sites}
    with pytest.raises(UsageError, match="'cube' is already"):
        register_activation("cube", cube)


def test_integers_are_refused_with_the_remedy():
    with pytest.raises(UsageError, match=r"not torch.int64; convert with x.float\(\)"):
        ek.functional.silu(torch.arange(3))


def test_forward_mode_is_refused_rather_than_ignored():
    x = torch.randn(3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        ek.functional.silu(torch.autograd.forward_ad.make_dual(x, torch.ones(3)))
