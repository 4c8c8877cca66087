"""Layers of a transformer, and one transformer whose every choice is a field of a frozen config."""

from .attention import Attention
from .block import Block
from .caches import Cache
from .config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    RotaryScalingConfig,
    TransformerConfig,
)
from .feedforward import FeedForward
from .heads import Head
from .matching import Match, match_parameters
from .norms import LayerNorm, RMSNorm
from .positions import Alibi, RelativeBias, Rotary
from .recurrence import GRU, LSTM
from .transformer import Transformer, TransformerOutput

__all__ = [
    "GRU",
    "LSTM",
    "Alibi",
    "Attention",
    "AttentionConfig",
    "Block",
    "Cache",
    "EmbeddingConfig",
    "FeedForward",
    "FeedForwardConfig",
    "Head",
    "HeadConfig",
    "LayerNorm",
    "Match",
    "NormConfig",
    "PositionConfig",
    "RMSNorm",
    "RelativeBias",
    "Rotary",
    "RotaryScalingConfig",
    "Transformer",
    "TransformerConfig",
    "TransformerOutput",
    "match_parameters",
]
