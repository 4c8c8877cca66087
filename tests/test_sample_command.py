"""`evenkeel sample`: the text that it writes, the numbers that explain it, what it refuses, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_directories import edit_config, make_model, make_tokenizer, save
from safetensors.torch import load_file, save_file
from tokenizers import decoders

from evenkeel import functional
from evenkeel.architectures.texts import token_name
from evenkeel.architectures.tokenizers import ByteTokenizer
from evenkeel.cli import sample
from evenkeel.cli.main import main
from evenkeel.functional import Sampler
from evenkeel.nn import Transformer, TransformerConfig

CONTEXT = 16
PROMPT = "import torch, "

Run = tuple[int, str, str]


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of causal models with a byte-level tokenizer that can decode; not to be changed."""
    return {family: write_directory(family, tmp_path_factory.mktemp(family)) for family in ("llama", "gpt2")}


@pytest.fixture
def llama(hugging_face: dict[str, Path], tmp_path: Path) -> Path:
    """A directory to change."""
    return Path(shutil.copytree(hugging_face["llama"], tmp_path / "llama"))


@pytest.fixture(autouse=True)
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model of our own in the place of the demo's; the working folder has no `demo`."""
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVENKEEL_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    own_model().save(tmp_path / "cache" / "demo")
    return tmp_path / "cache" / "demo"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run `evenkeel sample`: exit code, standard output, standard error."""

    def command(*arguments: object) -> Run:
        capsys.readouterr()
        code = main(["sample", "--device", "cpu", *map(str, arguments)])
        output, errors = capsys.readouterr()
        return code, output, errors

    return command


@pytest.fixture
def document(run: Callable[..., Run]) -> Callable[..., dict[str, Any]]:
    """Run it with --format json; what that prints."""

    def command(*arguments: object) -> dict[str, Any]:
        code, output, errors = run(*arguments, "--format", "json")
        assert (code, errors) == (0, "")
        return json.loads(output, parse_constant=pytest.fail)

    return command


def own_model() -> Transformer:
    return Transformer(TransformerConfig(context=CONTEXT, depth=2, d_model=32), seed=3)


def write_directory(family: str, directory: Path) -> Path:
    make_model(family).save_pretrained(directory)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save_pretrained(directory)
    return directory


def looked_at(tokens: list[int], prompt: int) -> list[int]:
    """What a model of our own looks at: the context's last half goes on where it is full."""
    first = max(0, prompt - CONTEXT)
    for length in range(prompt, len(tokens) + 1):
        first = length - CONTEXT // 2 if length - first > CONTEXT else first
    return tokens[first:]


def scripted(follows: bytes) -> Transformer:
    """A model that writes each byte of a text after the one before it; the bytes differ."""
    assert len(set(follows)) == len(follows)
    model = Transformer(TransformerConfig(context=CONTEXT, depth=1, d_model=256))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embedding.weight.copy_(torch.eye(256))
        weight = model.head.get_parameter("weight")
        weight.zero_()
        weight[list(follows[1:]), list(follows[:-1])] = 10
    return model


def failed(result: Run, code: int, said: str) -> None:
    assert (result[0], result[1]) == (code, "")
    assert result[2].startswith("evenkeel: ") and result[2].count("\n") == 1 and said in result[2]


def process(*arguments: object, to: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """A run of its own, which hears Ctrl-C even where the tests do not; to: where standard output and error go."""
    command = [sys.executable, "-m", "evenkeel", "sample", *map(str, arguments), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=to, stderr=to, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )


# --- the text ----------------------------------------------------------------------------------------------------


class TestText:
    @pytest.mark.parametrize("prompt", ["short", "a prompt that is longer than the context"])
    def test_greedy_from_our_own_model_goes_on_with_half_of_a_full_context(
        self, run: Callable[..., Run], prompt: str
    ) -> None:
        tokens, model = list(prompt.encode()), own_model()
        for _ in range(2 * CONTEXT):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([looked_at(tokens, len(prompt))])).logits[0, -1].argmax()))
        written = bytes(tokens[len(prompt) :]).decode(errors="replace")
        assert run("demo", prompt, "--temperature", 0, "--tokens", 2 * CONTEXT) == (0, written + "\n", "")

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_greedy_from_hugging_face_is_that_of_generate(
        self, hugging_face: dict[str, Path], run: Callable[..., Run], family: str
    ) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(hugging_face[family])
        ids = torch.tensor([tokenizer.encode(PROMPT)[:-1]])  # without the token that stands after a text
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(hugging_face[family])
        written = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert len(written) == 24
        code, output, errors = run(hugging_face[family], PROMPT, "--temperature", 0, "--tokens", 24)
        assert (code, output, errors) == (0, tokenizer.decode(written, skip_special_tokens=True) + "\n", "")

    @pytest.mark.parametrize("asked", [{"repetition_penalty": 5.0}, {"num_beams": 3}, {"max_length": 13}], ids=str)
    def test_what_the_config_asks_of_generate_is_not_asked_of_us(
        self, llama: Path, run: Callable[..., Run], asked: dict[str, Any]
    ) -> None:
        greedy = (llama, PROMPT, "--temperature", 0, "--tokens", 12)
        before = run(*greedy)
        edit_config(llama, **asked)
        assert run(*greedy) == before

    @pytest.mark.parametrize("family", ["own", "llama"])
    def test_a_seed_is_a_text(
        self, hugging_face: dict[str, Path], document: Callable[..., dict[str, Any]], family: str
    ) -> None:
        arguments = (hugging_face.get(family, "demo"), PROMPT, "--tokens", 20)
        first, again, other = (document(*arguments, "--seed", seed) for seed in (5, 5, 6))
        assert first == again
        assert first["text"] != other["text"]
        assert (first["seed"], document(*arguments)["seed"]) == (5, 0)

    def test_filters_penalties_and_order_reach_the_sampler(self, document: Callable[..., dict[str, Any]]) -> None:
        greedy = document("demo", PROMPT, "--tokens", 6, "--temperature", 0)["text"]
        for filters in (("--top-k", 1), ("--top-p", 0), ("--min-p", 1), ("--top-n-sigma", 0), ("--epsilon", 1)):
            assert document("demo", PROMPT, "--tokens", 6, *filters)["text"] == greedy
        for penalty in (("--repetition-penalty", 1e9), ("--presence-penalty", 1e9), ("--frequency-penalty", 1e9)):
            steps = document("demo", PROMPT, "--tokens", 40, "--temperature", 0, *penalty)["steps"]
            assert len({step["token"] for step in steps} - set(PROMPT.encode())) == 40
        hot = ("demo", PROMPT, "--tokens", 1, "--temperature", 3, "--top-p", 0.5, "--explain")
        supports = [
            document(*hot, "--order", order)["steps"][0]["drawn_from"]["support"]
            for order in ("transformers", "llama.cpp")
        ]
        assert supports[0] > supports[1]

    def test_every_field_of_a_sampler_that_is_a_number_is_an_option(self) -> None:
        import argparse

        parser = argparse.ArgumentParser(add_help=False)
        sample.configure(parser)
        flags = {flag for action in parser._actions for flag in action.option_strings}
        fields = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Sampler)} - {"--logit-bias"}
        assert flags - fields == {"--dtype", "--device", "--tokens", "--seed", "--explain", "--format"}
        assert fields <= flags

    @pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
    def test_it_stops_where_the_text_ends(
        self, llama: Path, document: Callable[..., dict[str, Any]], run: Callable[..., Run], where: str
    ) -> None:
        greedy = (llama, PROMPT, "--temperature", 0, "--tokens", 8)
        before = document(*greedy)
        assert before["stopped_by"] == "tokens" and len(before["steps"]) == 8
        tokens = [step["token"] for step in before["steps"]]
        assert tokens[3] not in tokens[:3]
        if where == "config.json":
            edit_config(llama, eos_token_id=tokens[3])
            (llama / "generation_config.json").unlink()
        else:
            (llama / where).write_text(json.dumps({"eos_token_id": [299, tokens[3]]}))
        after = document(*greedy)
        assert after["stopped_by"] == "end_of_text" and [step["token"] for step in after["steps"]] == tokens[:4]
        assert after["text"] == "".join(step["text"] for step in after["steps"][:3])
        assert run(*greedy)[1] == after["text"] + "\n"

    def test_it_stops_where_the_context_ends(
        self, hugging_face: dict[str, Path], document: Callable[..., dict[str, Any]]
    ) -> None:
        found = document(hugging_face["llama"], PROMPT, "--tokens", 1000)
        assert found["stopped_by"] == "context" and len(found["prompt_tokens"]) + len(found["steps"]) == 64

    def test_the_prompt_comes_from_standard_input(
        self, document: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for given, read in (("é\n", "é"), ("a\n\n", "a\n"), ("b", "b")):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
            assert document("demo", "-", "--tokens", 1)["prompt_tokens"] == list(read.encode())

    def test_an_empty_prompt_is_the_token_that_texts_begin_with(
        self, llama: Path, document: Callable[..., dict[str, Any]]
    ) -> None:
        assert document(llama, "", "--tokens", 1)["prompt_tokens"] == [1]  # what stands before every text
        settings = json.loads((llama / "tokenizer.json").read_text())
        settings["post_processor"] = None
        (llama / "tokenizer.json").write_text(json.dumps(settings))
        assert document(llama, "x", "--tokens", 1)["prompt_tokens"] != [1]
        names = json.loads((llama / "tokenizer_config.json").read_text())
        (llama / "tokenizer_config.json").write_text(json.dumps(names | {"bos_token": "[MASK]"}))
        assert document(llama, "", "--tokens", 1)["prompt_tokens"] == [3]

    def test_another_dtype(self, hugging_face: dict[str, Path], document: Callable[..., dict[str, Any]]) -> None:
        for directory in ("demo", hugging_face["llama"]):
            found = document(directory, PROMPT, "--tokens", 2, "--dtype", "bfloat16")
            assert found["model"]["dtype"] == "bfloat16" and len(found["steps"]) == 2


# --- the numbers -------------------------------------------------------------------------------------------------


def expected(logits: np.ndarray, previous: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The softmax at temperature 1; and after repetition penalty 1.3, temperature 0.7 and top-p 0.8."""

    def softmax(scores: np.ndarray) -> np.ndarray:
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    scores = logits.copy()
    seen = np.unique(previous)
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / 1.3, scores[seen] * 1.3)
    p = softmax(scores / 0.7)
    order = np.argsort(-p, kind="stable")
    kept = order[: np.searchsorted(np.cumsum(p[order]), 0.8) + 1]
    drawn_from = np.zeros_like(p)
    drawn_from[kept] = p[kept] / p[kept].sum()
    return softmax(logits), drawn_from


def entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


class TestExplaining:
    SAMPLER = ("--temperature", 0.7, "--top-p", 0.8, "--repetition-penalty", 1.3, "--seed", 4, "--tokens", 6)

    @pytest.mark.parametrize("family", ["own", "llama"])
    def test_the_numbers_are_those_of_the_models_logits(
        self, hugging_face: dict[str, Path], document: Callable[..., dict[str, Any]], family: str
    ) -> None:
        found = document(hugging_face.get(family, "demo"), PROMPT, *self.SAMPLER, "--explain")
        if family == "own":
            model: Any = own_model()
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(hugging_face[family])
        tokens = list(found["prompt_tokens"])
        prompt = len(tokens)
        for step in found["steps"]:
            with torch.no_grad():
                logits = model(torch.tensor([looked_at(tokens, prompt) if family == "own" else tokens])).logits[0, -1]
            sides = dict(zip(("model", "drawn_from"), expected(logits.double().numpy(), tokens), strict=True))
            shown = {item["token"]: item for item in step["candidates"]}
            assert step["token"] in shown
            for name, p in sides.items():
                assert step[name]["probability"] == pytest.approx(p[step["token"]], rel=1e-5)
                assert step[name]["entropy_nats"] == pytest.approx(entropy(p), rel=1e-5)
                assert step[name]["effective_count"] == pytest.approx(np.exp(entropy(p)), rel=1e-5)
                assert step[name]["support"] == (p > 0).sum()
                assert set(np.argsort(-p, kind="stable")[: min(4, (p > 0).sum())]) <= shown.keys()
                assert {token: item[name] for token, item in shown.items()} == pytest.approx(
                    {token: p[token] for token in shown}, rel=1e-5
                )
            drawn = functional.sample(
                logits,
                Sampler(temperature=0.7, top_p=0.8, repetition_penalty=1.3),
                previous=torch.tensor(tokens),
                seeds=4,
                position=len(tokens) - len(found["prompt_tokens"]),
            )
            assert step["token"] == drawn.tokens
            assert list(shown) == sorted(shown, key=lambda token: -sides["model"][token])
            tokens.append(step["token"])
        assert found["sampler"] == {
            **{"order": "transformers", "temperature": 0.7},
            **{"top_p": 0.8, "repetition_penalty": 1.3},
        }

    @pytest.mark.parametrize("family", ["own", "llama"])
    def test_explaining_changes_no_token(
        self, hugging_face: dict[str, Path], document: Callable[..., dict[str, Any]], family: str
    ) -> None:
        arguments = (hugging_face.get(family, "demo"), PROMPT, *self.SAMPLER)
        plain, explained = document(*arguments), document(*arguments, "--explain")
        for step in explained["steps"]:
            for name in ("model", "drawn_from", "candidates"):
                del step[name]
        assert plain == explained

    def test_the_blocks_show_these_numbers(
        self, run: Callable[..., Run], document: Callable[..., dict[str, Any]]
    ) -> None:
        code, output, errors = run("demo", PROMPT, *self.SAMPLER, "--explain")
        found = document("demo", PROMPT, *self.SAMPLER, "--explain")
        assert (code, errors) == (0, "")
        legend, *blocks, text = output.split("\n\n")
        for line in "\n".join(blocks).split("\n"):
            assert line.isprintable() and len(line) <= 80
        assert "at temperature 1" in legend
        assert "after temperature 0.7, top-p 0.8, repetition-penalty 1.3" in " ".join(legend.split())
        assert text == found["text"] + "\n" and len(blocks) == 6
        for number, (block, step) in enumerate(zip(blocks, found["steps"], strict=True), start=1):
            title, heads, nats, effective, support, *rows = block.splitlines()
            assert title.startswith(f"{number}: {token_name(ByteTokenizer(), step['token'])}, probability 0.")
            assert float(title.split()[-1]) == pytest.approx(step["drawn_from"]["probability"], abs=5e-5)
            assert re.split(r"\s{2,}", heads.strip()) == ["model", "drawn from"]
            both = step["model"], step["drawn_from"]
            assert nats.split() == [
                "entropy",
                *(part for side in both for part in (f"{side['entropy_nats']:.3f}", "nats")),
            ]
            assert effective.split()[2:] == [f"{side['effective_count']:,.2f}" for side in both]
            assert support.split() == ["support", *(str(side["support"]) for side in both)]
            assert [row[0] for row in rows].count(">") == 1
            for row, item in zip(rows, step["candidates"], strict=True):
                assert (row[0] == ">") == (item["token"] == step["token"])
                for column, p in ((row[26:53], item["model"]), (row[53:], item["drawn_from"])):
                    number_shown, _, bar = column.strip().partition(" ")
                    assert number_shown == ("out" if p == 0 else f"{p:.4f}" if p >= 1e-4 else f"{p:.1e}")
                    assert bar.count("█") == int((p * 128 + 0.5) // 8)

    def test_greedy_draws_from_one(self, document: Callable[..., dict[str, Any]]) -> None:
        (step,) = document("demo", "x", "--temperature", 0, "--tokens", 1, "--explain")["steps"]
        assert step["drawn_from"] == {"probability": 1, "entropy_nats": 0, "effective_count": 1, "support": 1}
        assert step["model"]["support"] == 256 and 0 < step["model"]["probability"] < 1

    def test_json_says_what_it_is_of(self, document: Callable[..., dict[str, Any]]) -> None:
        found = document("demo", "x", "--tokens", 3)
        assert found["schema_version"] == 1 and found["tool"].startswith("evenkeel ")
        assert found["model"]["class"] == "Transformer" and found["notes"] == []
        assert [list(step) for step in found["steps"]] == [["token", "text"]] * 3


# --- errors ------------------------------------------------------------------------------------------------------


class TestRefusing:
    def test_directories(
        self, hugging_face: dict[str, Path], llama: Path, demo: Path, run: Callable[..., Run], tmp_path: Path
    ) -> None:
        for family in ("bert", "t5", "vit"):
            failed(run(save(family, tmp_path / family), "x"), 3, "is no causal language model")
        (llama / "tokenizer.json").unlink()
        failed(run(llama, "x"), 3, "has no tokenizer")
        failed(run(tmp_path / "none", "x"), 3, "there is no directory")
        shutil.rmtree(demo)
        failed(run("demo", "x"), 3, "run `evenkeel demo` first")
        Transformer(TransformerConfig(context=8, depth=1, d_model=16, vocabulary=300)).save(demo)
        failed(run("demo", "x"), 3, "a vocabulary of 300 and its text is bytes")
        Transformer(TransformerConfig(context=8, depth=1, d_model=16, vocabulary=100)).save(demo)
        failed(run("demo", "x"), 3, "makes token 120 and the model has embeddings for 100")

    def test_prompts(
        self, hugging_face: dict[str, Path], run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failed(run("demo", ""), 2, "the prompt is empty")
        said = "the prompt has 64 tokens and the model's context is 64"
        failed(run(hugging_face["llama"], "~" * 63), 2, said)
        assert run(hugging_face["llama"], "~" * 62, "--tokens", 5)[0] == 0
        failed(run("demo", "\udcff"), 3, "no text in UTF-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
        failed(run("demo", "-"), 3, "no text in UTF-8")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--tokens", 0), "--tokens is 0"),
            (("--seed", -1), "--seed is -1"),
            (("--seed", 2**63), "--seed is 9223372036854775808"),
            (("--top-p", 1.5), "top_p is 1.5"),
            (("--temperature", -1), "temperature is -1"),
            (("--device", "warp"), "--device warp cannot be used"),
        ],
    )
    def test_values(self, run: Callable[..., Run], arguments: tuple[object, ...], said: str) -> None:
        failed(run("demo", "x", *arguments), 2, said)

    @pytest.mark.parametrize("family", ["own", "llama"])
    def test_a_model_without_numbers(self, llama: Path, demo: Path, run: Callable[..., Run], family: str) -> None:
        directory = demo if family == "own" else llama
        weights = load_file(directory / "model.safetensors")
        (name,) = (name for name in weights if name in ("norm.weight", "model.norm.weight"))
        weights[name][3] = float("nan")
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        failed(run(directory, "x"), 3, "holds NaN")

    def test_help_needs_no_torch(self) -> None:
        code = (
            "import sys\nfrom evenkeel.cli.main import main\n"
            "try: main(['sample', '--help'])\n"
            "except SystemExit as exit: print(exit.code, *({'torch', 'numpy', 'rich'} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0"


# --- as a process ------------------------------------------------------------------------------------------------


def read_terminal(leader: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:  # the other end is closed
            return
        if not data:
            return
        yield data


class TestProcess:
    def test_ctrl_c_leaves_what_was_written(self) -> None:
        with process("demo", PROMPT, "--tokens", 10**9) as running:
            assert running.stdout is not None and running.stderr is not None
            first = os.read(running.stdout.fileno(), 1)
            running.send_signal(signal.SIGINT)
            rest, errors = running.communicate()
        assert running.returncode == 130 and errors == b"evenkeel: stopped by Ctrl-C\n"
        assert len(first) == 1 and rest.endswith(b"\n")

    @pytest.mark.parametrize("arguments", [(), ("--explain",)], ids=["text", "explain"])
    def test_a_reader_who_leaves_is_no_error(self, arguments: tuple[str, ...]) -> None:
        with process("demo", PROMPT, "--tokens", 10**9, *arguments) as running:
            assert running.stdout is not None and running.stderr is not None
            assert len(os.read(running.stdout.fileno(), 1)) == 1
            running.stdout.close()
            assert running.stderr.read() == b""
        assert running.returncode == 0

    def test_a_pipe_gets_the_text_as_it_is_and_a_terminal_nothing_that_it_obeys(self, demo: Path) -> None:
        shutil.rmtree(demo)
        scripted("a\x1b[3é1m\u202e!\t".encode()).save(demo)
        arguments = ("demo", "a", "--tokens", 12, "--temperature", 0)
        with process(*arguments) as running:
            output, errors = running.communicate()
        assert (output.decode(), errors) == ("\x1b[3é1m\u202e!\t\n", b"")
        leader, follower = pty.openpty()
        with process(*arguments, to=follower) as running:
            os.close(follower)
            shown = b"".join(read_terminal(leader)).decode()
            os.close(leader)
        assert running.returncode == 0
        progress, text, summary = re.split(r"\r\x1b\[K(?=\ufffd)|\r\n(?=\d)", shown)
        assert "loading the model" in progress and "choosing the first token; kernels are compiled once" in progress
        assert text == "\ufffd[3é1m\ufffd!\t"
        assert re.fullmatch(r"12 tokens, [\d.]+ a second, seed 0; stopped by tokens\r\n", summary)
