"""Where weights start: each from its own stream of random numbers, keyed by (seed, parameter name)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from .config import TransformerConfig

_PACKED, _PARTS = ".gate_up.", (".gate.", ".up.")


def first_deviations(config: TransformerConfig) -> dict[str, float]:
    """Standard deviations, by parameter name, of what a Transformer does not start from N(0, 1/fan_in)."""
    width, gain = config.d_model, config.attention.query_gain
    queries = {f"blocks.{layer}.attention.query.weight": gain * width**-0.5 for layer in range(config.depth)}
    return {
        "embedding.weight": width**-0.5 if config.head.tied else 1.0,
        "positions.weight": 0.0,
        "bias.weight": 0.0,
        **(queries if gain != 1 else {}),
    }


@torch.no_grad()
def initialise(model: nn.Module, seed: int, *, deviations: dict[str, float]) -> None:
    """Draw every matrix from N(0, 1/fan_in), so that products keep their input's variance; biases are 0, other vectors
    stay as they are.

    deviations: by parameter name, where another standard deviation is wanted. What two models of one seed have in
    common by name and shape starts the same in both, whatever the device, and packed matrices as those that are apart.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and name not in deviations:
            parameter.zero_()
        elif name in deviations or parameter.dim() >= 2:
            deviation = deviations[name] if name in deviations else parameter.shape[-1] ** -0.5
            parts = [name.replace(_PACKED, part) for part in _PARTS] if _PACKED in name else [name]
            for part, piece in zip(parts, parameter.chunk(len(parts)), strict=True):
                _draw(piece, deviation, _stream(seed, part))


def _draw(piece: Tensor, deviation: float, stream: torch.Generator) -> None:
    if deviation == 0:
        piece.zero_()
    elif not piece.is_meta:
        piece.copy_(torch.empty(piece.shape, dtype=piece.dtype, device="cpu").normal_(0.0, deviation, generator=stream))


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
