"""The output head: logits, and their loss without the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..functional import linear, linear_cross_entropy, sigmoid_cross_entropy
from .config import HeadConfig


class Head(nn.Module):
    """Logits W x + b, soft-capped where the config says so: c·tanh(logit/c).

    Maps x (..., d_model) to (..., vocabulary), in the dtype of the weights. With target (...,) int64: to the mean
    negative log-likelihood in nats, with the z-loss; -100 counts in none, and a softmax's logits are made a chunk at a
    time and never kept. A tied head has no weight of its own; it is given the embedding's at each call.
    Raises UsageError for a tied head without it.
    Source: Gemma 2 (softcap); Chowdhery et al. 2022, PaLM (z-loss).
    """

    def __init__(self, d_model: int, vocabulary: int, config: HeadConfig | None = None) -> None:
        super().__init__()
        self.config = config or HeadConfig()
        self.weight = None if self.config.tied else nn.Parameter(torch.empty(vocabulary, d_model))
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if self.config.bias else None
        if self.weight is not None:
            nn.init.normal_(self.weight, std=d_model**-0.5)

    def forward(self, x: Tensor, embedding: Tensor | None = None, target: Tensor | None = None) -> Tensor:
        matrix = self._matrix(embedding)
        if target is not None:
            return self._loss(x, matrix, target)
        return self._logits(x, matrix)

    def _logits(self, x: Tensor, matrix: Tensor) -> Tensor:
        logits = linear(x, matrix, self.bias)
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _loss(self, x: Tensor, matrix: Tensor, target: Tensor) -> Tensor:
        if self.config.kind == "sigmoid":
            return sigmoid_cross_entropy(self._logits(x, matrix), target)
        options = {"bias": self.bias, "softcap": self.config.softcap, "z_loss": self.config.z_loss}
        return linear_cross_entropy(x, matrix, target, **options)

    def log_odds(self, logits: Tensor) -> Tensor:
        """What a sampler takes: logits of a softmax over the vocabulary, which are log σ(x) for a sigmoid head."""
        return F.logsigmoid(logits) if self.config.kind == "sigmoid" else logits

    def _matrix(self, embedding: Tensor | None) -> Tensor:
        matrix = embedding if self.weight is None else self.weight
        if matrix is None:
            raise UsageError("a tied head has no weight of its own; give it the embedding's: head(x, embedding.weight)")
        return matrix
