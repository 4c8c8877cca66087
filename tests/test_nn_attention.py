"""Attention as a layer equals its definition, score by score, and what torch and transformers have of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_cases import mapped, normal, rms, stirred
from torch import Tensor, nn

from evenkeel.errors import ConfigError, UsageError
from evenkeel.nn import (
    Alibi,
    Attention,
    AttentionConfig,
    PositionConfig,
    RelativeBias,
    Rotary,
    RotaryScalingConfig,
)

WIDTH, BATCH, LENGTH, KEYS = 24, 2, 7, 9


def sees(layer: Attention, query: int, key: int, *, crossing: bool) -> bool:
    window = None if crossing or (layer.layer + 1) % (layer.config.global_every or 10**9) == 0 else layer.config.window
    return crossing or ((key <= query or not layer.causal) and (window is None or abs(query - key) < window))


def attended(
    layer: Attention,
    x: Tensor,
    memory: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    bias: Callable[[int, int, int], Tensor | float] = lambda head, query, key: 0.0,
    turned: Callable[[Tensor], Tensor] = lambda heads: heads,
) -> Tensor:
    """Attention by its definition, score by score. bias: of head, query, key; turned: (length, d_k) of one head."""
    config, size = layer.config, layer.head_dim
    x, source = x.double(), (x if memory is None else memory).double()
    query, key, value = mapped(x, layer.query), mapped(source, layer.key), mapped(source, layer.value)
    rules = {"sqrt": 1 / math.sqrt(size), "dim": 1 / size, "none": 1.0}
    factor = rules[config.scale] if isinstance(config.scale, str) else config.scale
    lengths = x.shape[1], source.shape[1]
    whole = torch.ones(1, 1, 1, 1, dtype=torch.bool) if mask is None else mask
    whole = whole.expand(len(x), config.heads, *lengths)
    rows = []
    for row in range(len(x)):
        outputs = []
        for head in range(config.heads):
            group = head // (config.heads // (config.key_heads or config.heads))
            mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            q, k, v = query[row, :, mine], key[row, :, theirs], value[row, :, theirs]
            if layer.query_norm is not None and layer.key_norm is not None:
                shift = int(layer.query_norm.offset)
                q = rms(q, layer.query_norm.weight.double() + shift, layer.query_norm.epsilon)
                k = rms(k, layer.key_norm.weight.double() + shift, layer.key_norm.epsilon)
            q, k = turned(q), turned(k)
            for i in range(lengths[0]):
                crossing = memory is not None
                seen = [
                    j
                    for j in range(lengths[1])
                    if sees(layer, i, j, crossing=crossing) and bool(whole[row, head, i, j])
                ]
                scores = [factor * (q[i] * k[j]).sum() for j in seen]
                if config.softcap is not None:
                    scores = [config.softcap * torch.tanh(score / config.softcap) for score in scores]
                scores = [score + bias(head, i, j) for score, j in zip(scores, seen, strict=True)]
                if config.normalizer == "sigmoid":
                    weights = [1 / (1 + torch.exp(-(score - math.log(lengths[1])))) for score in scores]
                else:
                    extra = 0.0 if layer.sinks is None else layer.sinks[head].double().exp()
                    total = sum((score.exp() for score in scores), extra * torch.ones((), dtype=torch.float64))
                    weights = [score.exp() / total for score in scores]
                parts = [weight * v[j] for weight, j in zip(weights, seen, strict=True)]
                outputs.append(torch.stack(parts).sum(0) if parts else torch.zeros(size, dtype=torch.float64))
        rows.append(torch.stack(outputs).view(config.heads, lengths[0], size).transpose(0, 1).flatten(1))
    joined = torch.stack(rows)
    if layer.gate is not None:
        joined = joined * torch.sigmoid(mapped(x, layer.gate))
    return mapped(joined, layer.output)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"key_heads": 2},
    "one key head, other head_dim": {"key_heads": 1, "head_dim": 5},
    "dim": {"scale": "dim"},
    "no scale": {"scale": "none"},
    "scale of one's own": {"scale": 0.3},
    "bias": {"bias": True},
    "output bias": {"output_bias": True},
    "qk_norm": {"qk_norm": True},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": True},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "sigmoid": {"normalizer": "sigmoid"},
    "output gate": {"output_gate": True},
    "all": {
        "key_heads": 2,
        "head_dim": 10,
        "scale": 0.8,
        "bias": True,
        "output_bias": True,
        "qk_norm": True,
        "softcap": 1.5,
        "sinks": True,
        "window": 4,
        "output_gate": True,
    },
    "all with sigmoid": {"key_heads": 2, "softcap": 1.5, "normalizer": "sigmoid", "window": 4, "qk_norm": True},
}


def layer_of(options: dict[str, Any], **rest: Any) -> Attention:
    return stirred(Attention(WIDTH, AttentionConfig(**options), **rest).double())


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_its_definition(name: str) -> None:
    layer, x = layer_of(OPTIONS[name]), normal(BATCH, LENGTH, WIDTH)
    torch.testing.assert_close(layer(x), attended(layer, x), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        expected = attended(layer, x)
        torch.testing.assert_close(layer.float()(x.float()).double(), expected, rtol=1e-5, atol=2e-5)
        result = layer.bfloat16()(x.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["plain", "window", "all", "all with sigmoid"])
def test_what_a_mask_hides_is_not_seen(name: str) -> None:
    x, generator = normal(BATCH, LENGTH, WIDTH), torch.Generator().manual_seed(3)
    mask = torch.rand(BATCH, 4, LENGTH, LENGTH, generator=generator) < 0.6
    mask[0, 1, 2] = False  # a query that sees nothing
    for causal in (True, False):
        layer = layer_of(OPTIONS[name], causal=causal)
        for given in (mask, mask[:, :1], mask[0, 0]):
            found = layer(x, mask=given)
            torch.testing.assert_close(found, attended(layer, x, mask=given), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "all", "all with sigmoid"])
@pytest.mark.parametrize("memory_size", [None, 10])
def test_across_every_query_sees_all_of_the_memory(name: str, memory_size: int | None) -> None:
    layer = layer_of(OPTIONS[name], memory_size=memory_size)
    x, memory = normal(BATCH, LENGTH, WIDTH), normal(BATCH, KEYS, memory_size or WIDTH, seed=1)
    torch.testing.assert_close(layer(x, memory), attended(layer, x, memory), rtol=1e-10, atol=1e-12)
    mask = torch.arange(KEYS) < torch.tensor([4, KEYS]).view(-1, 1, 1, 1)
    found = layer(x, memory, mask=mask)
    torch.testing.assert_close(found, attended(layer, x, memory, mask=mask), rtol=1e-10, atol=1e-12)


def test_every_so_many_layers_see_all() -> None:
    x, options = normal(1, LENGTH, WIDTH), {"window": 2, "global_every": 3}
    for number in range(6):
        layer = layer_of(options, layer=number)
        torch.testing.assert_close(layer(x), attended(layer, x), rtol=1e-10, atol=1e-12)
        assert torch.equal(layer(x), layer_of({} if number in (2, 5) else {"window": 2})(x))


def complex_turn(config: PositionConfig, frequencies: Tensor) -> Callable[[Tensor], Tensor]:
    """Rotary positions as products of complex numbers, of (length, d_k)."""

    def turned(x: Tensor) -> Tensor:
        half = len(frequencies)
        turn = torch.polar(
            torch.ones(len(x), half, dtype=torch.float64), torch.outer(torch.arange(len(x)), frequencies)
        )
        pairs = torch.complex(x[:, :half], x[:, half : 2 * half]) * turn
        return torch.cat([pairs.real, pairs.imag, x[:, 2 * half :]], dim=1)

    return turned


SCALINGS = {
    "none": None,
    "linear": RotaryScalingConfig(kind="linear", factor=4.0),
    "llama3": RotaryScalingConfig(kind="llama3", factor=8.0, low_frequency=1.0, high_frequency=4.0, context=64),
}


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_frequencies_are_those_of_transformers(share: float, scaling: str) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = PositionConfig(base=500.0, share=share, scaling=SCALINGS[scaling])
    rope: dict[str, Any] = {"rope_theta": 500.0, "rope_type": scaling, "partial_rotary_factor": share, "factor": 4.0}
    if scaling == "llama3":
        rope |= {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    settings = LlamaConfig(head_dim=16, hidden_size=64, num_attention_heads=4, max_position_embeddings=512)
    settings.rope_parameters = rope
    if scaling == "none":
        frequencies = 500.0 ** -(torch.arange(0, int(16 * share), 2).double() / int(16 * share))
    else:
        frequencies = ROPE_INIT_FUNCTIONS[scaling](settings, torch.device("cpu"))[0].double()
    rotation = Rotary(16, config)(torch.tensor([[0, 1, 5], [0, 0, 300]]), torch.float64)
    for row, positions in enumerate(([0, 1, 5], [0, 0, 300])):
        angles = torch.outer(torch.tensor(positions, dtype=torch.float64), frequencies)
        torch.testing.assert_close(rotation.cosine[row], angles.cos(), rtol=0, atol=5e-5)
        torch.testing.assert_close(rotation.sine[row], angles.sin(), rtol=0, atol=5e-5)
    layer = stirred(Attention(WIDTH, AttentionConfig(heads=2, head_dim=16), position=config).double())
    x = normal(1, LENGTH, WIDTH)
    expected = attended(layer, x, turned=complex_turn(config, frequencies))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20])
def test_alibi_is_blooms(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).view(heads, 1, 9)
    places = torch.arange(9)[None]
    ours = Alibi(heads)(places, places, torch.float32)
    assert ours.shape == (1, heads, 9, 9)
    seen = torch.ones(9, 9).tril().bool()
    shifted = ours[0] - ours[0].diagonal(dim1=1, dim2=2)[:, :, None]
    wanted = theirs - theirs.transpose(1, 2)  # as far as a softmax sees
    torch.testing.assert_close(shifted.masked_fill(~seen, 0), wanted.masked_fill(~seen, 0), rtol=1e-6, atol=1e-6)
    assert bool((ours <= 0).all())  # a distance lowers the score on either side
    assert bool((ours.diagonal(dim1=2, dim2=3) == 0).all())


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 1000), (8, 20), (5, 9), (3, 2), (2, 4), (33, 50)])
def test_relative_buckets_are_those_of_t5(buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    bias = stirred(RelativeBias(3, PositionConfig(kind="relative", buckets=buckets, farthest=farthest)))
    queries, keys = torch.tensor([[0, 7, 140, 1100]]), torch.arange(1100)[None]
    ours = bias(queries, keys, torch.float32)
    bucket = T5Attention._relative_position_bucket(
        keys - queries[0][:, None], bidirectional=False, num_buckets=buckets, max_distance=farthest
    )
    assert torch.equal(ours[0], bias.weight[bucket].permute(2, 0, 1))


@pytest.mark.parametrize("name", ["plain", "softcap", "all", "all with sigmoid"])
@pytest.mark.parametrize("kind", ["alibi", "relative"])
def test_biases_join_masks_caps_and_windows(name: str, kind: Any) -> None:
    position = PositionConfig(kind=kind, buckets=4, farthest=5)
    layer, x = layer_of(OPTIONS[name], position=position), normal(BATCH, LENGTH, WIDTH)

    def bias(head: int, query: int, key: int) -> Tensor | float:
        if isinstance(layer.bias, RelativeBias):
            return layer.bias.weight[[0, 1, 2, 2, 3, 3, 3][query - key], head]  # 2 + ⌊2·log(d/2)/log(5/2)⌋
        return -(2.0 ** (-2 * (head + 1))) * (query - key)

    torch.testing.assert_close(layer(x), attended(layer, x, bias=bias), rtol=1e-10, atol=1e-12)
    mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
    mask[1, ..., :3] = False
    expected = attended(layer, x, bias=bias, mask=mask)
    torch.testing.assert_close(layer(x, mask=mask), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["rotary", "alibi", "relative"])
@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_gradients_of_attention_are_right(kind: Any, normalizer: Any) -> None:
    config = AttentionConfig(
        heads=2,
        key_heads=1,
        qk_norm=True,
        softcap=2.0,
        window=2,
        bias=True,
        output_gate=True,
        normalizer=normalizer,
        sinks=normalizer == "softmax",
    )
    position = PositionConfig(kind=kind, buckets=2, farthest=3)
    layer = stirred(Attention(4, config, position=position).double())
    names, values = zip(*layer.named_parameters(), strict=True)

    def called(x: Tensor, *given: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))
        assert isinstance(found, Tensor)
        return found

    x = normal(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(called, (x, *values), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, mask=torch.tensor([[True], [False], [True]])), (x,))


@pytest.mark.parametrize("crossing", [True, False])
def test_attention_is_torchs_multihead_attention(crossing: bool) -> None:
    size = 10 if crossing else WIDTH
    twin = nn.MultiheadAttention(WIDTH, 4, kdim=size, vdim=size, batch_first=True).double()
    layer = layer_of({"bias": True, "output_bias": True}, memory_size=size, causal=False)
    maps = [layer.query, layer.key, layer.value]
    weights = [linear.weight for linear in maps]
    with torch.no_grad():
        if crossing:
            for name, weight in zip(("q", "k", "v"), weights, strict=True):
                getattr(twin, f"{name}_proj_weight").copy_(weight)
        else:
            twin.in_proj_weight.copy_(torch.cat(weights))
        twin.in_proj_bias.copy_(torch.cat([linear.bias for linear in maps]))
        twin.out_proj.load_state_dict(layer.output.state_dict())
    x = normal(BATCH, LENGTH, WIDTH)
    memory = normal(BATCH, KEYS, size, seed=1) if crossing else x
    padding = torch.zeros(BATCH, memory.shape[1], dtype=torch.bool)
    padding[1, 4:] = True
    expected = twin(x, memory, memory, key_padding_mask=padding, need_weights=False)[0]
    found = layer(x, memory if crossing else None, mask=~padding[:, None, None])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: layer_of({})(normal(1, 3, WIDTH), mask=torch.zeros(3, 3)),
            UsageError,
            "mask is torch.float32 and must",
        ),
        (lambda: layer_of({})(normal(1, 3, WIDTH), mask=torch.ones(2, 3).bool()), UsageError, "mask has shape"),
        (lambda: layer_of({}, position=PositionConfig(kind="learned")), ConfigError, "belongs to the embedding"),
        (lambda: Attention(26), ConfigError, "d_model is 26 and attention.heads is 4"),
        (lambda: Attention(20, position=PositionConfig()), ConfigError, "head dimension of 5 position.share=1 turns 5"),
        (lambda: Rotary(8, PositionConfig(share=0.1)), ConfigError, "position.share=0.1 turns 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
