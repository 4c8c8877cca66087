"""Where weights start: each from its own stream of random numbers, keyed by (seed, parameter name)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialise(model: nn.Module, seed: int, *, deviations: dict[str, float]) -> None:
    """Draw every matrix from N(0, 1/fan_in), so that products keep their input's variance; vectors stay as they are.

    deviations: by parameter name, where another standard deviation is wanted. What two models of one seed have in
    common by name and shape starts the same in both.
    """
    for name, parameter in model.named_parameters():
        if name in deviations or parameter.dim() >= 2:
            deviation = deviations.get(name, parameter.shape[-1] ** -0.5)
            parameter.copy_(_drawn(parameter, deviation, _stream(seed, name)))


def _drawn(parameter: Tensor, deviation: float, stream: torch.Generator) -> Tensor:
    """The same numbers whatever the device."""
    if parameter.is_meta or not deviation:
        return torch.zeros_like(parameter)
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").normal_(0.0, deviation, generator=stream)


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
