"""`evenkeel describe`: what it prints, where it goes, what its exit code says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli.main import main
from evenkeel.description import Description

_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_LLAMA))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["describe", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_config_alone_is_told_in_eighty_columns(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a pipe has no width: 80
    code, out, err = told(capsys, str(config))
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
    flat = " ".join(out.split())
    layer = 2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 128
    total = 3 * (layer + 2 * 48) + 2 * 96 * 48 + 48
    assert lines[0].startswith(f"LlamaForCausalLM: {total / 1000:.3g} k parameters; 3 blocks of width 48, gated")
    assert "3 × self, causal; 6 heads of 8, 2 for keys and values; scale 0.354 = 1/√d; 8 of 8 channels rotary" in flat
    assert (
        "3 × gated feed-forward (swiglu), activation silu; 3 matrices; d_ff 128 = 2.67·d (1 of parity, 8/3·d)" in flat
    )
    assert "KV cache: 192 bytes per token in bfloat16; 12 KiB for 64 tokens" in flat  # 3·2·2·8·2
    flops = 2 * (3 * layer + 96 * 48) + 3 * 6 * 2 * (8 + 8) * 64
    row = next(line for line in lines if line.startswith("all "))
    sizes = [f"{total / 1000:.3g}", "k"]
    assert row.split() == ["all", *sizes, "100%", *sizes, f"{flops / 1000:.3g}", "k", "100%"]
    assert lines[-1] == "no findings; 2 rules passed"


def test_a_directory_and_its_config_say_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "model.safetensors").write_bytes(b"never read")
    _, of_file, _ = told(capsys, str(config), "--format", "json")
    _, of_directory, _ = told(capsys, str(config.parent), "--format", "json")
    first, second = json.loads(of_file)["architecture"], json.loads(of_directory)["architecture"]
    assert first.pop("source") != second.pop("source") and first == second


def test_the_json_is_a_document_with_the_architecture_in_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, str(config), "--format", "json", "--context", "7")
    data: dict[str, Any] = json.loads(out)
    assert code == 0 and data["schema_version"] == 1 and data["tool"].startswith("evenkeel ")
    assert data["model"]["class"] == "LlamaForCausalLM" and data["model"]["dtype"] == "bfloat16"
    described = data["architecture"]
    assert described["costs"]["context"] == 7 and described["method"] == "shapes"
    assert described["attentions"][0]["cached_values"] == 2 * 2 * 8
    assert described["feedforwards"][0]["ratio"] == pytest.approx(128 / 48)
    assert {"score_scale", "head_dim", "channels", "fan_in"} == {item["stat"] for item in data["readings"]}
    assert Description.from_dict(data).to_dict() == data


def test_findings_decide_the_exit_code(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**_LLAMA, "model_type": "granite", "architectures": ["GraniteForCausalLM"], "attention_multiplier": 2.0}
    config.write_text(json.dumps(settings))
    code, out, _ = told(capsys, str(config))
    assert code == 0 and "ARC701" in out and out.splitlines()[-1].startswith("1 warning; ")
    assert told(capsys, str(config), "--fail-on", "warning")[0] == 1
    code, out, _ = told(capsys, str(config), "--fail-on", "warning", "--ignore", "ARC701")
    assert code == 0 and "scores are multiplied" not in out


def test_a_file_is_written_and_a_baseline_is_heard(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**_LLAMA, "hidden_act": "tanh", "model_type": "phi", "architectures": ["PhiForCausalLM"]}
    config.write_text(json.dumps(settings))
    target = config.parent / "described.json"
    assert told(capsys, str(config), "--format", "json", "--out", str(target))[1] == ""
    assert {finding["code"] for finding in json.loads(target.read_text())["findings"]} >= {"ARC702"}
    assert told(capsys, str(config), "--fail-on", "warning")[0] == 1
    code, out, _ = told(capsys, str(config), "--fail-on", "warning", "--baseline", str(target))
    assert code == 0 and "ARC702 saturating hidden activation (in the baseline)" in out


def test_what_names_code_is_dropped_and_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(json.dumps({**_LLAMA, "auto_map": {"AutoModel": "x.Y"}, "_attn_implementation": "some/one"}))
    code, out, _ = told(capsys, str(config))
    assert code == 0 and "auto_map" in out and "_attn_implementation" in out


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("nowhere/at-all", 3, "holds no config.json"),
        ("lama", 3, "did you mean 'llama'"),
        ("lama", 3, "there is no directory 'lama'"),
        ("{broken", 3, "is no JSON"),
        (json.dumps({"model_type": "llama", "hidden_size": "wide"}), 3, "no valid llama config"),
        (json.dumps({"model_type": "dbrx"}), 3, "DbrxForCausalLM cannot be built from this config"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    given: str, code: int, message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if given.startswith("{"):
        config.write_text(given)
        given = str(config)
    found, out, err = told(capsys, given)
    assert (found, out) == (code, "") and err.count("\n") == 1 and message in err


def test_help_and_reading_a_description_load_no_torch() -> None:
    code = (
        "import sys\nfrom evenkeel.cli.main import build_parser\nbuild_parser()\n"
        "import evenkeel.description, evenkeel.report.architecture\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
