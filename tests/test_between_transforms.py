"""Linear maps, RMS norms and rotary positions: where somebody looks on, they are torch's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from between_cases import NAMES, calls, close, counted, exactly
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")


def under_vmap(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    stacked = torch.stack([given[0], given[0] + 1])
    with torch.no_grad():
        return torch.func.vmap(function, in_dims=(0, *(None for _ in given[1:])))(stacked, *given[1:])[0]


def under_grad(function: Callable[..., Tensor], given: list[Tensor]) -> Tensor:
    found = function(given[0].clone().requires_grad_(), *given[1:])
    assert found.requires_grad
    return found.detach()


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
    "grad": under_grad,
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
