"""Writes docs/architectures.md: python docs/architectures.py > docs/architectures.md (some minutes, no network).

One row for each of transformers' causal models, with the defaults of its config class and at most four blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evenkeel.architectures.describing import Architecture, describe_config
from evenkeel.description import AttentionPart, FeedForwardPart
from evenkeel.errors import EvenkeelError

BLOCKS = 4
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def lines(model_types: Iterable[str]) -> Iterator[str]:
    """The page about some models, line by line."""
    rows = [(name, *_row(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])) for name in model_types]
    told = [row for row in rows if row[1]]
    yield "# Architectures that `evenkeel describe` reads"
    yield ""
    yield f"Made by `python docs/architectures.py` from the config classes of transformers {transformers.__version__},"
    yield f"with their default values and at most {BLOCKS} blocks; evenkeel has no code for any one of them."
    yield f"{len(told)} of {len(rows)} causal models are described; a cell says what was not found. Defaults are not"
    yield "those of a released checkpoint, and some config classes have defaults that no model can be built from."
    yield ""
    yield "| model_type | attention | scale | feed-forward | norm | positions |"
    yield "|---|---|---|---|---|---|"
    for model_type, cells, _ in told:
        yield f"| {model_type} | {' | '.join(cells)} |"
    yield ""
    yield "## Not described, and why"
    yield ""
    yield "| model_type | reason |"
    yield "|---|---|"
    for model_type, cells, reason in rows:
        if not cells:
            yield f"| {model_type} | {reason} |"


def _row(model_type: str, name: str) -> tuple[tuple[str, ...], str]:
    print(model_type, file=sys.stderr)
    try:
        found = describe_config({"model_type": model_type, "architectures": [name], **_depth(model_type)})
    except EvenkeelError as error:
        return (), str(error).replace("|", "\\|")
    if not (found.attentions or found.feedforwards or any(site.kind == "recurrence" for site in found.sites)):
        return (), "neither attention nor recurrence nor feed-forward was found"
    return tuple(cell.replace("|", "\\|") for cell in _cells(found)), ""


def _depth(model_type: str) -> dict[str, Any]:
    """The setting that leaves few blocks, where the config class has one and takes it."""
    try:
        defaults = CONFIG_MAPPING[model_type]().to_dict()
        key = next(key for key in DEPTHS if isinstance(defaults.get(key), int) and defaults[key] > BLOCKS)
        CONFIG_MAPPING[model_type].from_dict({key: BLOCKS})
    except Exception:  # a config may hold lists of its default depth, and fail in any way of its own
        return {}
    return {key: BLOCKS}


def _cells(found: Architecture) -> tuple[str, ...]:
    attentions = dict.fromkeys(_attention(part) for part in found.attentions)
    scales = dict.fromkeys(part.scale_rule for part in found.attentions)
    forwards = dict.fromkeys(_feedforward(part) for part in found.feedforwards)
    recurrent = ["recurrence"] if any(site.kind == "recurrence" for site in found.sites) else []
    shrunk = [] if found.method == "shapes" else ["(seen on a small instance)"]
    return (
        "; ".join([*attentions, *recurrent, *shrunk]) or "none found",
        "; ".join(scales) or "–",
        "; ".join(forwards) or "none found",
        f"{found.norm}, {found.placement}" if found.norm != found.placement else found.norm,
        ", ".join(found.positions) or "none found",
    )


def _attention(part: AttentionPart) -> str:
    seen = (
        {True: "causal", False: "both sides", None: "mask not found"}[part.causal] if part.kind == "self" else "cross"
    )
    words = [seen, f"{part.heads}/{part.key_heads} heads of {part.head_dim}"]
    words += [f"{'chunks of' if part.chunked else 'window'} {part.window}"] if part.window is not None else []
    words += [f"soft-cap {part.softcap:g}"] if part.softcap is not None else []
    words += ["sinks"] if part.sinks else []
    words += [f"QK-norm {part.qk_norm}"] if part.qk_norm != "none" else []
    words += [f"latent {part.latent_values}"] if part.latent_values else []
    return ", ".join(words)


def _feedforward(part: FeedForwardPart) -> str:
    experts = f", {part.experts} experts ({part.active or '?'})" if part.experts else ""
    return f"{part.gate or part.activation}, {part.ratio:.3g}·d{experts}"


if __name__ == "__main__":
    print("\n".join(lines(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))
