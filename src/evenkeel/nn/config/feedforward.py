"""Choices of the feed-forward layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import ConfigError
from ...functional import ACTIVATIONS
from ._checks import at_least, of_its_types, one_of


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Position-wise feed-forward layer.

    activation: a name in evenkeel.functional.ACTIVATIONS, one's own among them (register_activation). gated: three
    matrices, W2(f(W1 x) ⊗ W3 x), instead of two, W2 f(W1 x). d_ff: hidden size; None means 4·d_model, or (8/3)·d_model
    when gated, which has as many parameters, rounded up to `multiple`. bias: of every matrix. packed: W1 and W3 of the
    gated form in one matrix. residual: whether the input is added to the output.
    """

    activation: str = "silu"
    gated: bool = True
    d_ff: int | None = None
    multiple: int = 1
    bias: bool = False
    packed: bool = False
    residual: bool = True

    def __post_init__(self) -> None:
        of_its_types(self, "feedforward.")
        one_of("feedforward.activation", self.activation, ACTIVATIONS)
        at_least("feedforward.d_ff", self.d_ff, 1)
        at_least("feedforward.multiple", self.multiple, 1)
        if self.packed and not self.gated:
            raise ConfigError(
                "feedforward.packed is True and feedforward.gated False, so there is no second matrix to pack; "
                "set packed=False or gated=True"
            )

    def hidden_size(self, d_model: int) -> int:
        """d_ff, worked out from d_model where it is None."""
        if self.d_ff is not None:
            return self.d_ff
        wanted = d_model * 8 / 3 if self.gated else 4 * d_model
        return self.multiple * math.ceil(wanted / self.multiple)

    def matrix_sizes(self, d_model: int) -> int:
        """How many weights stand in its matrices."""
        return (3 if self.gated else 2) * d_model * self.hidden_size(d_model)

    def parameters(self, d_model: int) -> int:
        """How many parameters one layer has."""
        biases = self.bias * ((2 if self.gated else 1) * self.hidden_size(d_model) + d_model)
        return self.matrix_sizes(d_model) + biases
