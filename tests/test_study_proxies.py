"""`--like DIR`: a small config with the choices of a Hugging Face model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import model_directories
import pytest
from study_files import config_alone

from evenkeel.errors import ConfigError, ModelError
from evenkeel.nn import AttentionConfig, FeedForwardConfig, HeadConfig, Transformer, TransformerConfig
from evenkeel.nn.config.axes import nested
from evenkeel.studies.reading.arms import config_of
from evenkeel.studies.reading.proxies import proxy
from evenkeel.studies.reading.specifications import read_study


def test_a_proxy_keeps_kinds_and_proportions(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    small = proxy(config_alone(tmp_path, "llama", rope_theta=5e5, rope_scaling=scaling, tie_word_embeddings=True))
    assert small == TransformerConfig(
        vocabulary=256,
        context=64,
        depth=2,
        d_model=64,
        position=replace(TransformerConfig().position, base=5e5),
        attention=AttentionConfig(heads=4, key_heads=1),
        feedforward=FeedForwardConfig(activation="silu", gated=True, d_ff=224),
        head=HeadConfig(tied=True),
    )
    wide = proxy(tmp_path, depth=4, d_model=256)
    assert (wide.depth, wide.d_ff, wide.attention.heads, wide.attention.key_heads) == (4, 896, 8, 2)


def test_a_proxy_of_gemma_2_keeps_softcaps_windows_and_what_its_scale_means(tmp_path: Path) -> None:
    fields = {"hidden_size": 4608, "head_dim": 128, "num_key_value_heads": 16, "query_pre_attn_scalar": 144}
    small = proxy(config_alone(tmp_path, "gemma2", **fields, intermediate_size=36_864, sliding_window=4096))
    attention = small.attention
    assert (attention.softcap, small.head.softcap, small.embedding.scale) == (50.0, 30.0, "sqrt")
    assert (small.norm.placement, small.norm.offset, small.feedforward.activation) == ("sandwich", True, "gelu_tanh")
    assert (attention.window, attention.global_every, attention.heads, attention.key_heads) == (32, 2, 2, 1)
    assert small.d_ff / small.d_model == 8
    assert attention.score_scale(small.head_dim) * small.head_dim**0.5 == pytest.approx((128 / 144) ** 0.5)
    Transformer(small)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_model_has_a_proxy_without_its_weights(tmp_path: Path, family: str) -> None:
    path = model_directories.save(family, tmp_path / family, tokenizer=False)
    read = Transformer.from_directory(path).config
    (path / "model.safetensors").unlink()
    small = proxy(path, d_model=read.d_model)
    assert small.feedforward == replace(read.feedforward, d_ff=read.d_ff)
    assert (small.norm, small.head, small.position) == (read.norm, read.head, read.position)


def test_a_model_of_our_own_has_a_proxy(tmp_path: Path) -> None:
    own = TransformerConfig(
        d_model=64, attention=AttentionConfig(scale="dim", sinks=True), head=HeadConfig(z_loss=1e-4)
    )
    Transformer(own).save(tmp_path)
    small = proxy(tmp_path, d_model=128)
    assert (small.attention, small.head) == (own.attention, own.head)


@pytest.mark.parametrize(("heads", "groups"), [(71, 1), (14, 2), (12, 12), (40, 5), (6, 2)])
@pytest.mark.parametrize("d_model", [32, 96, 128])
def test_every_grouping_has_a_proxy_that_can_be_built(tmp_path: Path, heads: int, groups: int, d_model: int) -> None:
    fields = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": 64 * heads}
    small = proxy(config_alone(tmp_path, "llama", **fields), depth=1, d_model=d_model)
    width = small.attention.heads * small.head_dim
    assert abs(width - d_model) <= small.attention.heads  # of even heads, the nearest
    if d_model == 128 and heads < 64:
        assert small.attention.heads / small.attention.groups == heads / groups
    assert sum(p.numel() for p in Transformer(small).parameters()) == small.parameter_count()


def test_like_is_the_model_of_every_arm_and_its_own_arm_the_baseline(tmp_path: Path) -> None:
    like = config_alone(tmp_path, "llama")
    study = read_study(["feedforward=relu,swiglu", "d_model=128", "attention.scale=dim"], like=like)
    assert study.baseline == "swiglu"  # LLaMA's
    assert study.model == nested({"attention.scale": "dim"}, proxy(like, d_model=128).to_dict())
    assert config_of(study, study.arms[1]).d_ff == 448
    assert read_study(["feedforward=relu,gelu"], like=like).baseline == "relu"
    assert read_study(["feedforward=relu,swiglu"], like=like, baseline="relu").baseline == "relu"


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("mixtral", {}, "has model_type 'mixtral', and choices are read of llama, .*; write this model's as axes"),
        ("llama", {"hidden_act": "snake"}, "cannot be shrunk: config.json has hidden_act 'snake', which no Transf"),
        ("llama", {"hidden_size": None}, "cannot be shrunk: config.json has "),
        ("gpt2", {"n_embd": 768}, "cannot be shrunk: config.json has no vocab_size|no n_"),
    ],
)
def test_a_model_that_cannot_be_mapped_is_refused(
    tmp_path: Path, model_type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(["depth=2,4"], like=config_alone(tmp_path, model_type, **fields))
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no config"):
        read_study(["depth=2,4"], like=str(tmp_path))
    with pytest.raises(ModelError, match="there is no directory 'llama'; give one with the config"):
        read_study(["depth=2,4"], like="llama")
