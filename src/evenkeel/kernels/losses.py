"""Row passes of the losses over tiles of scores, in torch functions for every device; as in kernels/cpu/losses.py."""

from __future__ import annotations

import torch
from torch import Tensor


def _places(tile: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Each row's target as a column of the tile, and whether it is one."""
    places = (targets - first).clamp(0, tile.shape[1] - 1)
    return places.unsqueeze(1), places == targets - first


def gather(
    tile: Tensor,
    targets: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
    below: Tensor,
    picked: Tensor,
    *,
    first: int,
    temperature: float,
    smooth: bool,
) -> None:
    """Of columns [first, first + w): max, log Σe^((x − max)/T), Σ(x − max) where `smooth`, and x at a target there."""
    maxima.copy_(tile.amax(-1))
    shift = torch.where(maxima.isfinite(), maxima, 0).to(tile.dtype).unsqueeze(1)
    log_totals.copy_(torch.logsumexp((tile - shift) / temperature, -1))
    if smooth:
        below.copy_((tile - shift).sum(-1, dtype=below.dtype))
    places, inside = _places(tile, targets, first)
    picked.copy_(torch.where(inside, tile.gather(1, places).squeeze(1), picked))


def differentiate_tile(
    tile: Tensor,
    targets: Tensor,
    maxima: Tensor,
    log_totals: Tensor,
    weights: Tensor,
    *,
    first: int,
    vocabulary: int,
    temperature: float,
    smoothing: float,
    z_loss: float,
    inverse_cap: float,
) -> None:
    """Scores become weight·((1 + 2·z_loss·logsumexp)·p − (1 − smoothing)·[target] − smoothing/V)/T, times the cap's."""
    scales = weights / temperature
    slopes = torch.exp((tile - maxima.unsqueeze(1)) / temperature - log_totals.unsqueeze(1))
    slopes *= (scales * (1 + 2 * z_loss * (maxima / temperature + log_totals))).unsqueeze(1)
    slopes -= (scales * (smoothing / vocabulary)).unsqueeze(1)
    places, inside = _places(tile, targets, first)
    slopes.scatter_add_(1, places, torch.where(inside, (smoothing - 1) * scales, 0).to(slopes.dtype).unsqueeze(1))
    if inverse_cap:
        slopes *= 1 - (tile * inverse_cap).square()
    nothing = (weights == 0) | (maxima == -torch.inf)
    tile.copy_(torch.where(nothing.unsqueeze(1), 0, slopes))
