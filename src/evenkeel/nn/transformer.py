"""A decoder-only transformer whose every choice is a field of its config."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError, UsageError
from ..schema import clean_name, in_one_line
from .attention import Attention
from .config import AttentionConfig, FeedForwardConfig, NormConfig, TransformerConfig
from .feedforward import FeedForward

__all__ = [
    "AttentionConfig",
    "Block",
    "FeedForwardConfig",
    "NormConfig",
    "Transformer",
    "TransformerConfig",
    "TransformerOutput",
]

MODEL_TYPE = "evenkeel"
"""What config.json says in `model_type`."""

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class TransformerOutput(NamedTuple):
    """logits: (batch, length, vocabulary). loss: mean next-token cross-entropy in nats, where labels were given."""

    logits: Tensor
    loss: Tensor | None


class Block(nn.Module):
    """Attention, then feed-forward, each behind its norm and around a residual branch where the config has one.

    Maps (batch, length, d_model) to the same shape and dtype.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        attention, feedforward, width = config.attention, config.feedforward, config.d_model
        self.residual = (attention.residual, feedforward.residual)
        self.attention_norm = _norm(config)
        self.attention = Attention(
            width, heads=attention.heads, scale=attention.score_scale(config.head_dim), context=config.context
        )
        self.feedforward_norm = _norm(config)
        self.feedforward = FeedForward(
            width, feedforward.hidden_size(width), activation=feedforward.activation, gated=feedforward.gated
        )

    def forward(self, x: Tensor) -> Tensor:
        around_attention, around_feedforward = self.residual
        mixed = self.attention(self.attention_norm(x))
        x = x + mixed if around_attention else mixed
        fed = self.feedforward(self.feedforward_norm(x))
        return x + fed if around_feedforward else fed


class Transformer(nn.Module):
    """A decoder: embedding, `depth` blocks, norm, and a head that is not tied to the embedding.

    Embeddings start from N(0, 1) and matrices from N(0, 1/fan_in), so that every product keeps its input's variance;
    norms start at 1. Each parameter draws from its own stream, keyed by (seed, parameter name): variants of one seed
    share what they have in common.
    """

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)
        _initialise(self, seed)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> TransformerOutput:
        """Logits for every position of `input_ids` (batch, length) int64, length at most `config.context`.

        labels: (batch, length), the tokens themselves; they are shifted here (position t is judged by label t + 1), and
        -100 counts in no loss. Raises UsageError for a sequence longer than the context.
        """
        length = input_ids.shape[-1]
        if length > self.config.context:
            raise UsageError(
                f"the sequence has {length} tokens and the model's context is {self.config.context}; cut the sequence "
                f"or make the model with context={length}"
            )
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if labels is None:
            return TransformerOutput(logits, None)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return TransformerOutput(logits, loss)

    def save(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into a directory, which is made where there is none."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {"model_type": MODEL_TYPE, **self.config.to_dict()}
        (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, directory / _WEIGHTS)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The model that `save` wrote. Raises ModelError for files that cannot be read, ConfigError for bad fields."""
        directory, name = Path(directory), repr(clean_name(str(directory)))
        try:
            config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
            weights = load_file(directory / _WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"{name} cannot be read ({in_one_line(error)}); save the model anew") from error
        if not isinstance(config, dict) or config.pop("model_type", None) != MODEL_TYPE:
            raise ModelError(
                f"{name} is not of model_type {MODEL_TYPE!r}; give a directory that Transformer.save wrote"
            )
        model = cls(TransformerConfig.from_dict(config))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"{_CONFIG} and {_WEIGHTS} in {name} do not fit ({in_one_line(error)}); save the model anew"
            ) from error
        return model


def _norm(config: TransformerConfig) -> nn.Module:
    if config.norm.placement == "none":
        return nn.Identity()
    return nn.RMSNorm(config.d_model, eps=config.norm.epsilon)


@torch.no_grad()
def _initialise(model: Transformer, seed: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        fan_in = 1 if parameter is model.embedding.weight else parameter.shape[1]
        parameter.normal_(0.0, fan_in**-0.5, generator=_stream(seed, name))


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
