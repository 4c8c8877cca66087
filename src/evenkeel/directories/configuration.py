"""A model directory's config.json, read as data: whatever in it names code to run is dropped, in sub-configs too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..schema import clean_name

_NAMES_CODE = frozenset(
    {
        "auto_map",  # classes in the directory's own Python files, or in another repository's
        "custom_generate",
        "custom_pipelines",
        "fusion_config",
        "kernel_config",
        "transformers_weights",  # a weight file of any name and format
        "trust_remote_code",
        "use_kernels",
    }
)
_IMPLEMENTATION = "_implementation"  # attention or experts; "someone/repo" as its value is fetched and run


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises ModelError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{clean_name(str(path))} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(f"{clean_name(str(path))} is no JSON: {reason}; copy the file anew") from error
    if not isinstance(data, dict):
        raise ModelError(f"{clean_name(str(path))} holds a JSON {type(data).__name__} and must hold an object")
    return data


def without_code(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config without the keys that name code, and the dotted names of the keys that were dropped."""
    dropped: list[str] = []

    def cleaned(value: Any, path: str) -> Any:
        if isinstance(value, list):
            return [cleaned(item, f"{path}{index}.") for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        kept = {}
        for key, item in value.items():
            if key in _NAMES_CODE or _IMPLEMENTATION in key:
                dropped.append(clean_name(path + key))
            else:
                kept[key] = cleaned(item, f"{path}{key}.")
        return kept

    return cleaned(config, ""), tuple(dropped)


def quantisation(config: dict[str, Any]) -> str | None:
    """The method by which the weights are quantised, if they are."""
    for key in ("quantization_config", "compression_config"):
        settings = config.get(key)
        if settings:
            method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else "unnamed"
            return clean_name(str(method))
    return None
