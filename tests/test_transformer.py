"""The transformer: bad configs are refused, variants share their weights, and forward equals independent twins."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from evenkeel.errors import ConfigError, ModelError, UsageError
from evenkeel.nn import (
    AttentionConfig,
    Cache,
    FeedForwardConfig,
    Head,
    HeadConfig,
    NormConfig,
    Transformer,
    TransformerConfig,
)

SMALL = TransformerConfig(vocabulary=61, context=24, depth=3, d_model=32, attention=AttentionConfig(heads=4))
BARE = replace(
    SMALL,
    attention=AttentionConfig(heads=2, scale="none"),
    feedforward=FeedForwardConfig(activation="sigmoid", gated=False, residual=False),
    norm=NormConfig(placement="none"),
)
IDS = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TransformerConfig(d_model=96, attention=AttentionConfig(heads=7)),
            r"d_model is 96 and attention.heads is 7, .*attention.heads=(6|8)",
        ),
        (
            lambda: TransformerConfig(d_model=36, attention=AttentionConfig(heads=4)),
            r"d_model 36 with attention.heads 4 gives a head dimension of 9, .*d_model=40",
        ),
        (lambda: TransformerConfig(depth=0), "depth is 0 and must be at least 1"),
        (lambda: AttentionConfig(heads=-2), "attention.heads is -2 and must be at least 1"),
        (lambda: AttentionConfig(scale="sqr"), "attention.scale is 'sqr'; did you mean 'sqrt'"),  # type: ignore[arg-type]
        (lambda: AttentionConfig(scale=math.nan), "attention.scale is nan; give sqrt, dim, none, or a finite number"),
        (lambda: FeedForwardConfig(activation="siluu"), "feedforward.activation is 'siluu'; did you mean 'silu'"),
        (lambda: FeedForwardConfig(d_ff=0), "feedforward.d_ff is 0 and must be at least 1"),
        (lambda: NormConfig(placement="after"), "norm.placement is 'after'; known: pre, post"),  # type: ignore[arg-type]
        (lambda: NormConfig(epsilon=0.0), "norm.epsilon is 0.0 and must be above 0"),
        (lambda: TransformerConfig.from_dict({"dept": 3}), "the config has a field dept; did you mean 'depth'"),
        (
            lambda: TransformerConfig.from_dict({"attention": {"head": 3}}),
            "a field attention.head; did you mean 'heads'",
        ),
        (lambda: TransformerConfig.from_dict({"attention": 3}), "attention is 3 and must hold the fields of Attention"),
        (lambda: TransformerConfig.from_dict({"depth": "3"}), "depth is '3' and must be int"),
        (lambda: TransformerConfig.from_dict({"depth": True}), "depth is True and must be int"),
        (lambda: TransformerConfig(d_model=128.0), "d_model is 128.0 and must be int"),  # type: ignore[arg-type]
        (lambda: TransformerConfig(d_model=math.nan), "d_model is nan and must be int"),  # type: ignore[arg-type]
        (lambda: TransformerConfig(attention={"heads": 2}), "must hold the fields of AttentionConfig"),  # type: ignore[arg-type]
        (lambda: AttentionConfig(softcap="50"), "attention.softcap is '50' and must be float or None"),  # type: ignore[arg-type]
        (lambda: AttentionConfig(scale=True), "attention.scale is True and must be"),  # type: ignore[arg-type]
        (lambda: FeedForwardConfig(gated="no"), "feedforward.gated is 'no' and must be bool"),  # type: ignore[arg-type]
        (lambda: FeedForwardConfig(activation=torch.relu), "feedforward.activation is .* and must be str"),  # type: ignore[arg-type]
        (lambda: TransformerConfig(d_model=10**15 + 1), r"the nearest that does is attention.heads=\d+$"),
    ],
)
def test_a_config_that_contradicts_itself_says_what_to_type(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(("scale", "factor"), [("sqrt", 0.25), ("dim", 0.0625), ("none", 1.0), (0.3, 0.3)])
def test_scores_are_scaled_as_the_config_says(scale: float, factor: float) -> None:
    assert AttentionConfig(scale=scale).score_scale(16) == factor


def test_hidden_sizes_have_equal_parameters() -> None:
    assert FeedForwardConfig(gated=False).hidden_size(96) == 384
    assert FeedForwardConfig(gated=True).hidden_size(96) == 256  # 3·96·256 = 2·96·384
    assert FeedForwardConfig(d_ff=100).hidden_size(96) == 100


def test_variants_of_one_seed_share_what_they_have_in_common() -> None:
    torch.manual_seed(1)
    first = Transformer(SMALL, seed=3).state_dict()
    torch.manual_seed(2)
    variant = Transformer(replace(BARE, depth=5), seed=3).state_dict()
    shared = [name for name in first if name in variant and first[name].shape == variant[name].shape]
    assert {"embedding.weight", "head.weight", "blocks.2.attention.key.weight"} <= set(shared)
    assert all(torch.equal(first[name], variant[name]) for name in shared)
    other = Transformer(SMALL, seed=4).state_dict()
    assert not any(torch.equal(first[name], other[name]) for name in first if not name.endswith("norm.weight"))
    assert not torch.equal(first["blocks.0.attention.key.weight"], first["blocks.0.attention.query.weight"])


def test_nothing_of_a_start_depends_on_the_global_random_state() -> None:
    biased = replace(
        SMALL,
        attention=replace(SMALL.attention, bias=True, output_bias=True),
        feedforward=replace(SMALL.feedforward, bias=True),
        head=replace(SMALL.head, tied=False, bias=True),
    )
    torch.manual_seed(1)
    first = Transformer(biased, seed=3).state_dict()
    torch.manual_seed(2)
    second = Transformer(biased, seed=3).state_dict()
    assert any(name.endswith("bias") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_packed_matrices_start_as_those_that_are_apart() -> None:
    packed = replace(SMALL, feedforward=replace(SMALL.feedforward, packed=True))
    torch.testing.assert_close(Transformer(packed)(IDS).logits, Transformer(SMALL)(IDS).logits, rtol=1e-5, atol=1e-5)


def test_products_keep_the_variance_of_their_input_at_initialisation() -> None:
    config = TransformerConfig(d_model=256, depth=1, attention=AttentionConfig(heads=4))
    block = Transformer(config).blocks[0]
    x = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    for name in ("attention.query", "attention.key", "feedforward.gate", "feedforward.up"):
        assert block.get_submodule(name)(x).var().item() == pytest.approx(1, rel=0.05), name
    assert Transformer(config).embedding.weight.var().item() == pytest.approx(1, rel=0.05)


def test_the_default_transformer_is_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = Transformer(SMALL)
    settings = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=SMALL.feedforward.hidden_size(32),
        num_hidden_layers=3,
        num_attention_heads=4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    twin = LlamaForCausalLM(settings)
    renamed = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"}
    for layer in range(3):
        for theirs, own in {
            "input_layernorm": "attention_norm",
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.o_proj": "attention.output",
            "post_attention_layernorm": "feedforward_norm",
            "mlp.gate_proj": "feedforward.gate",
            "mlp.up_proj": "feedforward.up",
            "mlp.down_proj": "feedforward.down",
        }.items():
            renamed[f"model.layers.{layer}.{theirs}"] = f"blocks.{layer}.{own}"
    weights = ours.state_dict()
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(len(name)))
    ours.load_state_dict(weights)
    twin.load_state_dict({f"{theirs}.weight": weights[f"{own}.weight"] for theirs, own in renamed.items()})

    labels = IDS.clone()
    labels[0, :5] = -100
    result, expected = ours(IDS, labels=labels), twin(input_ids=IDS, labels=labels)
    torch.testing.assert_close(ours(IDS).logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-6, atol=1e-6)
    result.loss.backward()
    expected.loss.backward()
    for theirs, own in renamed.items():
        gradient = ours.get_parameter(f"{own}.weight").grad
        torch.testing.assert_close(gradient, twin.get_parameter(f"{theirs}.weight").grad, rtol=1e-4, atol=1e-6)


def bare_twin(weights: dict[str, NDArray[np.float64]], ids: NDArray[np.int64], config: TransformerConfig) -> NDArray:
    """The transformer without norms in float64: rotary positions as complex numbers, softmax by definition."""
    x = weights["embedding.weight"][ids]
    size, length = config.head_dim, ids.shape[1]
    turn = np.exp(1j * np.outer(np.arange(length), 10_000.0 ** -(np.arange(0, size, 2) / size)))

    def heads(y: NDArray) -> NDArray:
        return y.reshape(*y.shape[:2], -1, size).transpose(0, 2, 1, 3)

    def rotated(y: NDArray) -> NDArray:
        turned = (y[..., : size // 2] + 1j * y[..., size // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    for layer in range(config.depth):
        part = {
            name.split(".", 2)[2]: value.T for name, value in weights.items() if name.startswith(f"blocks.{layer}.")
        }
        query, key, value = (heads(x @ part[f"attention.{name}.weight"]) for name in ("query", "key", "value"))
        scores = config.attention.score_scale(size) * rotated(query) @ rotated(key).swapaxes(-1, -2)
        odds = np.exp(np.where(np.tril(np.ones((length, length), dtype=bool)), scores, -np.inf))
        mixed = (odds / odds.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        mixed = mixed @ part["attention.output.weight"]
        x = x + mixed if config.attention.residual else mixed
        fed = 1 / (1 + np.exp(-x @ part["feedforward.up.weight"])) @ part["feedforward.down.weight"]
        x = x + fed if config.feedforward.residual else fed
    return x @ weights["head.weight"].T


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale", ["none", "dim", 0.3])
def test_without_norms_it_is_its_float64_twin(scale: float, residual: bool) -> None:
    config = replace(BARE, attention=AttentionConfig(heads=2, scale=scale, residual=residual))
    model = Transformer(config).double()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = bare_twin(weights, IDS.numpy(), config)
    np.testing.assert_allclose(model(IDS).logits.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UsageError, match="25 tokens and the model's context is 24"):
        Transformer(SMALL)(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.parametrize("ids", [IDS[0], IDS.float(), IDS[None]])
def test_what_are_no_rows_of_token_ids_is_refused(ids: torch.Tensor) -> None:
    model = Transformer(SMALL)
    for run in (model, lambda ids: model.generate(ids, max_new_tokens=2)):
        with pytest.raises(UsageError, match=r"input_ids are torch\..* of shape .* and must be int64 rows"):
            run(ids)


def test_tokens_of_another_vocabulary_are_named() -> None:
    with pytest.raises(UsageError, match="run from 3 to 61 and the vocabulary is 61; give the tokens of the tokenizer"):
        Transformer(SMALL)(torch.tensor([[3, 61]]))


def test_a_cache_of_other_rows_and_a_tied_head_without_a_matrix_are_refused() -> None:
    cache = Cache(SMALL, batch=2, capacity=24, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(UsageError, match="the cache is of 2 rows and 3 came; make one with batch=3"):
        Transformer(SMALL)(IDS, cache=cache)
    with pytest.raises(UsageError, match=r"a tied head has no weight of its own; .*head\(x, embedding.weight\)"):
        Head(8, 5, HeadConfig(tied=True))(torch.zeros(1, 8))


@pytest.mark.parametrize("config", [SMALL, replace(BARE, attention=AttentionConfig(heads=2, scale=0.3))])
def test_a_saved_model_comes_back(tmp_path: Path, config: TransformerConfig) -> None:
    model = Transformer(config, seed=5)
    model.save(tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new/folder/config.json").read_text())["model_type"] == "evenkeel"
    loaded = Transformer.load(tmp_path / "new" / "folder")
    assert loaded.config == config
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_saved_model_comes_back_in_its_dtype_and_stays_when_its_file_changes(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = Transformer(SMALL).to(dtype)
    model.save(tmp_path)
    loaded = Transformer.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * (tmp_path / "model.safetensors").stat().st_size)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == dtype and parameter.requires_grad, name
        assert torch.equal(parameter, model.get_parameter(name)), name


def _drop_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, directory / "model.safetensors")


def _edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda directory: (directory / "config.json").unlink(), ModelError, "FileNotFoundError.*save the model anew"),
        (lambda directory: (directory / "config.json").write_text("{"), ModelError, "JSONDecodeError.*save the model"),
        (lambda directory: (directory / "config.json").write_text('{"a":' * 99_999), ModelError, "RecursionError"),
        (lambda directory: (directory / "config.json").write_text("[]"), ModelError, "is not of model_type 'evenkeel'"),
        (lambda directory: (directory / "model.safetensors").write_bytes(b"x" * 99), ModelError, "cannot be read"),
        (_drop_a_weight, ModelError, "do not fit .*head.weight"),
        (lambda directory: _edit(directory, model_type="llama"), ModelError, "is not of model_type 'evenkeel'"),
        (lambda directory: _edit(directory, depth=4), ModelError, "do not fit .*blocks.3"),
        (lambda directory: _edit(directory, depth=10**12), ModelError, "do not fit .depth 1000000000000 "),
        (lambda directory: _edit(directory, vocabulary=10**18), ModelError, "do not fit .* parameters"),
        (lambda directory: _edit(directory, wings=2), ConfigError, "the config has a field wings"),
    ],
)
def test_a_damaged_directory_is_one_line_that_says_what(
    tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    Transformer(SMALL).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as raised:
        Transformer.load(tmp_path)
    assert "\n" not in str(raised.value)
