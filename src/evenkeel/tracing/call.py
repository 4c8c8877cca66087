"""One intercepted call of a torch function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Call:
    """A function, its plain name, whether it writes into its first argument, and its arguments; it runs once."""

    func: Callable[..., Any]
    name: str
    in_place: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    started: bool = False
    finished: bool = False
    result: Any = None

    def run(self) -> Any:
        """What the function returns."""
        self.started = True
        self.result = self.func(*self.args, **self.kwargs)
        self.finished = True
        return self.result

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors given by position."""
        return [item for item in self.args if isinstance(item, Tensor)]

    @property
    def source(self) -> Tensor | None:
        """The tensor that the function is about: the first argument, or `input`."""
        first = self.argument(0, "input")
        return first if isinstance(first, Tensor) else None
