"""Writes docs/families.md from evenkeel.nn.families: python docs/families.py > docs/families.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evenkeel.nn import TransformerConfig
from evenkeel.nn.families import FAMILIES, Family, Fixed, Only

TEXT = """\
# Families

Made by `python docs/families.py` from `evenkeel.nn.families.FAMILIES`; a test compares the two.

```python
from evenkeel import Transformer

model = Transformer.from_directory("path/to/model")  # config.json and safetensors, sharded or not; no transformers
model.save_directory("path/to/another")  # transformers reads it: AutoModelForCausalLM.from_pretrained
```

Logits and gradients are those of transformers' model with its language-modelling head. Weights keep the dtype of the
files unless `dtype` is given. `save_directory` writes the family that the model came from, or the first in this table
that has such a model, or the `family` that is named; where none has, the error says what each lacks. The ids of special
tokens are kept; the tokenizer's files are not copied.

## What becomes of which field

Rows are axes of `TransformerConfig`; a cell holds the fields that decide them, or the one value that the family has. An
empty cell, or an axis without a row, has the value of `TransformerConfig()`.
"""

REFUSED = """
## What is refused

A field that no `TransformerConfig` can express is refused by name, with its value:

- rotary positions other than `default`, `linear` and `llama3`, and angles that differ from layer to layer;
- `partial_rotary_factor` other than 1, but for Nemotron;
- `layer_types` in which the layers that see all tokens are not every so many-th, and so `max_window_layers` that opens
  windows behind some layers;
- activations that `evenkeel.functional.ACTIVATIONS` does not have;
- OPT's `word_embed_proj_dim` other than `hidden_size` (opt-350m);
- quantised weights, tensors that are missing, too many or of other shapes, and a tied head that differs from the
  embedding.

What else has one value that can be mapped:

| model_type | fields |
|---|---|
"""

REST = """
## What is not read

Dropout, initialisation and caching: they change no logits of a model that is run. `head.z_loss`, which only a loss
reads, is not written, and `feedforward.packed` matrices are written apart. The first two rows of OPT's positions, which
no token takes, are left out and written as zeros. In bfloat16, Gemma's embeddings are scaled by the exact √d_model, and
by its rounded value in transformers.

## A family of one's own

A `Family` is a value: how its fields map to axes (`Field`, `Choice`, `Fixed`, `Only`, `Rope`, `Windows`, or whatever
has `read` and `write`), and where its tensors stand (`Layout`). A package offers one by an entry point, under its
`model_type`:

```toml
[project.entry-points."evenkeel.families"]
my-family = "my_package:FAMILY"
```
"""


def page() -> Iterator[str]:
    """The page, line by line."""
    yield TEXT
    yield f"| axis | {' | '.join(FAMILIES)} |"
    yield f"|---|{'---|' * len(FAMILIES)}"
    columns = [dict(_cells(family)) for family in FAMILIES.values()]
    for axis in AXES:
        if any(axis in column for column in columns):
            yield f"| {axis} | {' | '.join(column.get(axis, '') for column in columns)} |"
    yield REFUSED.rstrip()
    for name, family in FAMILIES.items():
        only = [f"`{part.name}` {_written(part.value)}" for part in family.parts if isinstance(part, Only)]
        if only:
            yield f"| {name} | {', '.join(only)} |"
    yield REST.rstrip()


def _cells(family: Family) -> Iterator[tuple[str, str]]:
    for part in family.parts:
        for axis in part.axes:
            fields = " ".join(f"`{field}`" for field in part.fields)
            yield axis, _written(part.value) if isinstance(part, Fixed) else fields


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "4·d_model" if value is None else str(value)


def _axes(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{name}.")
        else:
            yield prefix + name


AXES = tuple(_axes(TransformerConfig().to_dict()))


if __name__ == "__main__":
    print("\n".join(page()))
