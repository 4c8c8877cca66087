"""A linear map that is quick for single tokens."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import linear


class Linear(nn.Linear):
    """torch.nn.Linear, W x + b from (..., in_features) to (..., out_features); see evenkeel.functional.linear."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
