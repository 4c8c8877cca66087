"""Keys and values of the tokens before, kept while a text is continued."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from .config import TransformerConfig


class Cache:
    """Keys and values of all layers, (batch, key_heads, capacity, head_dim) each, written in place.

    No gradient passes through it.
    """

    def __init__(
        self, config: TransformerConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, config.attention.groups, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        self._visible: Tensor | None = None
        keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in range(config.depth)] for _ in range(2))
        self._layers = list(zip(keys, values, strict=True))

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (batch, key_heads, new, head_dim) behind those so far; return all of them."""
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise UsageError(f"the cache has room for {self.capacity} tokens and {end} are needed; make a larger one")
        keys, values = self._layers[layer]
        if key.shape[0] != keys.shape[0]:
            raise UsageError(
                f"the cache is of {keys.shape[0]} rows and {key.shape[0]} came; make one with batch={key.shape[0]}"
            )
        keys.narrow(2, self.length, key.shape[2]).copy_(key.detach())
        values.narrow(2, self.length, value.shape[2]).copy_(value.detach())
        return keys.narrow(2, 0, end).to(key.dtype), values.narrow(2, 0, end).to(value.dtype)  # autocast has another

    def see(self, new: Tensor | None, start: int, end: int, input_ids: Tensor) -> Tensor | None:
        """Which of all tokens up to `end` are no padding, (batch, end) bool, once those from `start` on have come.

        new: of these, (batch, end − start); None where none is padding. None where there was never any.
        """
        if new is None and self._visible is None:
            return None
        new = torch.ones_like(input_ids, dtype=torch.bool) if new is None else new
        before = new.new_ones(len(new), start) if self._visible is None else self._visible
        self._visible = torch.cat([before, new], dim=1)
        return self._visible

    def advance(self, count: int) -> None:
        """All layers have written so many tokens."""
        self.length += count
