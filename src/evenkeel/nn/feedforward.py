"""The position-wise feed-forward layer, plain or gated."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import ACTIVATIONS, gated
from .config import FeedForwardConfig
from .linear import Linear


class FeedForward(nn.Module):
    """W2 f(W1 x), or gated W2 (f(W1 x) ⊗ W3 x), with biases where the config has them.

    x and the result have shape (..., d_model), the hidden layer (..., d_ff), all in the dtype of the weights. `gate` is
    W1 of the gated form, `up` is W3 there and W1 of the plain form, `down` is W2; packed, `gate_up` is both, gate
    first. An activation of one's own: see evenkeel.functional.register_activation.
    Source: Vaswani et al. 2017; gated: Shazeer 2020, GLU Variants Improve Transformer.
    """

    def __init__(self, d_model: int, config: FeedForwardConfig | None = None) -> None:
        super().__init__()
        config = config or FeedForwardConfig()
        d_ff, bias = config.hidden_size(d_model), config.bias
        self.activation = ACTIVATIONS[config.activation].name
        if config.packed:
            self.gate_up = Linear(d_model, 2 * d_ff, bias=bias)
        else:
            self.gate_up = None
            self.gate = Linear(d_model, d_ff, bias=bias) if config.gated else None
            self.up = Linear(d_model, d_ff, bias=bias)
        self.down = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_up is not None:
            return self.down(gated(self.gate_up(x), activation=self.activation))
        if self.gate is None:
            return self.down(ACTIVATIONS[self.activation].function(self.up(x)))
        return self.down(gated(self.gate(x), self.up(x), self.activation))
