"""The dtype to compute in: float64 for float64, float32 for everything narrower; and what sums are kept in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def summing_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over a vocabulary are kept in: float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def widened(tensor: Tensor) -> Tensor:
    """In the dtype to compute in."""
    return tensor.to(computing_dtype(tensor))


def widened_through(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), computed in the dtype to compute in and rounded at the end."""
    return function(*(widened(tensor) for tensor in tensors)).to(tensors[0].dtype)
