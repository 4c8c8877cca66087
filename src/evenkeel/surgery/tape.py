"""A run of a model written down call by call, so that a place which tracing found can be found again in later runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..tracing.functions import FunctionNames
from ..tracing.provenance import tensors_in


@dataclass(eq=False, slots=True)
class Frame:
    """One call of a module by another one, before call `index`: the first tensor it was given, and what it gave."""

    index: int
    module: nn.Module
    caller: Frame | None
    given: Tensor | None
    gave: Any = None


@dataclass(eq=False, slots=True)
class Entry:
    """One call of a torch function: its arguments, its result, and the modules it ran in, the innermost last."""

    index: int
    func: Callable[..., Any]
    name: str
    in_place: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    frames: tuple[Frame, ...]
    own_backward: bool  # whether it was made in an autograd.Function, whose gradients do not follow from its calls
    result: Any = None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Tape(TorchFunctionMode):
    """Writes down every call that the model makes inside the context, and keeps all tensors alive.

    To be entered behind a Tracer, so that it sees the model's own calls and none of the Tracer's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.frames: list[Frame] = []
        self._model = model
        self._names = FunctionNames()
        self._running: list[Frame] = []
        self._handles: list[RemovableHandle] = []
        self._made: dict[int, list[Entry]] = {}

    def __enter__(self) -> Tape:
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._entered, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._left, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        place = tuple(self._running), _in_autograd_function()
        entry = Entry(len(self.entries), func, *self._names(func), args, kwargs, *place)
        self.entries.append(entry)
        entry.result = func(*args, **kwargs)
        for tensor in tensors_in(entry.result):
            self._made.setdefault(id(tensor), []).append(entry)
        return entry.result

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caller = self._running[-1] if self._running else None
        frame = Frame(len(self.entries), module, caller, next(iter(tensors_in([args, kwargs])), None))
        self._running.append(frame)
        self.frames.append(frame)

    def _left(self, module: nn.Module, _: Any, output: Any) -> None:
        if self._running and self._running[-1].module is module:
            self._running.pop().gave = output

    def maker(self, tensor: Tensor, before: Entry) -> Entry | None:
        """The call that made a tensor, or wrote into it last, before another call used it."""
        made = [entry for entry in self._made.get(id(tensor), ()) if entry.index < before.index]
        return made[-1] if made else None

    def within(self, frame: Frame) -> Iterator[Entry]:
        """The calls made while a module ran, those of its parts among them."""
        return (entry for entry in self.entries if frame in entry.frames)

    def calls_of(self, module: nn.Module) -> list[Frame]:
        """The frames of a module, one for each time it ran."""
        return [frame for frame in self.frames if frame.module is module]


def _in_autograd_function() -> bool:
    """Whether an autograd.Function is running that is not one of activation checkpointing."""
    if torch.is_grad_enabled():
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _APPLY and not _recomputes(frame.f_locals.get("cls")):
            return True
        frame = frame.f_back
    return False


def _recomputes(function: Any) -> bool:
    return getattr(function, "__module__", "").startswith("torch.utils.checkpoint")


_APPLY = torch.autograd.Function.apply.__func__.__code__
