"""What a module's own code makes between its parts, and what each part adds to the gradient of what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from ..schema import Site
from .events import InputGradientEvent, OutputEvent
from .frames import Frame
from .trace import Trace

_MOST_NODES = 64  # of a module's graph that are looked through for its input


class Handed:
    """Follows what is handed to modules with parameters.

    What is no other module's output was made by the code of the module that calls: it becomes a site
    `path:module.inside` of its own, so that what goes wrong between modules has an address. Masks, which are infinite
    on purpose, are handed to modules without parameters.
    """

    def __init__(self, trace: Trace, hook: Callable[[Site, Tensor], None]) -> None:
        self._trace, self._hook = trace, hook

    def entered(self, frame: Frame) -> None:
        """A module is called; the frame is not yet on the stack."""
        stack = self._trace.frames.stack
        if stack:
            stack[-1].parts += 1
        given = frame.given
        if given is None or isinstance(given, nn.Parameter) or not frame.has_parameters:
            return
        if self._trace.tags.first_sight(given):
            path, op = (stack[-1].path, "inside") if stack else ("", "input")
            site = self._trace.site("module", op, path)
            self._trace.emit(site, OutputEvent(output=given.detach()))
            self._hook(site, given)

    def left(self, frame: Frame, output: Tensor) -> Iterator[RemovableHandle]:
        """A module returns: hooks on what it adds to its input's gradient, or, where it has parts, on all of that."""
        given = frame.given
        if given is None or given.grad_fn is None or not frame.has_parameters:
            return
        site = self._trace.site("module", type(frame.module).__name__, frame.path, numbered=False)
        if frame.parts:
            yield before_others(given, lambda gradient: self._see(site, gradient))
            return
        for node, place in _edges(output.grad_fn, given):
            yield node.register_hook(lambda inputs, _, place=place: self._see(site, inputs[place]))

    def _see(self, site: Site, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._trace.emit(site, InputGradientEvent(gradient=gradient.detach()))


def before_others(tensor: Tensor, see: Callable[[Tensor | None], None]) -> RemovableHandle:
    """A hook on a tensor's gradient that comes before those of the model's own, which may change it."""
    handle = tensor.register_hook(see)
    hooks = tensor._backward_hooks or {}
    for key in list(hooks)[:-1]:
        hooks[key] = hooks.pop(key)
    return handle


def _edges(node: Node | None, given: Tensor) -> Iterator[tuple[Node, int]]:
    """The nodes of a module's graph that lead into its input, and at which place they do."""
    waiting, seen = [node], {node}
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop()
        for place, (following, number) in enumerate(node.next_functions if node is not None else ()):
            if following is given.grad_fn:
                if number == given.output_nr:
                    yield node, place  # type: ignore[misc]
            elif following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
