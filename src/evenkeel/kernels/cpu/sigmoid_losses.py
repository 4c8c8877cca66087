"""Row passes of the loss of independent sigmoids, computed in float64 and rounded once."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ._compile import inline, narrow, widen
from ._spread import spread
from ._threads import divided_rows
from .activations import sigmoid, softplus

_F = np.float32


@inline(flags={"reassoc", "nsz"})
def _softplus_total(row, inverse):
    total = 0.0
    for i in range(row.size):
        total += softplus(np.float64(widen(row[i])) * inverse)
    return total


@spread
def _sigmoid_losses(start, stop, logits, targets, losses, temperature):
    for r in range(start, stop):
        total = _softplus_total(logits[r], 1 / temperature)
        losses[r] = _F(total - np.float64(widen(logits[r, targets[r]])) / temperature)


@inline
def _write_sigmoid_slopes(row, out, inverse, factor):
    for i in range(row.size):
        out[i] = narrow(_F(sigmoid(np.float64(widen(row[i])) * inverse) * factor), out)


@spread
def _sigmoid_slopes(start, stop, logits, targets, weights, out, temperature):
    inverse = 1 / temperature
    for r in range(start, stop):
        if weights[r] == 0:
            out[r, :] = narrow(_F(0), out)
            continue
        factor = weights[r] / temperature
        _write_sigmoid_slopes(logits[r], out[r], inverse, factor)
        x = np.float64(widen(logits[r, targets[r]])) * inverse
        out[r, targets[r]] = narrow(_F(-sigmoid(-x) * factor), out)


def losses(logits: Tensor, targets: Tensor, out: Tensor, *, temperature: float) -> None:
    """Σ_j log(1 + e^(x_j/T)) − x_target/T."""
    _sigmoid_losses(divided_rows(logits), logits, targets, out, temperature)


def differentiate(logits: Tensor, targets: Tensor, weights: Tensor, out: Tensor, *, temperature: float) -> None:
    """weight·(σ(x/T) − [target])/T into `out`."""
    _sigmoid_slopes(divided_rows(logits), logits, targets, weights, out, temperature)
