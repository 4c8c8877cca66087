"""Module frames: which module of the watched model is running, under which path, called how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..schema import clean_name
from .expressions import AFFINE, Namer

_PADDING_ARGUMENTS = {"attention_mask": False, "key_padding_mask": True, "src_key_padding_mask": True}
"""Arguments that tell padding, and the value that marks it."""


@dataclass(eq=False)
class Frame:
    """One running call of a module."""

    module: nn.Module
    path: str
    inputs: tuple[Any, ...]
    arguments: Mapping[str, Any]
    pointwise: bool = False
    before: Tensor | None = None
    pending: list[Any] = field(default_factory=list)
    linears: int = 0  # linear maps inside so far
    hidden: int = 0  # how many of them came before a tensor of unseen origin
    found: bool = False  # whether a nonlinear place was found inside

    def padding(self, batch: int, length: int) -> tuple[bool, Tensor | None]:
        """Whether this call was told about padding, and (batch, length) bool, True where a query is padding."""
        for name, marks in _PADDING_ARGUMENTS.items():
            mask = self.arguments.get(name, self)
            if mask is None:
                return True, None
            if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
                mask = mask[:, mask.shape[1] - length :]
                return True, mask.bool() if marks else mask == 0
        return False, None


class Structure:
    """What is known of a model before it runs: its modules' paths, its pointwise modules, its repeated layers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.namer = Namer()
        self.paths: dict[int, list[str]] = {}
        self.modules: dict[int, nn.Module] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            path = clean_name(name.replace("_orig_mod.", "").removesuffix("_orig_mod"))
            self.paths.setdefault(id(module), []).append(path)
            self.modules[id(module)] = module
        self.layers = {id(entry) for entry in _repeated_layers(model)}
        self._named: dict[tuple[int, bool], str | None] = {}

    def pointwise_op(self, module: nn.Module) -> str | None:
        """The op of an elementwise module without parameters (or with scalar ones), None for every other module."""
        key = (id(module), module.training)
        if key not in self._named:
            self._named[key] = self._name(module)
        return self._named[key]

    def _name(self, module: nn.Module) -> str | None:
        if any(item.numel() != 1 for item in (*module.parameters(), *module.buffers())):
            return None
        function = bare_function(module)
        return self.namer.of_function(function) if self.namer.is_elementwise(function) else None

    def activation_modules(self) -> Iterator[tuple[str, str]]:
        """(path, op) of every nonlinear pointwise module, run or not."""
        for identity, module in self.modules.items():
            if next(module.children(), None) is None and not isinstance(module, nn.Identity):
                op = self.pointwise_op(module)
                if op is not None and op != AFFINE:
                    for path in self.paths[identity]:
                        yield path, op


def bare_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A stateless module's own forward, without hooks and on a shallow copy, so that calling it leaves no trace."""
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    return lambda x: type(module).forward(copy, x)


def _repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Entries of a ModuleList, or of a Sequential that repeats a class, that have parameters and parts of their own."""
    for container in model.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            entries = [item for item in container if next(item.children(), None) is not None]
            classes = Counter(type(item) for item in entries)
            for item in entries:
                listed = isinstance(container, nn.ModuleList) or classes[type(item)] > 1
                if listed and next(item.parameters(), None) is not None:
                    yield item


class Frames:
    """The stack of running modules, kept by forward hooks while a step is measured."""

    def __init__(
        self,
        structure: Structure,
        on_enter: Callable[[Frame], None],
        on_exit: Callable[[Frame, Any], None],
        on_recompute: Callable[[nn.Module, Any], None],
    ) -> None:
        self.structure = structure
        self.stack: list[Frame] = []
        self._on_enter, self._on_exit, self._on_recompute = on_enter, on_exit, on_recompute
        self._handles: list[RemovableHandle] = []

    @property
    def path(self) -> str:
        """The path of the running module; empty outside the model and in the model itself."""
        return self.running or ""

    @property
    def running(self) -> str | None:
        """The path of the running module; None outside the model."""
        return self.stack[-1].path if self.stack else None

    @property
    def in_pointwise(self) -> bool:
        return bool(self.stack) and self.stack[-1].pointwise

    def mark_found(self) -> None:
        """The running modules contain a nonlinear place."""
        for frame in self.stack:
            frame.found = True

    def install(self) -> None:
        for module in self.structure.modules.values():
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._exit, with_kwargs=True, always_call=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.stack.clear()

    def padding(self, batch: int, length: int) -> Tensor | None:
        """The padding of queries of this shape, as the nearest enclosing call was told it."""
        for frame in reversed(self.stack):
            told, padded = frame.padding(batch, length)
            if told:
                return padded
        return None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_quiet() or in_backward() or self.in_pointwise:
            return
        frame = Frame(module, self._path_of(module), args, kwargs)
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point():
            op = self.structure.pointwise_op(module)
            frame.pointwise = op is not None
        if frame.pointwise:
            frame.before = args[0].detach().clone() if getattr(module, "inplace", False) else args[0]
        self._on_enter(frame)
        self.stack.append(frame)

    def _exit(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_quiet():
            return
        if in_backward():
            self._on_recompute(module, output)
            return
        if self.stack and self.stack[-1].module is module:
            self._on_exit(self.stack.pop(), output)

    def _path_of(self, module: nn.Module) -> str:
        """The path under which the running parent holds this module; modules may be shared."""
        paths = self.structure.paths[id(module)]
        if len(paths) == 1 or not self.stack:
            return paths[0]
        parent = self.stack[-1].path
        below = [path for path in paths if not parent or path.startswith(parent + ".")]
        return (below or paths)[0]


def in_backward() -> bool:
    """Whether a backward pass is running: what is called then recomputes what was measured before."""
    return torch._C._current_graph_task_id() != -1


def is_quiet() -> bool:
    """Whether function modes are off, as they are while an instrument measures."""
    return not torch._C._is_torch_function_mode_enabled()
