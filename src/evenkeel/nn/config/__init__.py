"""What a transformer is made of, as data: one file per part."""

from .attention import AttentionConfig
from .feedforward import FeedForwardConfig
from .head import EmbeddingConfig, HeadConfig
from .norm import NormConfig
from .position import PositionConfig, RotaryScalingConfig
from .transformer import TransformerConfig

__all__ = [
    "AttentionConfig",
    "EmbeddingConfig",
    "FeedForwardConfig",
    "HeadConfig",
    "NormConfig",
    "PositionConfig",
    "RotaryScalingConfig",
    "TransformerConfig",
]
