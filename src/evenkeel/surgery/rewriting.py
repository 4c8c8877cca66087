"""Rewriting calls of a live module: its forward runs under a function mode that changes a few calls of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from ..functional._activations import Pointwise

Kept = dict[str, Tensor]
"""Tensors that one action hands on to a later one of the same run."""


class Action:
    """What is done in the place of a call; plain data, so that a model that holds it can be copied and saved."""

    optional: ClassVar[bool] = False
    """Whether a run without this call is one as it should be."""

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Calls:
    """What is done at the calls of one function in one run of a module: at all, or at some of `total` by number."""

    actions: Mapping[int, Action]
    total: int | None = None
    """None where the one action, under number 0, is for every call however many there are."""

    def at(self, number: int) -> Action | None:
        """What to do at a call, counted from 0."""
        return self.actions.get(0 if self.total is None else number)

    def are_as_traced(self, count: int) -> bool:
        """Whether a run with so many calls is like the traced one."""
        if all(action.optional for action in self.actions.values()):
            return True
        return count > 0 if self.total is None else count == self.total


Rules = Mapping[Callable[..., Any], Calls]
"""By function: what is done at its calls."""


class Run:
    """One run of a module: the calls that came so far, and what is kept from one for a later one."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._counts: dict[Callable[..., Any], int] = {}
        self._kept: Kept = {}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call gives, changed or not."""
        action = self.action(func)
        return func(*args, **kwargs) if action is None else action(func, args, kwargs, self._kept)

    def action(self, func: Callable[..., Any]) -> Action | None:
        """What to do in the place of the next call of a function."""
        calls = self._rules.get(func)
        if calls is None:
            return None
        count = self._counts.get(func, 0)
        self._counts[func] = count + 1
        return calls.at(count)

    def check(self, where: str) -> None:
        """Raises ModelError where the run was not like the traced one, so that the change may not be in force."""
        for func, calls in self._rules.items():
            count = self._counts.get(func, 0)
            if not calls.are_as_traced(count):
                name = getattr(func, "__name__", type(func).__name__)
                raise ModelError(
                    f"{where} called {name} {count} times, and {calls.total or 'one or more'} times when swap traced "
                    "it, so what the change applies to is not known; restore() it, and swap again with batch= set to "
                    "an input like this one"
                )

    def finished(self, output: Any) -> Any:
        """The module's output, as it is to be."""
        return output


class Rewriting(TorchFunctionMode):
    """Hands every call to a run."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling() and func.__name__ == "unflatten":
            func = torch.unflatten  # the method cannot be followed under a function mode
        return self.run.call(func, args, kwargs or {})


@dataclass(eq=False, kw_only=True)
class Forward:
    """What stands as `forward` in a module some of whose calls are changed; `inner` is what stood there before."""

    module: nn.Module
    path: str
    rules: Rules
    inner: Callable[..., Any] | None = None
    owner: Any = None

    def __post_init__(self) -> None:
        # torch.compile looks through evenkeel's functions and shows no mode their calls: such a module runs as it is
        self.unseen = any(getattr(func, "__module__", "").startswith("evenkeel.") for func in self.rules)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.unseen and torch.compiler.is_compiling():
            return torch.compiler.disable(self.changed)(*args, **kwargs)
        return self.changed(*args, **kwargs)

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        """What the module does now."""
        run = self.begun()
        with Rewriting(run):
            output = self.before(*args, **kwargs)
        run.check(self.path or type(self.module).__name__)
        return run.finished(output)

    def begun(self) -> Run:
        """A run of the module that begins."""
        return Run(self.rules)

    def before(self, *args: Any, **kwargs: Any) -> Any:
        """What the module did before."""
        if self.inner is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return self.inner(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}  # a copy has the change for good

    @property
    def __signature__(self) -> inspect.Signature:
        if self.inner is not None:
            return inspect.signature(self.inner)
        own = inspect.signature(type(self.module).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])


class Replaced(nn.Module):
    """An elementwise function in the place of a module; it holds what that module held, its hooks included."""

    function: Pointwise
    label: str
    owner: Any

    @classmethod
    def of(cls, module: nn.Module, function: Pointwise, label: str) -> Replaced:
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        made.__dict__.update(function=function, label=label, owner=None)
        made.__dict__.pop("forward", None)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.label

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}
