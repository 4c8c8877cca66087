"""The softmax implementations that are tried where they are installed: torch's, ours, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional as F

Softmax = Callable[[Tensor], Tensor]
"""The weights of a row of float32 logits, (n,)."""


def _through_attention(attend: Callable[..., Tensor]) -> Softmax:
    """The weights that an attention gives: scores are the logits, values an identity matrix."""

    def weights(logits: Tensor) -> Tensor:
        count = logits.shape[-1]
        query, key = logits.new_ones(1, 1, 1, 1), logits.reshape(1, 1, count, 1)
        values = torch.eye(count, dtype=logits.dtype)[None, None]
        return attend(query, key, values, scale=1.0).reshape(count)

    return weights


def _on_arrays(softmax: Callable[[Any], Any]) -> Softmax:
    """A softmax of NumPy arrays or of what can be made of them."""
    return lambda logits: logits.new_tensor(np.array(softmax(logits.numpy())).tolist())


def _sklearn() -> Softmax:
    rows = import_module("sklearn.utils.extmath").softmax
    return _on_arrays(lambda logits: rows(logits[None])[0])


def _top_p_of_transformers() -> Softmax:
    """Its filter sums a softmax of its own; here it must keep 0.9 of the mass, and torch weighs what is left."""
    warper = import_module("transformers").TopPLogitsWarper(0.9)
    return lambda logits: torch.softmax(warper(None, logits[None])[0], -1)


def _onnxruntime() -> Softmax:
    runtime = import_module("onnxruntime")

    def softmax(logits: np.ndarray) -> Any:
        session = runtime.InferenceSession(_onnx_softmax(len(logits)), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": logits})[0]

    return _on_arrays(softmax)


def _onnx_softmax(count: int) -> bytes:
    """The ONNX file of one Softmax node on (count,) float32 numbers, by the numbers of its protocol buffers' fields."""

    def field(number: int, value: int | bytes) -> bytes:
        return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value

    shape = field(1, field(1, count))
    tensor = field(1, field(1, 1) + field(2, shape))
    node = field(1, b"x") + field(2, b"y") + field(4, b"Softmax")
    graph = field(1, node) + field(2, b"softmax")
    graph += b"".join(field(place, field(1, name) + field(2, tensor)) for place, name in ((11, b"x"), (12, b"y")))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


IMPLEMENTATIONS: dict[str, Callable[[], Softmax]] = {
    "torch": lambda: lambda logits: torch.softmax(logits, -1),
    "torch_log_softmax": lambda: lambda logits: torch.log_softmax(logits, -1).exp(),
    "torch_fused_attention": lambda: _through_attention(torch.nn.functional.scaled_dot_product_attention),
    "evenkeel": lambda: lambda logits: F.softmax(logits, dim=-1),
    "evenkeel_attention": lambda: _through_attention(F.attention),
    "evenkeel_sampler": lambda: F.distribution,
    "scipy": lambda: _on_arrays(import_module("scipy.special").softmax),
    "sklearn": _sklearn,
    "jax": lambda: _on_arrays(import_module("jax.nn").softmax),
    "onnxruntime": _onnxruntime,
    "transformers_top_p": _top_p_of_transformers,
}
"""By the name that their measurements have: each loads what it needs, or raises ImportError where that is missing."""
