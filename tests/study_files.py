"""Files that a study is read from: what a user writes, and a model's directory with its config alone."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

LARGE = {
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
}


def config_alone(path: Path, model_type: str, **fields: Any) -> str:
    """A directory that holds a config.json alone."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": model_type, **LARGE, **fields}))
    return str(path)


def wrote(path: Path, text: str) -> Path:
    """The path, with the text in it as it would be without its indentation."""
    path.write_text(dedent(text))
    return path
