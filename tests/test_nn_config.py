"""Configs of a transformer: contradictions are refused with a remedy, and what is counted is what models have."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from nn_cases import SMALL, VARIANTS, configs, small, token_rows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evenkeel.errors import ConfigError
from evenkeel.nn import (
    AttentionConfig,
    Cache,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    Match,
    NormConfig,
    PositionConfig,
    RotaryScalingConfig,
    Transformer,
    TransformerConfig,
    match_parameters,
)
from evenkeel.nn.matching import Free, Measure
from evenkeel.schema import Change


def word(text: str) -> Any:
    """One that no type allows."""
    return text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerConfig(vocabulary=0), "vocabulary is 0 and must be at least 1"),
        (lambda: TransformerConfig(context=-1), "context is -1 and must be at least 1"),
        (lambda: TransformerConfig(d_model=0), "d_model is 0 and must be at least 1"),
        (
            lambda: TransformerConfig(d_model=30),
            r"d_model is 30 and attention\.heads is 4, .*nearest that does is attention\.heads=[35]$",
        ),
        (
            lambda: small(attention=AttentionConfig(head_dim=7)),
            r"^attention\.head_dim is 7, and rotary positions turn pairs of .*attention\.head_dim=8$",
        ),
        (
            lambda: small(position=PositionConfig(share=0.375)),
            r"head dimension of 8, .*position\.share=0\.375 turns 3 of them; choose a share of an even number",
        ),
        (lambda: small(position=PositionConfig(share=0.1)), r"position\.share=0\.1 turns 0 of them"),
        (lambda: AttentionConfig(heads=0), "attention.heads is 0 and must be at least 1"),
        (lambda: AttentionConfig(key_heads=0), "attention.key_heads is 0 and must be at least 1"),
        (lambda: AttentionConfig(head_dim=0), "attention.head_dim is 0 and must be at least 1"),
        (
            lambda: AttentionConfig(heads=8, key_heads=3),
            r"attention\.heads is 8 and attention\.key_heads is 3, .*attention\.key_heads=(2|4)$",
        ),
        (lambda: AttentionConfig(heads=2, key_heads=4), r"key_heads is 4, .*attention\.key_heads=2$"),
        (lambda: AttentionConfig(scale=0.0), "attention.scale is 0.0; give sqrt, dim, none, or a finite number above"),
        (lambda: AttentionConfig(scale=math.inf), "attention.scale is inf; give"),
        (lambda: AttentionConfig(query_gain=0.0), "attention.query_gain is 0.0 and must be above 0 and finite, .* 1$"),
        (lambda: AttentionConfig(softcap=0.0), "attention.softcap is 0.0 and must be above 0 and finite, .* 50$"),
        (lambda: AttentionConfig(softcap=math.nan), "attention.softcap is nan and must be above 0"),
        (lambda: AttentionConfig(window=0), "attention.window is 0 and must be at least 1"),
        (lambda: AttentionConfig(window=4, global_every=1), "attention.global_every is 1 and must be at least 2"),
        (
            lambda: AttentionConfig(global_every=6),
            r"attention\.global_every is 6 and attention\.window None, .*attention\.window=4096, or leave global_every",
        ),
        (lambda: AttentionConfig(normalizer=word("sofmax")), "normalizer is 'sofmax'; did you mean 'softmax'"),
        (
            lambda: AttentionConfig(sinks=True, normalizer="sigmoid"),
            "attention.sinks take a share of a softmax and attention.normalizer is 'sigmoid'; set sinks=False",
        ),
        (lambda: FeedForwardConfig(activation="gellu"), "feedforward.activation is 'gellu'; did you mean 'gelu'"),
        (lambda: FeedForwardConfig(activation="#"), "feedforward.activation is '#'; known: .*silu"),
        (lambda: FeedForwardConfig(multiple=0), "feedforward.multiple is 0 and must be at least 1"),
        (
            lambda: FeedForwardConfig(packed=True, gated=False),
            "feedforward.packed is True and feedforward.gated False, .*set packed=False or gated=True",
        ),
        (lambda: NormConfig(kind=word("rmss")), "norm.kind is 'rmss'; did you mean 'rms'"),
        (lambda: NormConfig(epsilon=-1e-6), "norm.epsilon is -1e-06 and must be above 0"),
        (lambda: NormConfig(bias=True), "norm.bias is True and norm.kind 'rms', .*set norm.kind='layer' or bias=False"),
        (lambda: EmbeddingConfig(scale=word("sqr")), "embedding.scale is 'sqr'; did you mean 'sqrt'"),
        (lambda: EmbeddingConfig(scale=0.0), "embedding.scale is 0.0 and must be above 0"),
        (lambda: HeadConfig(kind=word("sigmoids")), "head.kind is 'sigmoids'; did you mean 'sigmoid'"),
        (lambda: HeadConfig(softcap=-30.0), "head.softcap is -30.0 and must be above 0"),
        (lambda: HeadConfig(z_loss=-1e-4), "head.z_loss is -0.0001 and must be 0 or above"),
        (lambda: HeadConfig(z_loss=math.inf), "head.z_loss is inf and must be 0 or above and finite"),
        (
            lambda: HeadConfig(kind="sigmoid", z_loss=1e-4),
            "head.z_loss is 0.0001 and head.kind 'sigmoid', .*set z_loss=0",
        ),
        (lambda: PositionConfig(kind=word("rotery")), "position.kind is 'rotery'; did you mean 'rotary'"),
        (lambda: PositionConfig(base=0.0), "position.base is 0.0 and must be above 0"),
        (lambda: PositionConfig(share=0.0), "position.share is 0.0 and must be above 0"),
        (lambda: PositionConfig(share=1.5), "position.share is 1.5 and must be at most 1"),
        (lambda: PositionConfig(buckets=1), "position.buckets is 1 and must be at least 2"),
        (lambda: PositionConfig(farthest=16), "position.farthest is 16 and position.buckets 32, .*above 16, .* 128$"),
        (lambda: RotaryScalingConfig(kind=word("lama3")), "position.scaling.kind is 'lama3'; did you mean 'llama3'"),
        (lambda: RotaryScalingConfig(factor=0.0), "position.scaling.factor is 0.0 and must be above 0"),
        (lambda: RotaryScalingConfig(low_frequency=0.0), "position.scaling.low_frequency is 0.0 and must be above 0"),
        (lambda: RotaryScalingConfig(context=0), "position.scaling.context is 0 and must be at least 1"),
        (
            lambda: RotaryScalingConfig(kind="llama3", high_frequency=1.0),
            "high_frequency is 1.0 and low_frequency 1.0; the high one must be above .* 4 and 1",
        ),
        (lambda: SMALL.flops(0), "length is 0 and must be at least 1"),
    ],
)
def test_what_contradicts_itself_is_refused_with_both_values_and_a_remedy(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vocabulary": 5.0}, "^vocabulary is 5.0 and must be int$"),
        ({"attention": None}, "^attention is None and must hold the fields of AttentionConfig$"),
        ({"attention": {"sinks": 1}}, "^attention.sinks is 1 and must be bool$"),
        ({"attention": {"key_heads": "2"}}, "^attention.key_heads is '2' and must be int or None$"),
        ({"attention": {"scale": None}}, "^attention.scale is None and must be ('(sqrt|dim|none)' or ){3}float$"),
        ({"attention": {"scale": True}}, "^attention.scale is True and must be"),
        ({"attention": {"normalizer": 1}}, "^attention.normalizer is 1 and must be 'softmax' or 'sigmoid'$"),
        ({"position": {"share": True}}, "^position.share is True and must be float$"),
        ({"position": {"scaling": 2.0}}, "^position.scaling is 2.0 and must hold the fields of RotaryScalingConfig$"),
        ({"position": {"scaling": {"factor": "8"}}}, "^position.scaling.factor is '8' and must be float$"),
        ({"position": {"scaling": {"kind": 3}}}, "^position.scaling.kind is 3 and must be 'linear' or 'llama3'$"),
        ({"position": {"scaling": {"factr": 8}}}, "has a field position.scaling.factr; did you mean 'factor'"),
        ({"position": {"scaling": {"kind": "yarn"}}}, "position.scaling.kind is 'yarn'; known: linear, llama3"),
        ({"norm": {"epsilon": [1]}}, r"^norm.epsilon is \[1\] and must be float$"),
        ({"d_model": 30}, "d_model is 30 and attention.heads is 4"),
    ],
)
def test_plain_data_of_another_type_is_refused_by_its_path(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerConfig.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("depht", 3), "a field depht; did you mean 'depth'"),
        (Change("attentoin.scale", "dim"), "there is no axis attentoin.scale; did you mean 'attention'"),
        (Change("attention.scal", "dim"), "a field attention.scal; did you mean 'scale'"),
        (Change("attention.scale.rule", "dim"), "no axis attention.scale.rule; scale is 'sqrt' and has no fields; .*"),
        (Change("position.scaling.factor", 8.0), "scaling is None and has no fields; change scaling itself"),
        (Change("attention", 3), "attention is 3 and must hold the fields"),
        (Change("attention.heads", 5), "d_model is 32 and attention.heads is 5"),
    ],
)
def test_a_change_of_what_there_is_not_is_refused(change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SMALL.changed(change)


def test_a_change_moves_one_axis_and_leaves_the_rest() -> None:
    scaled = small(position=PositionConfig(scaling=RotaryScalingConfig()))
    changed = scaled.changed(Change("position.scaling.factor", 8.0))
    assert changed == small(position=PositionConfig(scaling=RotaryScalingConfig(factor=8.0)))
    assert SMALL.changed(Change("attention.scale", 0.3)) == small(attention=AttentionConfig(scale=0.3))
    assert SMALL.changed(Change("depth", 7)) == small(depth=7)


@trials(max_examples=60, deadline=None)
@given(config=configs())
def test_plain_data_makes_the_same_config_again(config: TransformerConfig) -> None:
    again = TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


PARTS = {
    "embedding": "embedding",
    "positions": "position",
    "bias": "position",
    "norm": "norm",
    "head": "head",
    "attention_norm": "norm",
    "attention_post_norm": "norm",
    "feedforward_norm": "norm",
    "feedforward_post_norm": "norm",
    "attention": "attention",
    "feedforward": "feedforward",
}


def parts_of(model: Transformer) -> Counter[str]:
    """How many parameters each part of a model has, found by name."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        steps = name.split(".")
        found[PARTS[steps[2] if steps[0] == "blocks" else steps[0]]] += parameter.numel()
    return found


@trials(max_examples=60, deadline=None)
@given(config=configs())
def test_counted_parameters_are_those_of_the_model(config: TransformerConfig) -> None:
    model = Transformer(config)
    counted = config.parameters()
    assert Counter({part: count for part, count in counted.items() if count}) == parts_of(model)
    assert config.parameter_count() == model.parameter_count() == sum(counted.values())


@trials(max_examples=40, deadline=None)
@given(config=configs())
def test_a_cache_has_as_many_bytes_as_counted(config: TransformerConfig) -> None:
    dtype = torch.bfloat16
    cache = Cache(config, batch=2, capacity=3, dtype=dtype, device=torch.device("cpu"))
    held = sum(layer.numel() * layer.element_size() for pair in cache._layers for layer in pair)
    assert held == 2 * 3 * config.cache_bytes() == 2 * 3 * config.cache_bytes(4) / 2


def products(config: TransformerConfig, count: int, *, backward: bool = False) -> int:
    """What torch counts in the linear maps of a forward pass over so many tokens, or forward and backward."""
    model = Transformer(config)
    with FlopCounterMode(display=False) as counter:
        logits = model(token_rows(1, count, vocabulary=config.vocabulary)).logits
        assert logits is not None
        if backward:
            logits.sum().backward()
    found = counter.get_flop_counts()["Global"]
    return sum(number for name, number in found.items() if str(name) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("name", ["rotary", "many", "softcaps", "no norms", "learned"])
def test_matrix_products_are_those_that_torch_counts(name: str) -> None:
    config = VARIANTS[name]
    for training in (False, True):
        counted = config.flops(24, training=training)
        assert products(config, 24, backward=training) == 24 * (sum(counted.values()) - counted["scores"])
    assert config.flop_count(7) == sum(config.flops(7).values())


def scores_by_hand(config: TransformerConfig, length: int, queries: range) -> float:
    """Multiply-adds of scores and values, times two, of these queries: each pair that is seen, one by one."""
    pairs = 0
    for layer in range(config.depth):
        attention = config.attention
        whole = attention.global_every is not None and layer % attention.global_every == attention.global_every - 1
        window = None if whole else attention.window
        for query in queries:
            pairs += sum(window is None or query - key < window for key in range(query + 1))
    return 2 * 2 * pairs * config.attention.heads * config.head_dim


@trials(max_examples=50, deadline=None)
@given(config=configs(), length=st.integers(1, 20))
def test_scores_are_counted_pair_by_pair(config: TransformerConfig, length: int) -> None:
    assert config.flops(length)["scores"] == scores_by_hand(config, length, range(length - 1, length))
    each = 3 * scores_by_hand(config, length, range(length)) / length
    assert config.flops(length, training=True)["scores"] == pytest.approx(each, abs=1.5)


def test_scores_of_a_decoded_token_are_those_that_torch_counts() -> None:
    config = small(position=PositionConfig(kind="none"))
    model = Transformer(config)
    cache = Cache(config, batch=1, capacity=24, dtype=torch.float32, device=torch.device("cpu"))
    model(token_rows(1, 16), cache=cache)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(token_rows(1, 1), cache=cache)  # torch counts no fused kernel of a CPU
    found = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert found["aten.bmm"] == config.flops(17)["scores"]
    assert sum(found.values()) == config.flop_count(17)


@pytest.mark.parametrize(
    ("options", "d_model", "size"),
    [
        ({"multiple": 256}, 4096, 11008),  # LLaMA 7B
        ({"multiple": 256}, 5120, 13824),  # LLaMA 13B
        ({}, 100, 267),
        ({"gated": False, "multiple": 64}, 100, 448),
        ({"gated": False}, 100, 400),
        ({"multiple": 7}, 21, 56),
        ({"d_ff": 5, "multiple": 64}, 100, 5),
    ],
)
def test_hidden_sizes_are_rounded_up(options: dict[str, Any], d_model: int, size: int) -> None:
    assert FeedForwardConfig(**options).hidden_size(d_model) == size


def test_which_layers_see_all_tokens() -> None:
    config = AttentionConfig(window=4, global_every=3)
    assert [config.window_of(layer) for layer in range(7)] == [4, 4, None, 4, 4, None, 4]
    assert AttentionConfig(window=4).window_of(5) == 4


def test_a_share_of_channels_is_what_it_was_made_from() -> None:
    for head_dim in range(2, 257, 2):
        for turned in range(2, head_dim + 1, 2):
            assert PositionConfig(share=turned / head_dim).turned(head_dim) == turned


MEASURES: dict[Measure, Callable[[TransformerConfig], int]] = {
    "parameters": lambda config: sum(parts_of(Transformer(config)).values()),
    "flops": lambda config: sum(config.flops(config.context, training=True).values()),
}
BIG = TransformerConfig(vocabulary=512, context=64, depth=3, d_model=96)
CHANGED = {
    "plain": replace(BIG, feedforward=FeedForwardConfig(gated=False, activation="gelu")),
    "grouped": replace(BIG, attention=AttentionConfig(key_heads=1, bias=True, window=9)),
    "multiple": replace(BIG, depth=2, feedforward=FeedForwardConfig(multiple=8, bias=True)),
    "deep": replace(BIG, depth=6, d_model=64, head=HeadConfig(tied=True)),
    "wide heads": replace(BIG, attention=AttentionConfig(heads=3, head_dim=10), norm=NormConfig(placement="sandwich")),
    "part rotary": replace(BIG, position=PositionConfig(share=0.25)),
    "learned": replace(BIG, position=PositionConfig(kind="learned"), attention=AttentionConfig(heads=6)),
    "output gate": replace(BIG, attention=AttentionConfig(output_gate=True, qk_norm=True, sinks=True)),
    "given d_ff": replace(BIG, feedforward=FeedForwardConfig(d_ff=200)),
}


def resized(config: TransformerConfig, free: Free, size: int) -> TransformerConfig | None:
    """With another size, or None where that is no config."""
    if free == "d_ff":
        wrong = size % config.feedforward.multiple
        return None if wrong else replace(config, feedforward=replace(config.feedforward, d_ff=size))
    if config.attention.head_dim is None and size % (2 * config.attention.heads):
        return None
    try:
        found = replace(config, d_model=size)
    except ConfigError:
        return None
    if free == "d_model":
        return found
    count = config.d_ff / config.d_model * size / config.feedforward.multiple
    d_ff = max(1, round(count)) * config.feedforward.multiple
    return replace(found, feedforward=replace(config.feedforward, d_ff=d_ff))


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_hidden_size_makes_variants_equal(name: str, by: Measure) -> None:
    match = match_parameters(CHANGED[name], like=BIG, by=by)
    measured = MEASURES[by](match.config), MEASURES[by](BIG)
    assert (match.size, match.wanted) == measured
    assert match.difference == (measured[0] - measured[1]) / measured[1]
    assert abs(match.difference) <= 0.005
    assert match.config == resized(CHANGED[name], "d_ff", match.config.d_ff)  # nothing else has changed


@pytest.mark.parametrize("free", get_args(Free))
@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("name", CHANGED)
def test_no_other_size_is_nearer(name: str, by: Measure, free: Free) -> None:
    match = match_parameters(CHANGED[name], like=BIG, by=by, free=free)
    count: Callable[[TransformerConfig], int] = {
        "parameters": lambda config: config.parameter_count(),
        "flops": lambda config: config.flop_count(training=True),
    }[by]
    sizes = (resized(CHANGED[name], free, size) for size in range(1, 700))
    found = [abs(count(config) - count(BIG)) for config in sizes if config is not None]
    assert len(found) > 20
    assert abs(match.size - match.wanted) == min(found)
    assert match.config == resized(CHANGED[name], free, match.config.d_ff if free == "d_ff" else match.config.d_model)


@pytest.mark.parametrize("free", get_args(Free))
def test_a_config_matches_itself(free: Free) -> None:
    found = match_parameters(BIG, like=BIG, free=free)
    assert isinstance(found, Match)
    assert (found.config.d_ff, found.config.d_model, found.difference) == (BIG.d_ff, BIG.d_model, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "parameter"}, "by is 'parameter'; did you mean 'parameters'"),
        ({"free": "dff"}, "free is 'dff'; did you mean 'd_ff'"),
        (
            {"like": replace(BIG, depth=1)},
            r"with d_ff=1 the config has [\d,]+ parameters and the other one [\d,]+; make",
        ),
        (
            {"like": replace(BIG, vocabulary=9, d_model=8), "free": "d_model", "by": "flops"},
            "with d_model=8 .* flops and the",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        match_parameters(replace(BIG, vocabulary=4096), **{"like": BIG, **options})
