"""Gated products against their definition in float64: values, both gradients, packed halves, every mode."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import evenkeel as ek
from evenkeel.errors import UsageError
from evenkeel.functional import ACTIVATIONS, clamped_swiglu, gated
from evenkeel.kernels import cpu
from evenkeel.reference.activations import REFERENCES, SLOPES
from evenkeel.testing import assert_ulp

CLAMPED = "clamped_swiglu"
NAMES = (*SLOPES, CLAMPED)
ROUNDING = {torch.float32: 4 * 2.0**-23, torch.bfloat16: 2 * 2.0**-8, torch.float16: 2 * 2.0**-11}  # relative


def function(name: str):
    return clamped_swiglu if name == CLAMPED else lambda gate, up=None: gated(gate, up, name)


def reference(name: str, gate: Tensor, up: Tensor) -> Tensor:
    if name == CLAMPED:
        g, u = gate.clamp(max=7), up.clamp(-7, 7)
        return g * torch.sigmoid(1.702 * g) * (u + 1)
    return REFERENCES[name](gate) * up


def gradients(f, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(item.detach().requires_grad_() for item in inputs)
    return torch.autograd.grad(f(*inputs), inputs, gradient)


def assert_near(result: Tensor, exact: Tensor, slack: float = 1e-6) -> None:
    bound = ROUNDING[result.dtype] * exact.abs() + slack * ROUNDING[result.dtype] / ROUNDING[torch.float32]
    assert result.shape == exact.shape
    assert bool(((result.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", tuple(ROUNDING), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name: str, dtype: torch.dtype, poisoned: None):
    for shape in ((), (0, 4), (1,), (3, 63), (2, 5, 100), (7, 2000)):
        gate, up, gradient = ((4 * torch.randn(shape)).to(dtype) for _ in range(3))
        exact = [item.double() for item in (gradient, gate, up)]
        assert_near(function(name)(gate, up), reference(name, *exact[1:]))
        expected = gradients(lambda g, u: reference(name, g, u), *exact)
        for result, wanted in zip(gradients(function(name), gradient, gate, up), expected, strict=True):
            assert result.dtype == dtype
            assert_near(result, wanted, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_product_would_be_caught(name: str):
    gate, up = 4 * torch.randn(2, 64)
    exact = reference(name, gate.double(), up.double())
    assert_near(exact.float(), exact)
    wrongs = [exact * (1 + 2.0**-20), -exact]
    if name != "identity":  # whose factors may change places
        wrongs.append(reference(name, up.double(), gate.double()))
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            assert_near(wrong.float(), exact)


@pytest.mark.parametrize("name", ("silu", "gelu", "gelu_tanh", "quick_gelu"))
def test_float32_gates_are_as_exact_as_they_say(name: str):
    x = torch.cat([torch.linspace(-110, 30, 400_001), 2 * torch.randn(400_000)])
    one = torch.ones_like(x)
    assert_ulp(gated(x, one, name), REFERENCES[name](x.double()), 8 if name == "gelu" else 2)
    to_gate, to_up = gradients(function(name), one, x, one)
    slope, value = SLOPES[name](x.double()), REFERENCES[name](x.double())
    term = torch.maximum(slope.abs(), (value / x.double()).nan_to_num().abs()).clamp(min=2.0**-126)
    assert float(((to_gate - slope).abs() / term).max()) < 12 * 2.0**-24
    assert float(((to_up - value).abs() / value.abs().clamp(min=2.0**-126)).max()) < 8 * 2.0**-24


@pytest.mark.parametrize("dtype", tuple(ROUNDING), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_halves_of_a_packed_tensor_in_every_layout(name: str, dtype: torch.dtype):
    f = function(name)
    for shape in ((3, 8), (2, 5, 126), (0, 4), (10,)):
        packed = torch.randn(shape).to(dtype)
        gate, up = packed.chunk(2, -1)
        gradient = torch.randn_like(gate)
        apart = f(gate.clone(), up.clone())
        assert torch.equal(f(packed), apart) and torch.equal(f(gate, up), apart)
        together = torch.cat(gradients(f, gradient, gate.clone(), up.clone()), -1)
        assert torch.equal(gradients(f, gradient, packed)[0], together)
        assert torch.equal(gradients(lambda p: f(*p.chunk(2, -1)), gradient, packed)[0], together)
    x, y = torch.randn(6, 5, 8).to(dtype), torch.randn(6, 5, 8).to(dtype)
    for view in (
        lambda t: t.transpose(0, 1),
        lambda t: t[::2],
        lambda t: t[..., ::2],
        lambda t: t[:, :1].expand(6, 3, 8),
    ):
        assert torch.equal(f(view(x), view(y)), view(f(x, y)))
        assert torch.equal(f(view(x), view(y).contiguous()), view(f(x, y)))


def test_halves_are_not_copied():
    packed = torch.randn(64, 2 * 4096)
    gate, up = packed.chunk(2, -1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        gated(gate, up)
    assert "aten::copy_" not in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_first_and_second_order(name: str):
    inside = torch.tensor([-9.0, -1.3, -0.2, 0.4, 2.0, 6.5, 8.0], dtype=torch.float64)
    gate, up = inside.clone().requires_grad_(), inside.flip(0).clone().requires_grad_()
    packed = torch.cat([inside, inside.flip(0)]).requires_grad_()
    assert torch.autograd.gradcheck(function(name), (gate, up))
    assert torch.autograd.gradgradcheck(function(name), (gate, up))
    assert torch.autograd.gradcheck(function(name), (packed,))
    assert torch.autograd.gradgradcheck(function(name), (packed,))


def test_only_the_inputs_are_saved():
    saved: list[Tensor] = []
    gate, up = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda item: saved.append(item) or item, lambda item: item):
        gated(gate, up)
    assert {item.data_ptr() for item in saved} == {gate.data_ptr(), up.data_ptr()}


@pytest.mark.parametrize("name", NAMES)
def test_function_transforms_and_compilation(name: str):
    f = function(name)
    x, u = torch.randn(2, 5, 8)
    rows = torch.func.vmap(torch.func.grad(lambda g, v: f(g, v).sum(), argnums=(0, 1)))(x, u)
    assert all(torch.equal(*pair) for pair in zip(rows, gradients(f, torch.ones(5, 8), x, u), strict=True))
    assert torch.equal(torch.func.vmap(f, in_dims=(0, None))(x, u[0]), f(x, u[0].expand(5, 8)))
    assert torch.equal(torch.func.vmap(torch.func.grad(lambda p: f(p).sum()))(x), gradients(f, torch.ones(5, 4), x)[0])
    torch.compiler.reset()
    compiled = torch.compile(lambda g, v: f(g, v), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, u), f(x, u))
    assert torch.equal(gradients(compiled, torch.ones(5, 8), x, u)[0], gradients(f, torch.ones(5, 8), x, u)[0])
    square = torch.compile(lambda g: f(g, g), fullgraph=True, backend="aot_eager")
    both = gradients(square, torch.ones(5, 8), x), gradients(lambda g: f(g, g), torch.ones(5, 8), x)
    assert torch.equal(both[0][0], both[1][0])


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_registered_as_torch_wants_them(name: str):
    gate, up, gradient = torch.randn(3, 3, 5)
    ops = torch.ops.evenkeel
    torch.library.opcheck(ops.gated.default, (gate, up, name))
    torch.library.opcheck(ops.gated_backward.default, (gradient.t().contiguous().t(), gate, up, name))
    torch.library.opcheck(ops.gated_packed_backward.default, (gradient, torch.randn(3, 10), name))


@pytest.mark.parametrize("name", NAMES)
def test_without_kernels_the_torch_path_agrees(name: str, monkeypatch: pytest.MonkeyPatch):
    x, u, g = torch.randn(3, 4, 2000)
    fast = (function(name)(x, u), *gradients(function(name), g, x, u))
    monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    slow = (function(name)(x, u), *gradients(function(name), g, x, u))
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-6) for pair in zip(fast, slow, strict=True))


def test_names_stand_for_their_activations():
    x, u = torch.randn(2, 3, 4)
    names = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}
    for name, activation in (names | {"bilinear": "identity"}).items():
        assert torch.equal(getattr(ek.functional, name)(x, u), gated(x, u, activation))
        assert torch.allclose(gated(x, u, activation), ACTIVATIONS[activation].function(x) * u)


def test_what_does_not_fit_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match=r"gate is \(3, 4\) in torch.float32, up is \(3, 5\)"):
        gated(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(UsageError, match=r"up is .* in torch.float64"):
        gated(torch.randn(3), torch.randn(3).double())
    with pytest.raises(UsageError, match=r"a packed tensor has shape \(..., 2·d_ff\), not \(3, 5\)"):
        gated(torch.randn(3, 5))
    with pytest.raises(UsageError, match="did you mean 'silu'"):
        gated(torch.randn(3, 4), activation="sillu")


def test_the_first_call_of_a_process_may_be_a_compiled_one():
    code = """
import torch
from evenkeel.functional import gated, silu, softmax
product = torch.compile(lambda g, u: softmax(gated(g, u)) + silu(g), fullgraph=True, backend="aot_eager")
x = torch.randn(3, 4, requires_grad=True)
product(x, torch.randn(3, 4)).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
