"""Building a model without its weights: what is large or has no value yet goes to the meta device, the rest is real.

Tables that a model computes for itself (masks, frequencies, slopes) keep their values, so that what is made from them
can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...errors import ModelError

_LARGEST = 2**22  # entries; a causal mask over 2,048 tokens has as many
_MOST = 2**16  # tensors; 61 blocks of 256 separate experts have 47,000
_WITHOUT_VALUES = (torch.empty, torch.rand, torch.randn, torch.empty_strided, torch.normal)
_FILLED = (torch.zeros, torch.ones, torch.full)


class Sparingly(TorchFunctionMode):
    """In it, new tensors without values, and large ones, have no memory; a model of absurdly many is refused."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _WITHOUT_VALUES or (func in _FILLED and _entries(args, kwargs) > _LARGEST):
            kwargs["device"] = "meta"
            self._made += 1
            if self._made > _MOST:
                raise ModelError(
                    f"the config asks for more than {_MOST:,} tensors; check its numbers of layers and experts"
                )
        return func(*args, **kwargs)


def _entries(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many entries a call of `torch.zeros(2, 3)`, `torch.zeros((2, 3))` or `torch.full((2, 3), 0.0)` makes."""
    size = kwargs.get("size", args[0] if args and isinstance(args[0], tuple | list) else args)
    return math.prod(item for item in size if isinstance(item, int))
