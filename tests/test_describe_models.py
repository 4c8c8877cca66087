"""Describing what is no decoder's config: live modules, encoders with decoders, recurrences, masks made by hand."""

from __future__ import annotations

import copy
import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_directories import make_model, save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import evenkeel as ek
from evenkeel.architectures.describing import describe_config
from evenkeel.description import Description
from evenkeel.errors import ModelError, UsageError
from evenkeel.report import architecture

_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 80, "num_layers": 2, "num_heads": 4}


class Attend(nn.Module):
    """Attention by hand over a width of 24 in 3 heads: scores times `scale`, under a mask that `hide` makes."""

    def __init__(self, scale: float, hide: Any, cap: float | None = None, on_queries: float = 1.0) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        self.scale, self.hide, self.cap, self.on_queries = scale, hide, cap, on_queries

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (each(x).unflatten(-1, (3, 8)).transpose(1, 2) for each in list(self.maps)[:3])
        scores = (query * self.on_queries) @ key.mT * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        place = torch.arange(x.shape[1])
        scores = scores.masked_fill(self.hide(place[:, None], place[None]), -1e9)
        return self.maps[3]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A block whose names say nothing, with a plain feed-forward of 24 to 96."""

    def __init__(self, attend: nn.Module, function: Any = F.gelu) -> None:
        super().__init__()
        self.a, self.b, self.c = attend, nn.Linear(24, 96, bias=False), nn.Linear(96, 24, bias=False)
        self.n, self.m, self.function = nn.LayerNorm(24), nn.LayerNorm(24), function

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(self.n(x))
        return x + self.c(self.function(self.b(self.m(x))))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.many = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.many:
            x = layer(x)
        return x


def causal(query: Tensor, key: Tensor) -> Tensor:
    return key > query


def described(*layers: nn.Module, length: int = 11) -> Description:
    return ek.describe(Stack(*layers), inputs=torch.zeros(2, length, 24))


# --- attention by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hide", "seen", "window", "chunked"),
    [
        (causal, True, None, False),
        (lambda q, k: k != k, False, None, False),
        (lambda q, k: (k > q) | (k <= q - 5), True, 5, False),
        (lambda q, k: (k > q) | (k <= q - 700), True, 700, False),
        (lambda q, k: (k > q) | (k.div(300, rounding_mode="floor") != q.div(300, rounding_mode="floor")), True, 300, 1),
        (lambda q, k: (q - k).abs() >= 4, False, 4, False),
    ],
)
def test_masks_made_by_hand(hide: Any, seen: bool, window: int | None, chunked: bool) -> None:
    (part,) = described(Layer(Attend(1.0, hide))).attentions
    assert (part.causal, part.window, part.chunked) == (seen, window, bool(chunked))


def test_every_factor_on_the_way_to_the_softmax_counts() -> None:
    found = described(Layer(Attend(0.5, causal, cap=20.0, on_queries=0.25)), Layer(Attend(8**-0.5, causal)))
    first, second = found.attentions
    assert first.scale == pytest.approx(0.125) and first.scale_rule == "1/d" and first.softcap == pytest.approx(20)
    assert second.scale_rule == "1/√d" and second.softcap is None
    assert (first.heads, first.head_dim, first.cached_values) == (3, 8, 48)
    assert (found.norm, found.placement, found.depth, found.d_model) == ("layer", "pre", 2, 24)


def test_a_mask_that_depends_on_the_tokens_is_not_guessed() -> None:
    class Sparse(Attend):
        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (each(x).unflatten(-1, (3, 8)).transpose(1, 2) for each in list(self.maps)[:3])
            scores = query @ key.mT * self.scale
            kept = torch.where(x.sum(-1)[:, None, None] > 0, 0.0, -1e9)
            return self.maps[3](((scores + kept).softmax(-1) @ value).transpose(1, 2).flatten(2))

    (part,) = described(Layer(Sparse(1.0, None))).attentions
    assert part.causal is None and part.scale_rule == "1"


def test_pytorch_s_own_layers() -> None:
    layers = (nn.TransformerEncoderLayer(24, 3, 96, batch_first=True, norm_first=first) for first in (True, True))
    found = described(*layers)
    (part,) = found.attentions
    assert (part.layers, part.heads, part.head_dim, part.scale_rule, part.causal) == (2, 3, 8, "1/√d", False)
    (fed,) = found.feedforwards
    assert (fed.activation, fed.matrices, fed.d_ff, fed.parity) == ("relu", 2, 96, 1.0)
    assert (found.norm, found.placement) == ("layer", "pre")
    parts = {cost.part: cost.parameters for cost in found.costs.parts}
    assert parts["attention"] == 2 * 4 * (24 * 24 + 24) and parts["feed-forward"] == 2 * (2 * 24 * 96 + 96 + 24)
    found = described(*(nn.TransformerEncoderLayer(24, 3, 96, batch_first=True) for _ in range(2)))
    assert found.placement == "post"


# --- rules -------------------------------------------------------------------------------------------------------


def codes(found: Description) -> dict[str, str]:
    return {finding.code: finding.severity for finding in found.findings}


def test_what_is_odd_is_found_and_what_is_not_is_not() -> None:
    assert codes(described(Layer(Attend(8**-0.5, causal)))) == {}
    assert codes(described(Layer(Attend(8**-0.5, causal), torch.sigmoid))) == {"ARC702": "warning"}
    odd = described(Layer(Attend(0.2, causal)))
    assert codes(odd) == {"ARC701": "info"}
    text = architecture.render(odd)
    assert "scaled by 0.2\n" in text and "= other" not in text
    assert codes(described(Layer(Attend(3.0, causal), torch.tanh))) == {"ARC701": "warning", "ARC702": "warning"}


def test_inspecting_finds_the_same_scale_and_sizes() -> None:
    attention, feedforward = ek.nn.AttentionConfig(scale=3.0), ek.nn.FeedForwardConfig(d_ff=96)
    sizes: dict[str, Any] = {"depth": 1, "d_model": 32, "context": 16}
    model = ek.Transformer(ek.TransformerConfig(**sizes, attention=attention, feedforward=feedforward))
    diagnosis = ek.inspect(model, [torch.arange(32).reshape(2, 16)], backward=False)
    (scale,) = (finding for finding in diagnosis.findings if finding.code == "ARC701")
    assert scale.severity == "warning" and scale.sites == ("blocks.0.attention:attention.softmax",)
    assert codes(ek.describe(model))["ARC701"] == "warning"
    by_stat = {(item.site, item.stat): item.values for item in diagnosis.readings}
    sites = {site.kind: site.id for site in reversed(diagnosis.sites)}
    assert by_stat[sites["activation"], "channels"] == (96.0,) and by_stat[sites["activation"], "fan_in"] == (32.0,)
    assert by_stat[sites["attention"], "head_dim"] == (8.0,)


@pytest.mark.parametrize(
    ("scaled", "told"),
    [
        (lambda query: query * 0.25, [(0.25,)]),
        (lambda query: query.divide(4), [(0.25,)]),
        (lambda query: query.mul(other=0.25), [(0.25,)]),
        (lambda query: query * torch.tensor(0.25), []),
        (lambda query: query * torch.full((1,), 0.25), []),
    ],
    ids=["product", "quotient", "by name", "tensor", "tensor of one dimension"],
)
def test_inspecting_tells_no_scale_that_it_has_not_seen(scaled: Any, told: list[tuple[float, ...]]) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.map(x).unflatten(-1, (2, 8)).transpose(1, 2)
            return F.scaled_dot_product_attention(scaled(heads), heads, heads, scale=1.0)

    readings = ek.inspect(Fused(), [torch.randn(2, 9, 16)], backward=False).readings
    assert [item.values for item in readings if item.stat == "score_scale"] == told


# --- live modules ------------------------------------------------------------------------------------------------


def test_a_live_model_is_left_as_it_is_and_told_as_it_runs() -> None:
    model = make_model("llama").train()
    before = {name: item.clone() for name, item in model.state_dict().items()}
    model.model.layers[1].mlp.act_fn = nn.ReLU()
    found = ek.describe(model)
    assert [(part.activation, part.gate) for part in found.feedforwards] == [("silu", "swiglu"), ("relu", "reglu")]
    assert model.training and model.config.use_cache
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
    assert found.model.parameters == sum(item.numel() for item in model.parameters())


def test_a_live_model_with_fused_attention_says_the_same_as_its_config() -> None:
    model = make_model("llama")
    live, config = ek.describe(model), describe_config(json.loads(model.config.to_json_string()))
    for part in (live, config):
        assert (part.attentions[0].causal, part.attentions[0].scale_rule, part.attentions[0].heads) == (True, "1/√d", 4)
    assert live.costs == config.costs and live.feedforwards == config.feedforwards and live.head == config.head


def test_a_live_model_shows_what_a_fused_call_hides() -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mistral", **sizes, **heads, sliding_window=4096)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    found = ek.describe(model)
    (part,) = found.attentions
    assert part.window == 4096 and part.causal
    assert model.config._attn_implementation == "sdpa"


def test_a_model_compiled_or_without_memory_is_described_as_it_is() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=32, n_head=4, vocab_size=96)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    model = AutoModelForCausalLM.from_config(config)
    wanted = ek.describe(model)
    assert wanted.attentions[0].causal and wanted.model.class_name == "GPT2LMHeadModel"
    for other in (torch.compile(model), bare):
        found = ek.describe(other)  # pyright: ignore[reportArgumentType]
        assert (found.model.class_name, found.attentions, found.feedforwards, found.head, found.costs) == (
            "GPT2LMHeadModel",
            wanted.attentions,
            wanted.feedforwards,
            wanted.head,
            wanted.costs,
        )


def test_our_own_config_costs_no_memory_and_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"model_type": "evenkeel", "vocabulary": 10**12, "d_model": 128, "depth": 1}  # 512 TB a matrix
    (tmp_path / "config.json").write_text(json.dumps(wide))
    assert ek.describe(tmp_path).model.parameters > 2 * 128 * 10**12
    monkeypatch.setattr("evenkeel.architectures.describing.allocation._MOST", 40)
    (tmp_path / "config.json").write_text(json.dumps({**wide, "depth": 40}))
    with pytest.raises(ModelError, match="more than 40 tensors"):
        ek.describe(tmp_path)
    with pytest.raises(ModelError, match="more than 40 tensors"):
        describe_config({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 40})


def test_what_a_row_of_tokens_never_reaches_is_said_and_not_counted_for_a_token() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = describe_config(
        {
            "model_type": "llava",
            "text_config": {"model_type": "llama", "vocab_size": 96, **sizes},
            "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **sizes},
        }
    )
    text = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=96, **sizes))
    assert found.costs.active == sum(item.numel() for item in text.parameters()) < found.costs.parameters
    assert [note for note in found.notes if "not read" in note and "model.vision_tower" in note]


def test_windows_of_a_picture_are_no_heads() -> None:
    settings = {"image_size": 32, "patch_size": 4, "window_size": 2, "embed_dim": 24, "depths": [2], "num_heads": [3]}
    found = describe_config({"model_type": "swin", **settings})
    assert {(part.heads, part.key_heads, part.head_dim) for part in found.attentions} == {(3, 3, 8)}


def test_windows_bound_what_is_cached() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6, "vocab_size": 96, **sizes}
    found = describe_config(settings, context=50)
    assert found.costs.cached_bytes == 2 * 2 * 16 * 4
    assert found.costs.context_bytes == 6 * 2 * 2 * 16 * 4
    assert "256 bytes per token" in found.to_text() and "1.5 KiB for 50 tokens" in found.to_text()


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (5, {}, "was given int"),
        ("gpt2", {"context": 0}, "context is 0"),
        ("gpt2", {"inputs": (torch.zeros(1),)}, "leave them out"),
    ],
)
def test_what_describe_cannot_take_is_refused(model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ek.describe(model, **given)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ModelError):
            ek.describe("no_such_type")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_our_own_model_and_its_directory(tmp_path: Path) -> None:
    feedforward = ek.nn.FeedForwardConfig(d_ff=96)
    model = ek.Transformer(ek.TransformerConfig(depth=2, d_model=32, feedforward=feedforward))
    model.save(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").unlink()
    found = ek.describe(tmp_path / "own")
    (part,), (fed,) = found.attentions, found.feedforwards
    assert (part.layers, part.heads, part.head_dim, part.causal, part.rotary_dim) == (2, 4, 8, True, 8)
    assert (fed.gate, fed.matrices, fed.d_ff) == ("swiglu", 3, 96)
    assert found.model.parameters == sum(item.numel() for item in model.parameters())
    assert (found.norm, found.placement, found.positions) == ("rms", "pre", ("rotary",))


def test_a_module_without_a_config_needs_inputs() -> None:
    with pytest.raises(UsageError, match="inputs="):
        ek.describe(Stack(Layer(Attend(1.0, causal))))


# --- other forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({"feed_forward_proj": "relu"}, ("relu", "", 2)),
        ({"feed_forward_proj": "gated-gelu"}, ("gelu_tanh", "geglu_tanh", 3)),
    ],
    ids=["T5", "T5 v1.1"],
)
def test_an_encoder_with_a_decoder(settings: dict[str, Any], form: tuple[str, str, int]) -> None:
    found = describe_config({"model_type": "t5", **_T5, **settings})
    kinds = [(part.kind, part.causal, part.layers, part.positions) for part in found.attentions]
    bias = ("relative bias",)
    assert sorted(kinds) == [("cross", False, 2, ()), ("self", False, 2, bias), ("self", True, 2, bias)]
    assert {(part.scale, part.scale_rule) for part in found.attentions} == {(1.0, "1")}
    (fed,) = found.feedforwards
    assert (fed.activation, fed.gate, fed.matrices) == form and fed.layers == 4
    assert (found.norm, found.placement, found.head.tied) == ("rms", "pre", True)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **_T5, **settings))
    assert found.model.parameters == sum(item.numel() for item in model.parameters())
    assert found.costs.cached_bytes == 2 * 2 * 32 * 4  # keys and values of the decoder's own attention, float32
    maps = sum(item.numel() for item in model.parameters() if item.dim() == 2)
    tables = 2 * 32 * 4  # of relative positions, one a stack; the embedding's is the head's
    attention = sum(2 * 4 * (8 + 8) * found.costs.context * part.layers for part in found.attentions)
    assert found.costs.flops == pytest.approx(2 * (maps - tables) + attention)


def test_a_recurrence_is_named_and_what_cannot_be_told_is_not_told() -> None:
    settings = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    found = describe_config({"model_type": "mamba", **settings})
    assert found.attentions == found.feedforwards == () and found.costs.cached_bytes == 0
    assert [site.path for site in found.sites if site.kind == "recurrence"] == [
        "backbone.layers.0.mixer",
        "backbone.layers.1.mixer",
    ]
    assert found.norm == "not found" and {cost.part for cost in found.costs.parts} >= {"recurrence", "embedding"}


def test_a_model_that_asks_for_values_is_run_small_and_says_so() -> None:
    settings = {"vocab_size": 700, "emb_dim": 32, "n_layers": 5, "n_heads": 4, "max_position_embeddings": 64}
    found = describe_config({"model_type": "xlm", **settings})
    assert found.method == "shrunk" and any("small real instance" in note for note in found.notes)
    (part,), (fed,) = found.attentions, found.feedforwards
    assert (part.layers, part.heads, part.head_dim, part.scale_rule) == (5, 4, 8, "1/√d")
    assert (fed.layers, fed.activation, fed.d_ff) == (5, "gelu", 128)
    assert found.costs.flops is None and found.costs.active is None and found.head.outputs == 700
    block = 4 * (32 * 32 + 32) + 2 * 32 * 128 + 32 + 128 + 4 * 32
    assert found.model.parameters == 5 * block + 700 * 32 + 700 + 64 * 32 + 2 * 32


def test_a_model_that_cannot_be_run_at_all_says_why() -> None:
    with pytest.raises(ModelError, match=r"shapes alone .* small instance"):
        describe_config({"model_type": "jetmoe"})
    with pytest.raises(ModelError, match=r"unknown to transformers .* did you mean 'llama'"):
        describe_config({"model_type": "lama"})


def test_a_description_is_read_back_as_it_was() -> None:
    found = describe_config({"model_type": "gemma2", "num_hidden_layers": 2})
    data = copy.deepcopy(found.to_dict())
    assert Description.from_dict(data).to_dict() == data
    read = Description.from_dict(data)
    assert read.attentions == found.attentions and read.costs == found.costs and read.head == found.head


def test_a_directory_needs_its_config_alone(tmp_path: Path) -> None:
    directory = save("gpt2", tmp_path / "gpt2", tokenizer=False)
    for file in directory.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    found = ek.describe(directory)
    assert found == ek.describe(directory / "config.json") or found.costs == ek.describe(directory).costs
    assert found.attentions[0].scale == pytest.approx(1 / math.sqrt(8))


# --- our own model, whose config is the oracle --------------------------------------------------------------------


def own(**choices: Any) -> tuple[nn.Module, Description]:
    model = ek.Transformer(ek.TransformerConfig(depth=2, d_model=32, context=64, **choices))
    found = ek.describe(model)
    assert found.model.parameters == sum(item.numel() for item in model.parameters())
    return model, found


@pytest.mark.parametrize(
    ("position", "told", "rotary"),
    [
        (ek.nn.PositionConfig(kind="rotary"), ("rotary",), 8),
        (ek.nn.PositionConfig(kind="rotary", share=0.5), ("rotary",), 4),
        (ek.nn.PositionConfig(kind="learned"), ("learned",), 0),
        (ek.nn.PositionConfig(kind="alibi"), ("alibi",), 0),
        (ek.nn.PositionConfig(kind="relative"), ("relative bias",), 0),
        (ek.nn.PositionConfig(kind="none"), (), 0),
    ],
)
def test_positions_of_our_own(position: ek.nn.PositionConfig, told: tuple[str, ...], rotary: int) -> None:
    _, found = own(position=position)
    (part,) = found.attentions
    assert found.positions == told and part.rotary_dim == rotary and part.causal


def test_attention_of_our_own() -> None:
    config = ek.nn.AttentionConfig(key_heads=2, qk_norm=True, softcap=30.0, window=9, global_every=2, scale="dim")
    _, found = own(attention=config)
    local, everywhere = found.attentions
    assert (local.window, everywhere.window, local.layers, everywhere.layers) == (9, None, 1, 1)
    for part in (local, everywhere):
        assert (part.heads, part.key_heads, part.softcap, part.scale_rule) == (4, 2, 30.0, "1/d")
        assert part.qk_norm == "rms, per head" and part.causal


def test_what_no_instrument_measures_is_described() -> None:
    model, found = own(attention=ek.nn.AttentionConfig(sinks=True, output_gate=True, window=40))
    (part,), (fed,) = found.attentions, found.feedforwards
    assert part.sinks and part.window == 40 and part.normalizer == "softmax" and fed.gate == "swiglu"
    parts = {cost.part: cost.parameters for cost in found.costs.parts}
    assert parts["attention"] == sum(item.numel() for name, item in model.named_parameters() if ".attention." in name)
    _, found = own(attention=ek.nn.AttentionConfig(normalizer="sigmoid"))
    (part,) = found.attentions
    assert part.normalizer == "sigmoid" and part.positions == ("rotary",) and part.causal


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "none"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_our_own(kind: Any, placement: Any) -> None:
    _, found = own(norm=ek.nn.NormConfig(kind=kind, placement=placement))
    assert (found.norm, found.placement) == ("none" if placement == "none" else kind, placement)


def test_feedforwards_and_head_of_our_own() -> None:
    feedforward = ek.nn.FeedForwardConfig(activation="gelu", packed=True, d_ff=80)
    _, found = own(feedforward=feedforward, head=ek.nn.HeadConfig(tied=True, softcap=20.0))
    (part,) = found.feedforwards
    assert (part.activation, part.gate, part.matrices, part.d_ff) == ("gelu", "geglu", 3, 80)
    assert (found.head.outputs, found.head.tied, found.head.softcap) == (256, True, 20.0)
    _, found = own(feedforward=ek.nn.FeedForwardConfig(activation="relu2", gated=False, bias=True, d_ff=128))
    (part,) = found.feedforwards
    assert (part.activation, part.gate, part.matrices, part.parity) == ("relu2", "", 2, 1.0)


def test_a_sum_of_two_tokens_is_no_residual_sum() -> None:
    settings = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}
    found = describe_config({"model_type": "rwkv", **settings, "attention_hidden_size": 32})
    (part,) = found.feedforwards
    assert (part.activation, part.gate, part.d_ff) == ("relu2", "", 128)
    assert (found.norm, found.placement) == ("layer", "pre")
