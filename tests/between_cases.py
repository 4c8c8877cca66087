"""Calls of what stands between the nonlinear parts, what they give in float64, and which kernels they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from nn_cases import normal
from torch import Tensor

from evenkeel.functional import linear, rms_norm, rotate
from evenkeel.kernels.cpu import between

UNIT = {torch.float64: 2**-52, torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = tuple(UNIT)


def noted(called: list[str], name: str, own: Callable[..., None]) -> Callable[..., None]:
    """The function, which notes its name at each call."""

    def call(*arguments: Any) -> None:
        called.append(name)
        own(*arguments)

    return call


@contextmanager
def counted() -> Iterator[list[str]]:
    """Names of the kernels that are called meanwhile."""
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("products", "rms_norms", "rotations"):
            patch.setattr(between, name, noted(called, name, getattr(between, name)))
        yield called


def close(found: Tensor, exact: Tensor, size: Tensor | float, dtype: torch.dtype) -> None:
    """Within a rounding of the result and one of float32 (or float64) for each of its terms' size."""
    assert found.dtype == dtype
    sums = 16 * (2**-53 if dtype == torch.float64 else 2**-24)
    smallest = 2**-24 if dtype == torch.float16 else 1e-30
    bound = UNIT[dtype] * exact.abs() + sums * torch.as_tensor(size, dtype=torch.float64) + smallest
    assert found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= bound).all()), (found.double() - exact).abs().max()


def calls(dtype: torch.dtype = torch.float32) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """A call of each that its kernel takes where nothing speaks against it."""
    angles = normal(1, 2, 3, seed=3)
    return {
        "linear": (linear, [normal(1, 12).to(dtype), normal(7, 12, seed=1).to(dtype), normal(7, seed=2).to(dtype)]),
        "rms_norm": (rms_norm, [normal(2, 12).to(dtype), normal(12, seed=1).to(dtype)]),
        "rotate": (rotate, [normal(2, 2, 3, 8).to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)]),
    }


NAMES = list(calls())


def exactly(name: str, given: list[Tensor]) -> Tensor:
    """What a call gives by definition, in float64."""
    x, *rest = (item.double() for item in given)
    if name == "linear":
        return x @ rest[0].T + rest[1]
    if name == "rms_norm":
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * rest[0]
    cosine, sine = rest[0][:, :, None], rest[1][:, :, None]
    half = cosine.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, x[..., 2 * half :]], dim=-1)
