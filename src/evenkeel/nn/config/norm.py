"""Choices of the norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from ._checks import above_zero, of_its_types, one_of

Placement = Literal["pre", "post", "sandwich", "none"]
NormKind = Literal["rms", "layer"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Norms of the residual stream.

    kind: "rms" x/√(mean x² + ε)·w, or "layer" (x − mean)/√(var + ε)·w + b. placement: "pre" before attention,
    feed-forward and head; "post" behind each sum of branch and input; "sandwich" before and behind each branch, and
    before the head; "none". bias: whether a layer norm has b. offset: whether the weight is kept less 1, as in Gemma.
    """

    kind: NormKind = "rms"
    placement: Placement = "pre"
    epsilon: float = 1e-6
    bias: bool = False
    offset: bool = False

    def __post_init__(self) -> None:
        of_its_types(self, "norm.")
        one_of("norm.kind", self.kind, get_args(NormKind))
        one_of("norm.placement", self.placement, get_args(Placement))
        above_zero("norm.epsilon", self.epsilon, 1e-6)
        if self.bias and self.kind == "rms":
            raise ConfigError(
                "norm.bias is True and norm.kind 'rms', which has none; set norm.kind='layer' or bias=False"
            )

    @property
    def per_block(self) -> int:
        """How many norms of the residual stream a block has."""
        return {"pre": 2, "post": 2, "sandwich": 4, "none": 0}[self.placement]

    @property
    def before_head(self) -> bool:
        """Whether a norm stands before the head."""
        return self.placement in ("pre", "sandwich")

    def parameters(self, size: int) -> int:
        """How many parameters one norm of this size has."""
        return size * (1 + self.bias)
