"""Hugging Face: `trainer.add_callback(WatchCallback(...))`, `model.generate(..., custom_generate=sampling(...))`."""

from __future__ import annotations

from ...errors import UsageError

try:
    from .generation import SamplerLogitsProcessor, sampling
    from .trainer import WatchCallback
except ImportError as error:
    raise UsageError(f"transformers cannot be imported ({error}); pip install 'evenkeel[hf]'") from error

__all__ = ["SamplerLogitsProcessor", "WatchCallback", "sampling"]
