"""docs/architectures.md has a row for every causal model of transformers, and its rows are what describing says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as MODELS

DOCS = Path(__file__).parents[1] / "docs"


def rows() -> dict[str, str]:
    lines = (DOCS / "architectures.md").read_text().splitlines()
    cells = [line for line in lines if line.startswith("| ") and not line.startswith("| model_type ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in cells}


def test_every_causal_model_has_a_row() -> None:
    assert rows().keys() == MODELS.keys()


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "mamba", "mamba2", "dbrx"])
def test_rows_are_what_describing_says(model_type: str) -> None:
    spec = importlib.util.spec_from_file_location("architectures_page", DOCS / "architectures.py")
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert rows()[model_type] in list(page.lines([model_type]))
