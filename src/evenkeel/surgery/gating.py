"""The fused gated kernel: f(gate)·up of a module's own calls becomes one call of evenkeel.functional.gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import UsageError
from ..functional import ACTIVATIONS, gated
from ..schema import Site
from ..tracing.events import GateEvent
from ..tracing.functions import PRODUCTS, FunctionNames
from .activating import Activating, writes
from .edits import Edit, ForwardEdit, ModuleEdit, rules_of
from .places import Survey, aliases
from .rewriting import Action, Forward, Kept, Replaced, Rules, Run
from .tape import Entry

_NAMES = FunctionNames()
_PRODUCTS = frozenset((name, False) for name in PRODUCTS)


@dataclass(frozen=True)
class Held(Action):
    """The call of an activation is put off until it is known what becomes of its result."""

    name: str
    position: int
    optional: ClassVar[bool] = True

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], kept: Kept) -> Tensor:
        return hold(args[self.position], self.name)


def hold(x: Tensor, name: str) -> Tensor:
    """x itself, shown to the mode that puts the activation of it off."""
    if has_torch_function_unary(x):
        return handle_torch_function(hold, (x,), x, name)
    return x


@dataclass(eq=False)
class PutOff:
    """An activation that is put off while the module of its product runs, and applied at all other times."""

    name: str
    active: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return hold(x, self.name) if self.active else ACTIVATIONS[self.name].function(x)


class Fusing(Run):
    """Puts activations off, and where one meets its product makes one gated call of both.

    Any other call that is given the result of one gets it as it should be, so nothing depends on what comes next.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._held: dict[int, tuple[Tensor, Tensor, str]] = {}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is hold:
            return self._hold(args[0], args[1])
        action = self.action(func)
        if isinstance(action, Held):
            return self._hold(args[action.position], action.name)
        if self._held:
            product = self._product(func, args)
            if product is not None:
                return product
            args = tuple(self.finished(item) for item in args)
            kwargs = {name: self.finished(item) for name, item in kwargs.items()}
        return func(*args, **kwargs)

    def check(self, where: str) -> None:
        """Whatever is called, it gets what it should."""

    def _hold(self, x: Tensor, name: str) -> Tensor:
        held = x.view_as(x)
        self._held[id(held)] = (held, x, name)
        return held

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Tensor | None:
        if len(args) != 2 or _NAMES(func) not in _PRODUCTS:
            return None
        for first, second in (args, args[::-1]):
            if id(first) in self._held and id(second) not in self._held and _is_like(first, second):
                _, gate, name = self._held[id(first)]
                return gated(gate, second, name)
        return None

    def finished(self, output: Any) -> Any:
        """A value with the activations in it that were put off."""
        if type(output) in (tuple, list):
            return type(output)(self.finished(part) for part in output)
        if id(output) in self._held:
            _, x, name = self._held[id(output)]
            return ACTIVATIONS[name].function(x)
        return output


def _is_like(first: Tensor, second: Any) -> bool:
    return isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype


@dataclass(eq=False, kw_only=True)
class FusedForward(Forward):
    """The forward of a module in which gated products are made by one kernel."""

    put_off: list[PutOff] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a compiler makes one kernel of both by itself
            return self.before(*args, **kwargs)
        for item in self.put_off:
            item.active += 1
        try:
            return super().__call__(*args, **kwargs)
        finally:
            for item in self.put_off:
                item.active -= 1

    def begun(self) -> Run:
        return Fusing(self.rules)


def fused(survey: Survey, gates: list[tuple[Site, GateEvent, Entry]], found: list[Activating]) -> list[Edit]:
    """The edits that fuse these gates; raises UsageError where one is in no form that can be."""
    parts: dict[nn.Module, tuple[dict[Entry, Action], dict[nn.Module, Activating]]] = {}
    for site, event, entry in gates:
        activating = _activation_of(event, found)
        if activating is None or activating.op not in ACTIVATIONS or entry.name not in PRODUCTS or _is_closed(entry):
            raise UsageError(
                f"{site.id}: its activation does not go straight into the product, so they are not one kernel"
            )
        calls, modules = parts.setdefault(entry.frames[-1].module, ({}, {}))
        if activating.module is not None:
            modules[activating.module] = activating
            continue
        (call, action), *more = activating.calls(survey, activating.op)
        position = getattr(action, "position", None)
        if more or position is None or writes(call) or call.own_backward or entry.frames[-1] not in call.frames:
            raise UsageError(
                f"{site.id}: its activation is made of several calls, or in place; swap it for one call first"
            )
        calls[call] = Held(activating.op, position)
    edits: list[Edit] = []
    for module, (calls, modules) in parts.items():
        functions = []
        for held, activating in modules.items():
            functions.append(PutOff(activating.op))
            made = Replaced.of(held, functions[-1], f"{activating.op}, put off into the gated kernel")
            edits.append(ModuleEdit(held, activating.site.path, survey.holders(held), made))
        rules = rules_of(survey, module, calls)
        path = survey.path_of(module)
        edits.append(ForwardEdit(FusedForward(module=module, path=path, rules=rules, put_off=functions)))
    return edits


def _is_closed(entry: Entry) -> bool:
    """Whether a product cannot be made another way: it is written in place, or has gradients of its own."""
    return entry.in_place or entry.own_backward


def _activation_of(event: GateEvent, found: list[Activating]) -> Activating | None:
    """The activation whose very result is a factor of the product."""
    return next(
        (item for item in found if item.event is not None and aliases(item.event.output, event.activated)), None
    )
