"""How much memory measuring a model takes, estimated from the shapes of its weights, and how much there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..directories import Directory, Weight
from ..errors import ModelError
from ..precision import FORMATS
from .inputs import LONGEST_ROW

_FLOAT32 = 4
_LOGIT_COPIES = 4  # in float32: the loss's own copy, its log-softmax, its gradient, and what the readings hold
_SCORE_COPIES = 8  # in float32, one layer's at a time: what reading attention scores and their softmax holds
_CONTROL_GROUPS = (  # version 2, then version 1: folder, limit, use, and in memory.stat the cached files
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_FEWEST_TOKENS = 16


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: `fixed` for parameters and their gradients, `per_token` for each token of the largest batch."""

    fixed: int
    per_token: int

    def total(self, tokens: int) -> int:
        return self.fixed + tokens * self.per_token

    def tokens_in(self, available: int) -> int:
        """How many tokens of a batch fit into so many bytes."""
        return max((available - self.fixed) // max(self.per_token, 1), 0)


def estimate_memory(
    directory: Directory, *, dtype: str | None = None, backward: bool = True, length: int = LONGEST_ROW
) -> MemoryNeed:
    """What measuring takes, from the config and the shapes in the checkpoint alone; rows have `length` tokens.

    A weight of shape (out, in, ...) makes `out` values per token and keeps its `in` inputs for the backward pass; a
    vector is a norm or a bias and makes one value per channel. Without a backward pass only the widest layer's values
    are held. Weights with a row per token of the vocabulary are the embedding, a look-up, and the head, whose logits
    are held in float32. Of stacked or numbered experts those count that one token goes through. On GPT-2, LLaMA,
    Mixtral, T5 and BERT models this was within 25% of the memory that measuring took; eager attention takes more.
    """
    size = FORMATS[dtype or directory.dtype].bytes
    config = directory.config
    vocabulary = _size(config, "vocab_size", "vocabulary")
    parameters = sum(weight.elements for weight in directory.weights.values())
    share = _active_share(config)
    per_layer = [
        _values_per_token(weight) * (share if "experts" in name else 1.0)
        for name, weight in directory.weights.items()
        if weight.shape[:1] != (vocabulary,)
    ]
    logits = vocabulary if _has_logits(config) else 0
    kept = sum(per_layer) if backward else 0
    widest = max(per_layer, default=0)
    scores = _size(config, "num_attention_heads", "n_head", "num_heads") * length
    in_float32 = _LOGIT_COPIES * (widest + logits) + _SCORE_COPIES * scores
    return MemoryNeed(
        fixed=parameters * size * (2 if backward else 1),
        per_token=int((kept + logits) * size + in_float32 * _FLOAT32),
    )


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that can still be had on a device: of the machine's and the control group's limit the smaller; or None."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if device != "cpu":
        return None
    found = [value for value in (_machine_available(), _group_available()) if value is not None]
    return min(found, default=None)


def check_memory(
    directory: Directory, available: int | None, *, tokens: int, dtype: str | None = None, backward: bool = True
) -> None:
    """Raise ModelError where `tokens` in a batch need more bytes than are available; it says what would fit."""
    need = estimate_memory(directory, dtype=dtype, backward=backward)
    if available is None or need.total(tokens) <= available:
        return
    forward = estimate_memory(directory, dtype=dtype, backward=False)
    remedies = []
    if need.tokens_in(available) >= _FEWEST_TOKENS:
        remedies.append(f"--tokens {need.tokens_in(available)}")
    if backward and forward.total(tokens) <= available:
        remedies.append("--no-backward")
    elif backward and not remedies and forward.tokens_in(available) >= _FEWEST_TOKENS:
        remedies.append(f"--no-backward --tokens {forward.tokens_in(available)}")
    raise ModelError(
        f"running {directory.name} needs about {_readable(need.total(tokens))} and {_readable(available)} are free; "
        f"try {' or '.join(remedies) or 'a machine with more memory, or --dtype bfloat16'}"
    )


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _has_logits(config: dict[str, Any]) -> bool:
    """Whether the named class is more than a bare `...Model`, or none is named."""
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    return not names or any(not name.endswith("Model") or name.endswith("HeadModel") for name in names)


def _size(config: dict[str, Any], *names: str) -> int:
    """A whole number that goes by one of several names in a config or in its text part; 0 where there is none."""
    text = config.get("text_config")
    parts = [config, text if isinstance(text, dict) else {}]
    return next((part[name] for part in parts for name in names if isinstance(part.get(name), int)), 0)


def _values_per_token(weight: Weight) -> int:
    """Inputs kept and outputs made by one weight for one token; three dimensions are a stack of matrices."""
    if len(weight.shape) < 2:
        return weight.elements
    if len(weight.shape) == 3:
        stacked, rows, columns = weight.shape
        return stacked * (rows + columns)
    return weight.shape[0] + weight.elements // max(weight.shape[0], 1)


def _active_share(config: dict[str, Any]) -> float:
    """The share of a layer's experts that one token goes through."""
    used = _size(config, "num_experts_per_tok")
    experts = _size(config, "num_local_experts", "num_experts", "n_routed_experts")
    return used / experts if used and experts else 1.0


def _machine_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _group_available() -> int | None:
    """What the control group leaves: its limit less what is in use, cached files not counted as in use."""
    for folder, limit_file, usage_file, cached in _CONTROL_GROUPS:
        try:
            limit = (folder / limit_file).read_text().strip()
            used = int((folder / usage_file).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return None if limit == "max" else max(int(limit) - used + int(statistics.get(cached, 0)), 0)
    return None
