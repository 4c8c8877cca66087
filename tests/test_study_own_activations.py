"""A user's own activation, named as file.py:function, is an arm like any other, in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from study_files import wrote
from torch.nn import functional as F

from evenkeel.errors import ConfigError
from evenkeel.functional import ACTIVATIONS
from evenkeel.nn import Transformer, TransformerConfig
from evenkeel.studies.reading.arms import plan_arms
from evenkeel.studies.reading.specifications import read_file, read_study, study_of

MINE = """
    import torch

    def softer(x):
        return x / (1 + x.abs())

    def gelu(x):
        return x * torch.sigmoid(2 * x)
"""


def test_an_own_activation_is_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrote(tmp_path / "my.py", MINE)
    study = read_study(["feedforward=swiglu,my.py:softer"])
    reference = study.arms[1].choices["feedforward.activation"]
    assert study.names == ("swiglu", "softer")
    assert reference.startswith("my.py:softer@") and study.arms[1].choices["feedforward.gated"] is False
    plan = plan_arms(study)[1]
    model = Transformer(TransformerConfig.from_dict(plan.config))
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(ACTIVATIONS[plan.config["feedforward"]["activation"]].function(x), F.softsign(x))
    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 256)

    gated = read_study(["feedforward.activation=silu,my.py:softer", "feedforward.gated=true"])
    assert gated.names == ("silu", "softer") and plan_arms(gated)[1].config["feedforward"]["gated"] is True
    everywhere = study_of({"axes": {"depth": [2, 4]}, "model": {"feedforward": {"activation": "my.py:softer"}}})
    assert {plan.config["feedforward"]["activation"] for plan in plan_arms(everywhere)} == {
        plan.config["feedforward"]["activation"]
    }
    assert read_study(["feedforward=gelu,my.py:gelu"]).names == ("gelu", "my.py:gelu")


def test_a_changed_file_is_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = wrote(tmp_path / "my.py", MINE)
    study = read_study(["feedforward=relu,my.py:softer"])
    name = plan_arms(study)[1].config["feedforward"]["activation"]
    assert read_study(["feedforward=relu,my.py:softer"]).identity == study.identity
    wrote(file, MINE.replace("1 + x.abs()", "2 + x.abs()"))
    with pytest.raises(ConfigError, match=r"^arm 'softer': my\.py has the digest \w{8} and .* had \w{8}; restore the"):
        plan_arms(study)
    changed = read_study(["feedforward=relu,my.py:softer"])
    other = plan_arms(changed)[1].config["feedforward"]["activation"]
    assert changed.identity != study.identity and other != name
    assert ACTIVATIONS[other].function(torch.ones(())) == torch.tensor(1 / 3)


def test_another_process_runs_the_study_from_its_data_alone(tmp_path: Path) -> None:
    wrote(tmp_path / "my.py", MINE)
    study = read_file(wrote(tmp_path / "s.toml", '[axes]\nfeedforward = ["relu", "my.py:softer"]'))
    program = (
        "import json, sys; from evenkeel.studies.reading.arms import plan_arms; "
        "from evenkeel.studies.study import Study; "
        "from evenkeel.nn import Transformer, TransformerConfig; "
        "plan = plan_arms(Study.from_dict(json.load(sys.stdin)))[1]; "
        "model = Transformer(TransformerConfig.from_dict(plan.config)); "
        "print(model.blocks[0].feedforward.activation)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(study.to_dict()), text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == plan_arms(study)[1].config["feedforward"]["activation"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x.sum()", r"f gave \(\) in torch.float32 for a tensor of \(5, 13\) in torch.float32; return one of the same"),
        ("x.double()", r"gave \(5, 13\) in torch.float64"),
        ("x.float() * 1", r"gave \(5, 13\) in torch.float32 for a tensor of \(5, 13\) in torch.bfloat16"),
        ("3", "gave int for a tensor"),
        ("x.detach()", "gives no gradient; compute with torch alone"),
        ("x.sign()", "has the slope 0 from -8 to 8"),
        ("x.log()", r":f is nan at -8 in torch.float32; make it finite from -8 to 8"),
        ("x.abs().sqrt()", r"the slope of .*:f is nan at 0 in torch.float32; make it finite"),
        ("x.softmax(-1)", "gives other values for a part of a tensor than for the whole"),
        ("x - x.mean()", "gives other values for a part"),
        ("x / x.abs().max()", "gives other values for a part"),
        ("x + torch.rand_like(x)", "gives other values for a part"),
        ("x.relu_()", r"fails on a tensor of \(5, 13\) in torch.float32 \(RuntimeError: .*in-place"),
        ("undefined(x)", "fails on a tensor .*NameError"),
        ("x * float('inf') if x.dtype == torch.bfloat16 else x", ":f is -inf at -8 in torch.bfloat16"),
    ],
)
def test_a_function_that_is_no_activation_is_refused(tmp_path: Path, body: str, message: str) -> None:
    path = wrote(tmp_path / "my.py", f"import torch\ndef f(x):\n    return {body}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_study([f"feedforward=relu,{path}:f"])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not [name for name in ACTIVATIONS if name.startswith("f_")]


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (None, "my.py:f", r"my\.py cannot be read \(No such file or directory\); give the Python file that holds f"),
        ("def softer(x): return x", "my.py:softr", r"has no function softr; did you mean 'softer'\?"),
        ("f = 3", "my.py:f", "has no function f; known: none"),
        ("import nonsense_that_is_not", "my.py:f", r"cannot be run \(ModuleNotFoundError: .*\); mend the file"),
        ("def f(x) return x", "my.py:f", r"cannot be run \(SyntaxError"),
        ("exit(0)", "my.py:f", r"cannot be run \(SystemExit"),
        ("", "my.py:", "names no function of a file; write my.py:function"),
        ("", "my.py:two words", "names no function of a file"),
    ],
)
def test_a_file_without_the_function_is_refused(tmp_path: Path, text: str | None, reference: str, message: str) -> None:
    if text is not None:
        wrote(tmp_path / "my.py", text)
    with pytest.raises(ConfigError, match=message) as caught:
        study_of({"axes": {"feedforward": ["relu", reference]}}, tmp_path)
    assert "\n" not in str(caught.value)
