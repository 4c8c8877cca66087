"""Choices at both ends: the embedding of tokens and the output head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from ._checks import above_zero, of_its_types, one_of

HeadKind = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The embedding of tokens; scale: what it is multiplied by, "sqrt" for √d_model."""

    scale: Literal["sqrt"] | float = 1.0

    def __post_init__(self) -> None:
        of_its_types(self, "embedding.")
        if isinstance(self.scale, str):
            one_of("embedding.scale", self.scale, ("sqrt",))
        else:
            above_zero("embedding.scale", self.scale, 1)

    def factor(self, d_model: int) -> float:
        """The number that the scale stands for."""
        return math.sqrt(d_model) if isinstance(self.scale, str) else float(self.scale)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The output head: logits W x + b, and their loss.

    kind: "softmax" over the vocabulary, or a "sigmoid" of each logit by itself. tied: W is the embedding's. softcap: c
    in c·tanh(logit/c). z_loss: what log²Z is multiplied by where it is added to the loss. bias: whether there is b.
    Source: Gemma 2 (softcap); Chowdhery et al. 2022, PaLM (z-loss).
    """

    kind: HeadKind = "softmax"
    tied: bool = False
    softcap: float | None = None
    z_loss: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        of_its_types(self, "head.")
        one_of("head.kind", self.kind, get_args(HeadKind))
        above_zero("head.softcap", self.softcap, 30)
        if not (math.isfinite(self.z_loss) and self.z_loss >= 0):
            raise ConfigError(f"head.z_loss is {self.z_loss} and must be 0 or above and finite, for instance 1e-4")
        if self.z_loss and self.kind == "sigmoid":
            raise ConfigError(
                f"head.z_loss is {self.z_loss} and head.kind 'sigmoid', which has no sum Z to hold; set z_loss=0"
            )

    def parameters(self, vocabulary: int, d_model: int) -> int:
        """How many parameters it has beside the embedding's."""
        return (not self.tied) * vocabulary * d_model + self.bias * vocabulary
