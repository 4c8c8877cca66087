"""The hooks that tell which module runs; they exist only while a step is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.utils.hooks import RemovableHandle

from .frames import Frame, FrameStack
from .structure import Structure


class ModuleHooks:
    """Forward hooks on every module that keep the frame stack while a step is measured."""

    def __init__(
        self,
        structure: Structure,
        frames: FrameStack,
        on_enter: Callable[[Frame], None],
        on_exit: Callable[[Frame, Any], None],
        on_recompute: Callable[[nn.Module, Any], None],
    ) -> None:
        self._structure, self._frames = structure, frames
        self._on_enter, self._on_exit, self._on_recompute = on_enter, on_exit, on_recompute
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """From now on calls are seen."""
        for module in self._structure.modules.values():
            self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._exit, with_kwargs=True, always_call=True))

    def __deepcopy__(self, _: dict[int, Any]) -> ModuleHooks:
        """A model that is copied while it is measured (an average of weights) does not copy its measuring."""
        return self

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_quiet() or in_backward() or self._frames.in_pointwise or id(module) not in self._structure.modules:
            return
        frame = Frame(module, self._path_of(module), args, kwargs)
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point():
            op = self._structure.pointwise_op(module)
            frame.pointwise = op is not None
        if frame.pointwise:
            frame.before = args[0].detach().clone() if getattr(module, "inplace", False) else args[0]
        with torch._C.DisableTorchFunction():  # the function mode sees the model's calls and none of ours
            self._on_enter(frame)
        self._frames.stack.append(frame)

    def _exit(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_quiet():
            return
        if in_backward():
            if id(module) in self._structure.modules:
                with torch._C.DisableTorchFunction():
                    self._on_recompute(module, output)
            return
        if self._frames.stack and self._frames.stack[-1].module is module:
            with torch._C.DisableTorchFunction():
                self._on_exit(self._frames.stack.pop(), output)

    def _path_of(self, module: nn.Module) -> str:
        """The path under which the running parent holds this module; modules may be shared."""
        paths = self._structure.paths[id(module)]
        if len(paths) == 1 or not self._frames.stack:
            return paths[0]
        parent = self._frames.stack[-1].path
        below = [path for path in paths if not parent or path.startswith(parent + ".")]
        return (below or paths)[0]


def in_backward() -> bool:
    """Whether a backward pass is running: what is called then recomputes what was measured before."""
    return torch._C._current_graph_task_id() != -1


def is_quiet() -> bool:
    """Whether nothing is to be seen: function modes are off while an instrument measures."""
    return not torch._C._is_torch_function_mode_enabled() or in_transform()


def in_transform() -> bool:
    """Whether a function transform (vmap, grad) is running: its wrapped tensors have no values to measure."""
    return maybe_current_level() is not None
