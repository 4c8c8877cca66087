"""What the README shows is what there is: its Python runs, its commands exist, its list of rules is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from test_trainer_callback import llama, samples, trainer

from evenkeel.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model = llama()
    batches = [{key: value[None] for key, value in item.items()} for item in samples()]
    names = {
        "model": model,
        "batches": batches,
        "loader": batches,
        "torch": torch,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "inputs": {"input_ids": batches[0]["input_ids"], "attention_mask": torch.ones_like(batches[0]["input_ids"])},
        "trainer": trainer(model, tmp_path, max_steps=2),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, names)
    assert capsys.readouterr().out.count("LlamaForCausalLM") == 3  # inspected, watched, trained; then the functions
    assert names["out"].shape == (1, 4, 16, 32) and names["loss"].dim() == 0
    length = names["inputs"]["input_ids"].shape[1]
    assert names["chosen"].tokens.shape == (4,) and length < names["continued"].shape[1] <= length + 5
    assert names["text"].shape == (2, 40) and abs(names["equal"].difference) < 0.005
    assert main(["report", "run.sqlite"]) == 0


def test_its_rules_are_the_rules(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rules"]) == 0
    assert f"$ evenkeel rules\n{capsys.readouterr().out}```" in README


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    shown = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= shown & targets
    assert shown <= targets
