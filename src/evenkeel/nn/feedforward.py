"""The position-wise feed-forward layer, plain or gated."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import ACTIVATIONS, gated


class FeedForward(nn.Module):
    """W2 f(W1 x), or gated W2 (f(W1 x) ⊗ W3 x), without biases.

    x and the result have shape (..., d_model), the hidden layer (..., d_ff), all in the dtype of the weights. `gate` is
    W1 of the gated form, `up` is W3 there and W1 of the plain form, `down` is W2. activation: a name in
    evenkeel.functional.ACTIVATIONS.
    Source: Vaswani et al. 2017; gated: Shazeer 2020, GLU Variants Improve Transformer.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: str, gated: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation].name
        self.gate = nn.Linear(d_model, d_ff, bias=False) if gated else None
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(ACTIVATIONS[self.activation].function(self.up(x)))
        return self.down(gated(self.gate(x), self.up(x), self.activation))
