"""A user's own activation, written `my.py:function`: read from its file, tried, and known by name and content."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...catalogue import near_miss
from ...errors import ConfigError
from ...functional import ACTIVATIONS, register_activation
from ...schema import clean_name, in_one_line

_DIGITS = 8  # of the digest, in hexadecimal
_FARTHEST = 8  # where the grid ends: even e^x and x³ are of moderate size there
_GRID = (5, 13)  # its shape: odd by odd, so that 0 is on it
_PART = slice(20, 50)  # of its elements: of another mean and another maximum than all
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # relative; kernels may differ by a few units from shape to shape


@dataclass(frozen=True)
class OwnActivation:
    """A function in a file. digest: of the file's content when the study was written, "" where nothing is asked of it.

    Written `path:function`, with a digest `path:function@digest`.
    """

    path: str
    function: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.function}{'@' if self.digest else ''}{self.digest}"

    @classmethod
    def parse(cls, reference: str) -> OwnActivation:
        """Read what `str` wrote; raises ConfigError for what names no function."""
        path, _, function = reference.rpartition(":")
        function, _, digest = function.partition("@")
        if not (path and function.isidentifier()):
            raise ConfigError(
                f"{clean_name(reference)!r} names no function of a file; write my.py:function, as in my.py:softsign"
            )
        return cls(path, function, digest)

    def within(self, folder: Path) -> OwnActivation:
        """The same with a path that is relative to a folder seen from here."""
        return replace(self, path=str(folder / self.path))

    def pinned(self) -> OwnActivation:
        """The same with the digest of the file as it is now."""
        return replace(self, digest=self.digest or _digest(_content(self)))

    def register(self) -> str:
        """The name under which the function is in ACTIVATIONS from now on; the same for a file of the same content.

        Raises ConfigError for a file that is missing, fails or has changed since the study was written, and for a
        function that is no activation.
        """
        content = _content(self)
        digest = _digest(content)
        if self.digest not in ("", digest):
            raise ConfigError(
                f"{clean_name(self.path)} has the digest {digest} and the study was written when it had {self.digest}; "
                "restore the file, or begin a new study with it"
            )
        name = f"{self.function}_{digest}"
        if name not in ACTIVATIONS:
            function = _function(self, content, digest)
            _check(function, f"{clean_name(self.path)}:{self.function}")
            register_activation(name, function)
        return name


def is_own(value: Any) -> bool:
    """Whether a value of an axis names a function of a file rather than an activation of the catalogue."""
    return isinstance(value, str) and ":" in value


def _content(own: OwnActivation) -> bytes:
    try:
        return Path(own.path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no valid file name"
        raise ConfigError(
            f"{clean_name(own.path)} cannot be read ({reason}); give the Python file that holds {own.function}"
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _function(own: OwnActivation, content: bytes, digest: str) -> Callable[[Tensor], Any]:
    """The function of a module made of the content itself, so that what runs is what the digest is of."""
    module = ModuleType(f"{Path(own.path).stem}_{digest}")
    module.__file__ = own.path
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(content, own.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ConfigError(f"{clean_name(own.path)} cannot be run ({in_one_line(error)}); mend the file") from error
    function = vars(module).get(own.function)
    if not callable(function):
        here = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ConfigError(f"{clean_name(own.path)} has no function {own.function}; {near_miss(own.function, here)}")
    return function


def _check(function: Callable[[Tensor], Any], name: str) -> None:
    """Raises ConfigError for a function that is no differentiable map of each element by itself."""
    for dtype, close in _CLOSE.items():
        grid = torch.linspace(-_FARTHEST, _FARTHEST, math.prod(_GRID)).to(dtype).view(_GRID).requires_grad_()
        with torch.enable_grad():
            value = _called(function, grid, name)
        _check_value(value, grid, name)
        expected = value.flatten()[_PART]
        part = _called(function, grid.detach().flatten()[_PART], name)
        if part.shape != expected.shape or not torch.allclose(part, expected, rtol=close, atol=close):
            raise ConfigError(
                f"{name} gives other values for a part of a tensor than for the whole; map each element by itself, the "
                "same way every time"
            )
        _check_slope(value, grid, name)


def _check_value(value: Any, grid: Tensor, name: str) -> None:
    if not isinstance(value, Tensor) or value.shape != grid.shape or value.dtype != grid.dtype:
        given = f"{tuple(value.shape)} in {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"{name} gave {given} for a tensor of {tuple(grid.shape)} in {grid.dtype}; return one of the same shape "
            "and dtype"
        )
    _check_finite(value, grid, name)


def _check_slope(value: Tensor, grid: Tensor, name: str) -> None:
    if not value.requires_grad:
        raise ConfigError(f"{name} gives no gradient; compute with torch alone, without .detach(), .item() or NumPy")
    (slope,) = torch.autograd.grad(value.sum(), grid, materialize_grads=True)
    _check_finite(slope, grid, f"the slope of {name}")
    if not slope.any():
        raise ConfigError(
            f"{name} has the slope 0 from -{_FARTHEST} to {_FARTHEST}, so nothing would learn; give it one"
        )


def _check_finite(values: Tensor, grid: Tensor, what: str) -> None:
    wrong = ~torch.isfinite(values)
    if wrong.any():
        found, where = (items[wrong].flatten()[0].item() for items in (values, grid))
        raise ConfigError(
            f"{what} is {found} at {where:g} in {grid.dtype}; make it finite from -{_FARTHEST} to {_FARTHEST}"
        )


def _called(function: Callable[[Tensor], Any], x: Tensor, name: str) -> Any:
    try:
        return function(x)
    except Exception as error:  # it may do anything
        raise ConfigError(
            f"{name} fails on a tensor of {tuple(x.shape)} in {x.dtype} ({in_one_line(error)}); mend it"
        ) from error
