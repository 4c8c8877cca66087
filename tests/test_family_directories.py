"""Directories of families: shards, ties, older files, what is refused, and models that came from no family."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import IDS, LLAMA3, F, S, edited, logits, made, read_back, rewrite, saved, settings_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evenkeel.errors import ConfigError, ModelError, UsageError
from evenkeel.nn import (
    AttentionConfig,
    FeedForwardConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    RotaryScalingConfig,
    Transformer,
    TransformerConfig,
)
from evenkeel.nn.families import FAMILIES

Directories = Callable[[str], Path]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return partial(saved, tmp_path_factory.mktemp("families"))


def test_shards_are_read_and_written(directories: Directories, tmp_path: Path) -> None:
    theirs, whole = made("gpt2"), Transformer.from_directory(directories("gpt2"))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    model = Transformer.from_directory(tmp_path / "theirs")
    assert torch.equal(logits(model), logits(whole))

    model.save_directory(tmp_path / "ours", max_shard_size=40_000)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 2 and max(path.stat().st_size for path in shards) < 44_000
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    tensors = [load_file(path) for path in shards]
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(item.nbytes for held in tensors for item in held.values())
    assert torch.equal(read_back(tmp_path / "ours")(IDS).logits, theirs(IDS).logits)

    other = Transformer(whole.config, seed=5)  # of another size on disk, and of one file
    other.save_directory(tmp_path / "ours", family="gpt2")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"config.json", "model.safetensors"}
    torch.testing.assert_close(read_back(tmp_path / "ours")(IDS).logits, logits(other), rtol=0, atol=1e-5)
    other.save_directory(tmp_path / "ours", family="gpt2", max_shard_size=1)
    assert not (tmp_path / "ours" / "model.safetensors").exists()
    assert torch.equal(logits(Transformer.from_directory(tmp_path / "ours")), logits(other))


def test_a_model_keeps_its_weights_when_its_files_change(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path)
    model = Transformer.from_directory(tmp_path)
    expected = logits(model)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert torch.equal(logits(model), expected)
    model.save_directory(tmp_path)
    assert torch.equal(logits(Transformer.from_directory(tmp_path)), expected)


def test_a_tied_head_may_stand_in_the_file_if_it_is_the_embedding(directories: Directories, tmp_path: Path) -> None:
    source = directories("qwen2")
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for name, head in (("same", embedding.clone()), ("other", embedding + 1)):
        edited(tmp_path / name, source)
        save_file(tensors | {"lm_head.weight": head}, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(
        logits(Transformer.from_directory(tmp_path / "same")), logits(Transformer.from_directory(source))
    )
    with pytest.raises(
        ModelError, match=r"lm_head.weight of .* differs from the embedding.*tie_word_embeddings to fal"
    ):
        Transformer.from_directory(tmp_path / "other")


OLD_FILES: dict[str, tuple[str, dict[str, Any], Callable[[str], str]]] = {
    "llama": (
        "llama",
        {"rope_parameters": ..., "rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
        | dict.fromkeys(("head_dim", "attention_bias", "mlp_bias", "dtype", "tie_word_embeddings"), ...)
        | {"torch_dtype": "float32", "pretraining_tp": 1},
        str,
    ),
    "llama 3.1": (
        "llama",
        {"rope_parameters": ..., "rope_theta": 500.0}
        | {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}},
        str,
    ),
    "llama 3.1 that trained on its whole context": (
        "llama",
        {"rope_parameters": {key: value for key, value in LLAMA3.items() if not key.startswith("original")}},
        str,
    ),
    "llama without a base": ("llama", {"rope_parameters": ...}, str),
    "llama with nulls": (
        "llama",
        {"rope_parameters": ..., "rope_scaling": None, "rope_theta": 300.0, "num_key_value_heads": 2, "head_dim": None},
        str,
    ),
    "mistral": ("mistral", {"rope_parameters": ..., "rope_theta": 1e6, "head_dim": ...}, str),
    "qwen2 with a window that is off": (
        "qwen2",
        {"layer_types": ..., "use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
        str,
    ),
    "qwen2 with a window behind all layers": (
        "qwen2",
        {"layer_types": ..., "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 28},
        str,
    ),
    "qwen2 with a window": (
        "qwen2",
        {"layer_types": ..., "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        str,
    ),
    "gemma": (
        "gemma",
        {"hidden_act": "gelu", "tie_word_embeddings": ..., "rope_parameters": ..., "rope_theta": 99},
        str,
    ),
    "gemma2": ("gemma2", {"layer_types": ..., "tie_word_embeddings": ..., "cache_implementation": "hybrid"}, str),
    "nemotron": ("nemotron", {"rope_parameters": ..., "rope_theta": 1e4, "partial_rotary_factor": 0.25}, str),
    "nemotron without a share": ("nemotron", {"rope_parameters": ..., "head_dim": ..., "rope_theta": 100.0}, str),
    "gpt2": (
        "gpt2",
        {"tie_word_embeddings": ..., "n_ctx": 48, "n_inner": None, "scale_attn_weights": ...},
        lambda name: name.removeprefix("transformer."),
    ),
    "openai-gpt": ("openai-gpt", {"tie_word_embeddings": ...}, lambda name: name.removeprefix("transformer.")),
    "opt": (
        "opt",
        {"word_embed_proj_dim": ..., "enable_bias": ..., "layer_norm_elementwise_affine": ...},
        lambda name: name.removeprefix("model."),
    ),
}


@pytest.mark.parametrize("case", OLD_FILES)
def test_older_files_mean_what_they_mean_to_transformers(case: str, directories: Directories, tmp_path: Path) -> None:
    source, changes, rename = OLD_FILES[case]
    settings = edited(tmp_path / "edited", directories(source), **changes)
    directory = rewrite(tmp_path / "old", directories(source), settings_of(settings), rename)
    expected: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    torch.testing.assert_close(
        logits(Transformer.from_directory(directory)), expected.eval()(IDS).logits, rtol=0, atol=1e-5
    )


def test_masks_and_angles_of_older_checkpoints_are_no_weights(directories: Directories, tmp_path: Path) -> None:
    buffers = {
        "gpt2": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 48, 48),
            "transformer.h.0.attn.masked_bias": torch.ones(()),
        },
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }
    for case, extra in buffers.items():
        directory = edited(tmp_path / case, directories(case))
        tensors = load_file(directory / "model.safetensors")
        save_file(tensors | extra, directory / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(
            logits(Transformer.from_directory(directory)), logits(Transformer.from_directory(directories(case)))
        )


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "rope_parameters.rope_type 'yarn'.*known: default",
    ),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type 'dynamic'.*known: default"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters without factor; "),
    ("llama", {"rope_parameters": 3}, "rope_parameters 3, which must be an object"),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor 0.5.*every ch",
    ),
    (
        "gemma2",
        {"rope_parameters": {F: {"rope_theta": 1e4}, S: {"rope_theta": 1e3}}},
        "rope_parameters .* layer to layer",
    ),
    ("llama", {"hidden_act": "xielu"}, "hidden_act 'xielu', which no TransformerConfig has: known: silu, swish, gelu,"),
    ("llama", {"hidden_size": "32"}, "hidden_size '32', which must be of type int"),
    ("llama", {"hidden_size": ...}, "has no hidden_size"),
    (
        "llama",
        {"num_attention_heads": 3, "num_key_value_heads": 3},
        "hidden_size 32, which num_attention_heads 3 does not",
    ),
    ("llama", {"attention_bias": 1}, "attention_bias 1, which must be of type bool"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": ...},
        "layer_types",
    ),
    (
        "qwen2",
        {"use_sliding_window": False, "layer_types": [S, S, S]},
        "use_sliding_window false; set one as the other",
    ),
    ("qwen2", {"layer_types": [F, F]}, r"layer_types .* it takes 3 words, each full_attention or sliding_attention"),
    ("qwen2", {"layer_types": [F, "chunked_attention", F]}, r"layer_types .* it takes 3 words"),
    ("qwen2", {"layer_types": [F, {}, F]}, r"layer_types .* it takes 3 words"),
    ("gemma2", {"layer_types": [F, S, S]}, r"layer_types .* must be every so many-th, as with attention.global_every"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0, which must be above 0"),
    (
        "gemma2",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention True, .* look ahead; only False can",
    ),
    (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx True, .*layer to layer; only F",
    ),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention True, "),
    ("openai-gpt", {"afn": "tanh"}, "afn 'tanh', .*known: gelu, relu, silu, swish"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim 16, .*hidden_size is 32"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm True, "),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False, "),
    ("llama", {"model_type": "lama"}, "model_type 'lama', which is no known family; did you mean 'llama'"),
    ("llama", {"model_type": "evenkeel"}, "is a model of evenkeel's own; read it with Transformer.load"),
]


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED)
def test_a_field_that_cannot_be_mapped_is_refused_by_name(
    case: str, changes: dict[str, Any], message: str, directories: Directories, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Transformer.from_directory(edited(tmp_path / "edited", directories(case), **changes))


def test_quantised_weights_are_refused(directories: Directories, tmp_path: Path) -> None:
    directory = edited(tmp_path / "method", directories("llama"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match=r"quantised weights \(gptq\); give the directory of the model before"):
        Transformer.from_directory(directory)
    directory = edited(tmp_path / "bytes", directories("llama"))
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="tensors of format I8, in which no model runs"):
        Transformer.from_directory(directory)


def test_weights_that_do_not_fit_are_named(directories: Directories, tmp_path: Path) -> None:
    def without_head(name: str) -> str | None:
        return None if name == "lm_head.weight" else name.replace("layers.2.mlp.up_proj", "layers.2.mlp.middle")

    settings = settings_of(directories("llama"))
    with pytest.raises(ModelError) as raised:
        Transformer.from_directory(rewrite(tmp_path / "lost", directories("llama"), settings, without_head))
    assert "lacks 2 tensors: lm_head.weight, model.layers.2.mlp.up_proj.weight" in str(raised.value)
    assert "has 1 that are no part of it: model.layers.2.mlp.middle.weight" in str(raised.value)
    with pytest.raises(ModelError, match=r"mlp.(down|gate|up)_proj.weight holds .*config.json asks for \("):
        Transformer.from_directory(edited(tmp_path / "shape", directories("llama"), intermediate_size=40))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "bfloat16"])
def test_a_dtype_in_which_no_model_runs_is_refused(dtype: Any, directories: Directories) -> None:
    with pytest.raises(UsageError, match=r"dtype is .*, in which no model runs; give one as torch\.bfloat16"):
        Transformer.from_directory(directories("llama"), dtype=dtype)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"num_hidden_layers": 10**12}, r"has num_hidden_layers 10{12}, and the weights are \d+ tensors"),
        ("gemma2", {"num_hidden_layers": 10**12, "layer_types": ...}, r"has num_hidden_layers 10{12}, and the weights"),
        ("gpt2", {"n_layer": 10**12}, r"has n_layer 10{12}, and the weights are"),
        ("llama", {"intermediate_size": 10**19}, r"asks for [\d,]{26,} parameters, and the weights are [\d,]+; give"),
        ("opt", {"vocab_size": 10**18}, r"asks for [\d,]{25,} parameters, and the weights are"),
    ],
)
def test_sizes_beyond_all_weights_are_refused_before_a_model_is_made(
    case: str, changes: dict[str, Any], message: str, directories: Directories, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        Transformer.from_directory(edited(tmp_path / "vast", directories(case), **changes))


OWN = TransformerConfig(vocabulary=61, context=30, depth=3, d_model=32)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (OWN, "llama"),
        (
            TransformerConfig(
                vocabulary=61, context=30, depth=3, d_model=32, feedforward=FeedForwardConfig(packed=True)
            ),
            "llama",
        ),
        (
            TransformerConfig(
                vocabulary=61,
                context=30,
                depth=5,
                d_model=30,
                attention=AttentionConfig(heads=4, key_heads=2, head_dim=6, window=4),
                position=PositionConfig(scaling=RotaryScalingConfig(factor=2.0, context=77)),
            ),
            "mistral",
        ),
        (
            TransformerConfig(
                vocabulary=61,
                context=30,
                depth=5,
                d_model=32,
                attention=AttentionConfig(window=4, global_every=2, qk_norm=True),
                head=HeadConfig(tied=True, z_loss=1e-4),
            ),
            "qwen3",
        ),
        (
            TransformerConfig(
                vocabulary=61,
                context=30,
                depth=2,
                d_model=32,
                position=PositionConfig(kind="learned"),
                attention=AttentionConfig(bias=True, output_bias=True),
                feedforward=FeedForwardConfig(gated=False, bias=True, activation="relu", d_ff=40),
                norm=NormConfig(kind="layer", bias=True, placement="post", epsilon=1e-5),
            ),
            "opt",
        ),
    ],
)
def test_a_model_of_our_own_is_written_as_the_first_family_that_has_such_a_model(
    config: TransformerConfig, family: str, tmp_path: Path
) -> None:
    model = Transformer(config, seed=3)
    model.save_directory(tmp_path)
    assert settings_of(tmp_path)["model_type"] == family
    assert settings_of(tmp_path)["eos_token_id"] is None
    torch.testing.assert_close(read_back(tmp_path)(IDS).logits, logits(model), rtol=0, atol=1e-5)
    again = Transformer.from_directory(tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_a_model_that_no_family_has_is_refused_with_reasons(tmp_path: Path) -> None:
    model = Transformer(TransformerConfig(vocabulary=61, d_model=32, attention=AttentionConfig(sinks=True)))
    with pytest.raises(ConfigError) as raised:
        model.save_directory(tmp_path)
    for name in FAMILIES:
        assert f"{name} has no such model: " in str(raised.value)
    assert "attention.sinks is True and can only be False" in str(raised.value)
    with pytest.raises(
        ConfigError, match=r"^gpt2 has no such model: .*position.kind is 'rotary' and can only be 'learned'"
    ):
        model.save_directory(tmp_path, family="gpt2")
    with pytest.raises(UsageError, match="no family is called 'gpt3'; did you mean 'gpt2'"):
        model.save_directory(tmp_path, family="gpt3")
    with pytest.raises(UsageError, match="max_shard_size is 0 and must be at least 1 byte"):
        model.save_directory(tmp_path, max_shard_size=0)
    assert not list(tmp_path.iterdir())


def run(program: str, **environment: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | environment)


def test_transformers_need_not_be_there(directories: Directories, tmp_path: Path) -> None:
    run(f"""
import sys

sys.modules["transformers"] = None
from evenkeel import Transformer

Transformer.from_directory({str(directories("gpt2"))!r}).save_directory({str(tmp_path)!r})
""")
    before, after = (load_file(path / "model.safetensors") for path in (directories("gpt2"), tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_package_offers_a_family_by_an_entry_point(directories: Directories, tmp_path: Path) -> None:
    (tmp_path / "lima.py").write_text(
        "from dataclasses import replace\n"
        "from evenkeel.nn.families.llama import LLAMA\n"
        "LIMA = replace(LLAMA, model_type='lima', architecture='LimaForCausalLM')\n"
    )
    metadata = tmp_path / "lima-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lima\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[evenkeel.families]\nlima = lima:LIMA\n")
    source, target = edited(tmp_path / "source", directories("llama"), model_type="lima"), tmp_path / "target"
    run(
        f"from evenkeel import Transformer\n"
        f"Transformer.from_directory({str(source)!r}).save_directory({str(target)!r})\n",
        PYTHONPATH=str(tmp_path),
    )
    assert settings_of(target)["model_type"] == "lima"
    assert settings_of(target)["architectures"] == ["LimaForCausalLM"]


def test_the_page_is_made_of_the_families() -> None:
    docs = Path(__file__).parent.parent / "docs"
    made = "\n".join(runpy.run_path(str(docs / "families.py"))["page"]()) + "\n"
    assert made == (docs / "families.md").read_text(), "run: python docs/families.py > docs/families.md"
