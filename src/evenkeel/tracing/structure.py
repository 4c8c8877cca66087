"""What is known of a model before it runs: its modules' paths, its pointwise modules, its repeated layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ..schema import clean_name
from .expressions import AFFINE, Namer


class Structure:
    """A model as its modules tell it, read once and used for every measured step."""

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
        function = bare_function(module, apart=True)
        return self.namer.of_function(function) if self.namer.is_elementwise(function) else None

    def activation_modules(self) -> Iterator[tuple[str, str]]:
        """(path, op) of every nonlinear pointwise module, run or not."""
        for identity, module in self.modules.items():
            if next(module.children(), None) is None and not isinstance(module, nn.Identity):
                op = self.pointwise_op(module)
                if op is not None and op != AFFINE:
                    for path in self.paths[identity]:
                        yield path, op


def bare_function(module: nn.Module, *, apart: bool = False) -> Callable[[Tensor], Tensor]:
    """A module's own forward, without hooks and on a shallow copy with buffers of its own: calling it leaves no trace.

    apart: on the CPU, whatever device the module is on.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    buffers = {name: None if item is None else item.clone() for name, item in module._buffers.items()}
    copy.__dict__["_buffers"] = buffers
    if apart:
        for part in ("_buffers", "_parameters"):
            held = copy.__dict__[part].items()
            copy.__dict__[part] = {name: None if item is None else item.detach().cpu().clone() for name, item in held}
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
