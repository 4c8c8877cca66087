"""Linear maps, RMS norms and rotary positions: where somebody looks on, they are torch's own functions.

Rotary positions that autograd alone differentiates are the kernel's, with torch's bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from between_cases import NAMES, calls, close, counted, exactly
from nn_cases import normal
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from evenkeel.functional import rotate

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")


def under_vmap(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    stacked = torch.stack([given[0], given[0] + 1])
    with torch.no_grad():
        return torch.func.vmap(function, in_dims=(0, *(None for _ in given[1:])))(stacked, *given[1:])[0]


def under_func_grad(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        found = function(x, *given[1:])
        return found.sum(), found

    with torch.no_grad():
        gradient, found = torch.func.grad(call, has_aux=True)(given[0])
    assert bool(gradient.abs().sum() > 0)
    return found


def under_jvp(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    with torch.no_grad():
        both: Any = torch.func.jvp(lambda x: function(x, *given[1:]), (given[0],), (torch.ones_like(given[0]),))
    assert bool(both[1].abs().sum() > 0)
    return both[0]


def under_compile(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    torch.compiler.reset()
    with torch.no_grad():
        return torch.compile(function, backend="aot_eager", fullgraph=True)(*given)


def under_trace(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    with torch.no_grad():
        traced: Any = torch.jit.trace(function, tuple(given), check_trace=False)  # a check calls it untraced
        return traced(*given)


class Watching(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


def under_a_mode(mode: Any, function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    with torch.no_grad(), mode:
        found = function(*given)
    assert mode.seen
    return found


def under_a_profiler(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = function(*given)
    assert profile.key_averages()
    return found


CIRCUMSTANCES: dict[str, Callable[[Callable[..., Tensor], list[Tensor]], Tensor]] = {
    "vmap": under_vmap,
    "func.grad": under_func_grad,
    "jvp": under_jvp,
    "compile": under_compile,
    "trace": under_trace,
    "function mode": lambda function, given: under_a_mode(Watching(), function, given),
    "dispatch mode": lambda function, given: under_a_mode(Dispatched(), function, given),
    "profiler": under_a_profiler,
}


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
@pytest.mark.parametrize("name", NAMES)
def test_where_somebody_looks_on_torch_does_it(name: str, circumstance: str) -> None:
    function, given = calls()[name]
    with counted() as called:
        found = CIRCUMSTANCES[circumstance](function, given)
    assert not called
    close(found, exactly(name, given), 10.0, torch.float32)


@pytest.mark.parametrize("name", ["linear", "rms_norm"])
def test_what_is_trained_is_torchs(name: str) -> None:
    function, given = calls()[name]
    with counted() as called:
        found = function(given[0].clone().requires_grad_(), *given[1:])
    assert not called and found.requires_grad
    close(found.detach(), exactly(name, given), 10.0, torch.float32)


Derivatives = tuple[Tensor, Tensor, Tensor]


def derivatives(x: Tensor, cosine: Tensor, sine: Tensor) -> Derivatives:
    """Of a function of the turned x: itself, its gradient, and that of the gradient's squares."""
    x = x.clone().requires_grad_()
    turned = rotate(x, cosine, sine)
    (first,) = torch.autograd.grad((turned**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x)
    return turned.detach(), first.detach(), second


@pytest.mark.parametrize("rest", [0, 2])
def test_trained_rotations_are_the_kernels_with_torchs_bits(rest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, angles = normal(2, 5, 3, 6 + rest, dtype=torch.float32), 10 * normal(1, 5, 3, seed=1, dtype=torch.float32)
    given = x, angles.cos(), angles.sin()
    with counted() as called:
        found = derivatives(*given)
    assert called == ["rotations"] * 4
    exact = derivatives(*(item.double() for item in given))
    for item, true, size in zip(found, exact, (10.0, 1e3, 1e5), strict=True):
        close(item, true, size, torch.float32)
    with Watching():
        watched = derivatives(*given)
    monkeypatch.setenv("EVENKEEL_KERNELS", "off")
    for other in (watched, derivatives(*given)):
        assert all(torch.equal(one, two) for one, two in zip(found, other, strict=True))


def test_a_rotation_that_is_watched_and_repeated_unwatched_saves_the_same() -> None:
    x, angles = normal(1, 5, 3, 6, dtype=torch.float32).requires_grad_(), normal(1, 5, 3, seed=1, dtype=torch.float32)
    with Watching():
        turned: Any = checkpoint(rotate, x, angles.cos(), angles.sin(), use_reentrant=False)
    turned.sum().backward()
    assert x.grad is not None and torch.equal(
        x.grad, torch.autograd.grad(rotate(x, angles.cos(), angles.sin()).sum(), x)[0]
    )


def test_gradients_of_a_rotation_come_in_batches() -> None:
    x, angles = normal(1, 5, 3, 6, dtype=torch.float32).requires_grad_(), normal(1, 5, 3, seed=1, dtype=torch.float32)
    turned = rotate(x, angles.cos(), angles.sin())
    several = normal(4, *turned.shape, seed=2, dtype=torch.float32)
    (batched,) = torch.autograd.grad(turned, x, several, is_grads_batched=True, retain_graph=True)
    for one, own in zip(batched, several, strict=True):
        assert torch.equal(one, torch.autograd.grad(turned, x, own, retain_graph=True)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_watcher_sees_torchs_own_function(name: str) -> None:
    function, given = calls()[name]
    mode = Watching()
    under_a_mode(mode, function, given)
    assert {"linear": F.linear, "rms_norm": F.rms_norm, "rotate": torch.cat}[name] in mode.seen


@pytest.mark.parametrize("name", NAMES)
def test_autocast_is_torchs(name: str) -> None:
    function, given = calls()[name]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), counted() as called:
        found = function(*given)
    assert not called
    assert found.dtype == (torch.bfloat16 if name == "linear" else torch.float32)
    close(found.float(), exactly(name, given), 1e5, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_fake_and_meta_tensors_have_shapes(name: str) -> None:
    function, given = calls()[name]
    wanted = exactly(name, given).shape
    with torch.no_grad(), FakeTensorMode() as mode:
        assert function(*(mode.from_tensor(item) for item in given)).shape == wanted
    with torch.no_grad():
        found = function(*(item.to("meta") for item in given))
    assert found.is_meta and found.shape == wanted
