"""Attention's statistics against the definition in float64, from the full weights."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import _attention_statistics as statistics
from evenkeel.functional import attention_statistics, score_statistics
from evenkeel.instruments.attention import AttentionInstrument
from evenkeel.kernels import attention as torch_passes
from evenkeel.reference.attention import attention_scores, head_statistics, row_statistics
from evenkeel.tracing.events import AttentionEvent

LENGTHS = (1, 2, 7, 64, 300, 1024)
SCALES = (1.0, 100.0, 1e4)


OF_THE_CALL = {"score_scale", "head_dim"}
"""Stats that are there whatever the scores are."""


pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


def made(
    queries: int, keys: int, *, batch: int = 2, heads: int = 2, key_heads: int = 2, largest: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """A query, a key, and the scale at which the scores have a standard deviation of `largest` / 4."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, 16, generator=generator)
    key = torch.randn(batch, key_heads, keys, 16, generator=generator)
    return query, key, largest / 16


def causal_mask(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


def read(*events: AttentionEvent) -> dict[str, Tensor]:
    instrument = AttentionInstrument()
    for event in events:
        instrument.observe(event)
    return {stat.name: value for stat, value in instrument.read().items()}


def assert_exact(found: Mapping[str, Tensor], scores: Tensor, visible: Tensor, padded: Tensor | None = None) -> None:
    """Every statistic within 1e-4 (relative; nats for entropies; score_mean by score_std) + 8·2⁻²⁴·max|s|."""
    expected = {**head_statistics(scores, visible, padded), "blind_rows": blind_rows(scores, visible, padded)}
    seen = scores.masked_fill(~visible.expand(scores.shape), 0)
    rounding = 8 * 2**-24 * float(seen.abs().max())
    missing = {"entropy_relative", "entropy_relative_min"} if scores.shape[-1] < 2 else set()
    assert expected.keys() - found.keys() <= missing
    for name in found.keys() - OF_THE_CALL:
        unit = {"entropy": torch.ones(()), "score_mean": expected["score_std"]}.get(name, expected[name].abs())
        allowed = 1e-4 * unit + rounding
        same = found[name].isnan() & expected[name].isnan()
        close = (found[name] - expected[name]).abs() <= allowed
        assert bool((same | close).all()), (name, found[name], expected[name], allowed)


def blind_rows(scores: Tensor, visible: Tensor, padded: Tensor | None) -> Tensor:
    """Rows that see nothing, less known padding and, of the same tokens, those that nobody sees."""
    hidden = ~visible.expand(scores.shape)
    blind = hidden.all(3)
    if padded is not None:
        blind = blind & ~padded[:, None]
    if scores.shape[2] == scores.shape[3]:
        blind = blind & ~hidden.all(2)
    return blind.sum((0, 2)).double()


# --- the oracle itself -------------------------------------------------------------------------------------------


def test_reference_is_the_definition():
    """Logits 10 and 5: about 150 to 1; three equal ones: log 3. A hidden key counts for nothing."""
    rows = row_statistics(torch.tensor([[[[10.0, 5.0, 99.0]]]]), torch.tensor([True, True, False]))
    first = 1 / (1 + math.exp(-5))
    entropy = -(first * math.log(first) + (1 - first) * math.log(1 - first))
    np.testing.assert_allclose(rows["sink_mass"].item(), first, rtol=1e-12)
    np.testing.assert_allclose(rows["entropy"].item(), entropy, rtol=1e-12)
    np.testing.assert_allclose(rows["participation"].item(), 1 / (first**2 + (1 - first) ** 2), rtol=1e-12)
    uniform = row_statistics(torch.full((1, 1, 1, 3), 2.0), torch.tensor(True))
    np.testing.assert_allclose(uniform["entropy"].item(), math.log(3), rtol=1e-12)
    np.testing.assert_allclose(uniform["softmax_gain"].item(), 2 / 3, rtol=1e-12)


def test_reference_has_the_weights_of_torch():
    """The sink mass is the first column of torch's own attention, read through values that are one-hot."""
    query, key, scale = made(9, 9, heads=4)
    value = F.one_hot(torch.arange(9), 9).double().expand(2, 2, 9, 9)
    weights = F.scaled_dot_product_attention(
        query.double(), key.double(), value, is_causal=True, scale=scale, enable_gqa=True
    )
    rows = row_statistics(attention_scores(query, key, scale=scale), causal_mask(9, 9))
    torch.testing.assert_close(rows["sink_mass"], weights[..., 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows["participation"], 1 / weights.square().sum(-1), rtol=1e-9, atol=1e-12)


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", SCALES)
@pytest.mark.parametrize("length", LENGTHS)
def test_causal(length: int, largest: float):
    query, key, scale = made(length, length, largest=largest)
    found = read(AttentionEvent(query=query, key=key, scale=scale, causal=True))
    if length == 1:
        assert "entropy_relative" not in found
    assert (found["score_scale"].item(), found["head_dim"].item()) == (scale, 16)
    assert_exact(found, attention_scores(query, key, scale=scale), causal_mask(length, length))


@pytest.mark.parametrize("largest", SCALES)
@pytest.mark.parametrize("length", LENGTHS)
def test_everything_visible(length: int, largest: float):
    query, key, scale = made(length, length, largest=largest)
    found = read(AttentionEvent(query=query, key=key, scale=scale))
    assert_exact(found, attention_scores(query, key, scale=scale), torch.tensor(True))


@pytest.mark.parametrize("form", ["bool", "minimum", "infinity", "-1e9", "-10000"])
@pytest.mark.parametrize("length", LENGTHS)
def test_padding_in_every_form_of_mask(length: int, form: str):
    """Left padding: rows of padded queries see nothing and are left out; other rows see no padded key."""
    query, key, scale = made(length, length, largest=100.0)
    real = torch.arange(length) >= torch.tensor([0, length // 3])[:, None]
    visible = causal_mask(length, length) & real[:, None, None, :]
    hiding = {"minimum": torch.finfo(torch.float32).min, "infinity": -math.inf, "-1e9": -1e9, "-10000": -1e4}
    mask = visible if form == "bool" else torch.zeros(visible.shape).masked_fill(~visible, hiding[form])
    found = read(AttentionEvent(query=query, key=key, scale=scale, mask=mask, padded_queries=~real))
    assert_exact(found, attention_scores(query, key, scale=scale), visible, ~real)
    unknown = read(AttentionEvent(query=query, key=key, scale=scale, mask=mask))
    assert unknown["masked_rows"].tolist() == [length // 3] * 2
    assert_exact(unknown, attention_scores(query, key, scale=scale), visible)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("hiding", ["minimum", -math.inf, -1e4])
def test_masks_of_other_dtypes(dtype: torch.dtype, hiding: str | float):
    """−10000 is hidden also where the format has no such number (bfloat16 rounds it to −9984)."""
    query, key, scale = made(20, 20, largest=10.0)
    visible = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(4)) < 0.5
    mask = torch.zeros(visible.shape, dtype=dtype)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min if hiding == "minimum" else float(hiding))
    found = read(AttentionEvent(query=query, key=key, scale=scale, mask=mask))
    assert_exact(found, attention_scores(query, key, scale=scale), visible)


@pytest.mark.parametrize("largest", SCALES)
@pytest.mark.parametrize("length", LENGTHS)
def test_alibi_is_part_of_the_score(length: int, largest: float):
    query, key, scale = made(length, length, largest=largest)
    slopes = 2.0 ** -torch.arange(1, 3)
    bias = slopes[None, :, None, None] * (torch.arange(length) - torch.arange(length)[:, None])
    visible = causal_mask(length, length)
    mask = bias.masked_fill(~visible, torch.finfo(torch.float32).min)
    found = read(AttentionEvent(query=query, key=key, scale=scale, mask=mask))
    assert_exact(found, attention_scores(query, key, scale=scale, mask=bias), visible)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [(1, 300, False), (1, 5, True), (7, 300, True), (300, 7, True), (64, 1024, False), (1024, 3, False)],
)
def test_grouped_heads_cross_attention_and_decoding(queries: int, keys: int, causal: bool, key_heads: int):
    """Heads share keys in order (0 0 1 1); causal is aligned top-left for more or fewer queries than keys."""
    query, key, scale = made(queries, keys, heads=4, key_heads=key_heads, largest=30.0)
    visible = causal_mask(queries, keys) if causal else torch.tensor(True)
    found = read(AttentionEvent(query=query, key=key, scale=scale, causal=causal))
    expected = attention_scores(query, key, scale=scale)
    if causal and queries == 1:
        assert "entropy_relative" not in found
        found |= dict.fromkeys(("entropy_relative", "entropy_relative_min"), torch.full((4,), torch.nan))
    assert_exact(found, expected, visible)


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (1, 4, 6, 5), (3, 1, 1, 5), (6, 5), (3, 4, 6, 1), (1, 1, 1, 1), (5,)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_every_shape_that_broadcasts(shape: tuple[int, ...], causal: bool):
    query, key, scale = made(6, 5, batch=3, heads=4, largest=10.0)
    generator = torch.Generator().manual_seed(3)
    shown = torch.rand(shape, generator=generator) < 0.7
    bias = torch.randn(shape, generator=generator)
    order = causal_mask(6, 5) if causal else torch.tensor(True)
    visible = shown.expand(3, 4, 6, 5) & order
    for mask, added in ((shown, shown), (bias.masked_fill(~shown, -math.inf), bias)):
        found = read(AttentionEvent(query=query, key=key, scale=scale, causal=causal, mask=mask))
        assert_exact(found, attention_scores(query, key, scale=scale, mask=added), visible)
    scores = attention_scores(query, key, scale=scale)
    assert_exact(read(AttentionEvent(scores=scores, visible=shown)), scores, shown.expand(3, 4, 6, 5))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1024), (1, 1, 1024, 1024), (2, 1, 1, 1024), (1024, 1)])
def test_broadcast_masks_over_several_tiles(shape: tuple[int, ...]):
    query, key, scale = made(1024, 1024, largest=10.0)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    found = read(AttentionEvent(query=query, key=key, scale=scale, mask=mask))
    assert_exact(found, attention_scores(query, key, scale=scale), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_narrow_inputs_are_widened(dtype: torch.dtype):
    query, key, scale = made(300, 300, largest=1e3)
    query, key = query.to(dtype), key.to(dtype)
    found = read(AttentionEvent(query=query, key=key, scale=scale, causal=True))
    assert_exact(found, attention_scores(query, key, scale=scale), causal_mask(300, 300))


@pytest.mark.parametrize("length", LENGTHS)
def test_eager_scores(length: int):
    """Hidden entries are told by their value or by `visible`; both give what the fused call gives."""
    query, key, scale = made(length, length, largest=100.0)
    scores, visible = attention_scores(query, key, scale=scale).float(), causal_mask(length, length)
    for hiding in (-math.inf, torch.finfo(torch.float32).min, -1e9):
        assert_exact(read(AttentionEvent(scores=scores.masked_fill(~visible, hiding))), scores, visible)
    assert_exact(read(AttentionEvent(scores=scores, visible=visible)), scores, visible)


def test_eager_scores_hidden_in_two_ways():
    """Where `visible` tells of one mask, −inf in the scores tells of another (a window, an excluded key)."""
    scores = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    window = torch.ones(9, 9, dtype=torch.bool).triu(-3)
    found = read(AttentionEvent(scores=scores.masked_fill(~window, -math.inf), visible=causal_mask(9, 9)))
    assert_exact(found, scores, causal_mask(9, 9) & window)


def test_tall_scores_from_the_same_offset():
    """All scores near 5,600, where the identity L(1) − E[s] is off by 2e-3 nats: the shifted pass is not."""
    generator = torch.Generator().manual_seed(0)
    scores = 5600 + torch.randn(1, 2, 40, 200, generator=generator)
    found = score_statistics(scores)
    exact = row_statistics(scores, torch.tensor(True))
    assert float((found.entropy - exact["entropy"]).abs().max()) < 1e-5


def test_rows_of_every_statistic():
    """Row by row, with one outlier that is far above the rest and a row that sees nothing."""
    query, key, scale = made(50, 90)
    query[:, :, 3] *= 40
    visible = torch.rand(2, 1, 50, 90, generator=torch.Generator().manual_seed(1)) < 0.6
    visible[0, :, 7] = False
    found = asdict(attention_statistics(query, key, scale=scale, mask=visible))
    exact = row_statistics(attention_scores(query, key, scale=scale), visible)
    assert found.keys() == exact.keys()
    for name, values in exact.items():
        torch.testing.assert_close(found[name], values, rtol=2e-5, atol=2e-5, msg=name)
        assert not found[name][0, :, 7].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"window": 30}, {"softcap": 2.0, "window": 1}], ids=str)
def test_softcap_and_window(options: dict[str, Any], causal: bool):
    """A cap bends the scores before the mask; a window hides keys on both sides."""
    query, key, scale = made(200, 150, largest=10.0)
    bias = torch.randn(150, generator=torch.Generator().manual_seed(1))
    distance = torch.arange(150) - torch.arange(200)[:, None]
    visible = distance.abs() < options.get("window", 1000)
    visible &= (distance <= 0) | (not causal)
    scores, cap = attention_scores(query, key, scale=scale), options.get("softcap", 1e9)
    exact = row_statistics(cap * (scores / cap).tanh() + bias, visible)
    found = asdict(attention_statistics(query, key, scale=scale, causal=causal, mask=bias, **options))
    for name, values in exact.items():
        torch.testing.assert_close(found[name], values, rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("length", [300, 5000])
def test_entropy_to_the_last_digits(length: int):
    """Relative to the definition, at the scale that a layer has when it is made."""
    query, key, _ = made(length, length, batch=1)
    query = query[:, :, -40:]
    found = attention_statistics(query, key, scale=0.25)
    exact = row_statistics(attention_scores(query, key, scale=0.25), torch.tensor(True))
    assert float((found.entropy / exact["entropy"] - 1).abs().max()) < 1e-6
    assert float((found.logsumexp - exact["logsumexp"]).abs().max()) < 2e-6


@pytest.mark.parametrize("passes", ["numba", "torch"])
def test_running_maximum_over_several_tiles(passes: str, monkeypatch: pytest.MonkeyPatch):
    """Keys that grow with their position raise the maximum from tile to tile; both row passes give the same."""
    if passes == "torch":
        monkeypatch.setattr(statistics, "passes_for", lambda *tensors: torch_passes)
    query, key, scale = made(3, 7000)
    key *= torch.linspace(0.1, 40, 7000)[:, None]
    found = asdict(attention_statistics(query, key, scale=scale))
    for name, values in row_statistics(attention_scores(query, key, scale=scale), torch.tensor(True)).items():
        torch.testing.assert_close(found[name], values, rtol=2e-5, atol=2e-5, msg=name)


# --- wrong variants must be caught -------------------------------------------------------------------------------


def wrong_variants(query: Tensor, key: Tensor, scale: float) -> dict[str, AttentionEvent]:
    queries, keys = query.shape[2], key.shape[2]
    swapped = key.repeat(1, 2, 1, 1)  # heads 0 1 0 1 instead of 0 0 1 1
    aligned = causal_mask(keys, keys)[keys - queries :] if keys > queries else None
    return {
        "not causal": AttentionEvent(query=query, key=key, scale=scale),
        "aligned bottom-right": AttentionEvent(query=query, key=key, scale=scale, mask=aligned),
        "heads share keys in turns": AttentionEvent(query=query, key=swapped, scale=scale, causal=True),
        "scale off by a thousandth": AttentionEvent(query=query, key=key, scale=scale * 1.001, causal=True),
        "last rows only": AttentionEvent(
            query=query[:, :, -8:], key=key, scale=scale, mask=causal_mask(queries, keys)[-8:]
        ),
        "rounded to bf16": AttentionEvent(query=query.bfloat16().float(), key=key, scale=scale, causal=True),
    }


@pytest.mark.parametrize("name", wrong_variants(*made(4, 6, heads=4)).keys())
def test_wrong_variants_are_caught(name: str):
    query, key, scale = made(40, 60, heads=4, largest=4.0)
    right = AttentionEvent(query=query, key=key, scale=scale, causal=True)
    scores, visible = attention_scores(query, key, scale=scale), causal_mask(40, 60)
    assert_exact(read(right), scores, visible)
    with pytest.raises(AssertionError):
        assert_exact(read(wrong_variants(query, key, scale)[name]), scores, visible)


def test_the_unshifted_identity_is_caught():
    """Entropy as logsumexp minus the mean score, in float32, at scores of 1e4, is off by more than 1e-4 nats."""
    query, key, scale = made(64, 64, largest=1e4)
    scores = (scale * query @ key.mT).float()
    identity = scores.logsumexp(-1) - (scores.softmax(-1) * scores).sum(-1)
    exact = row_statistics(scores, torch.tensor(True))["entropy"]
    assert float((identity - exact).abs().max()) > 1e-4
    assert float((score_statistics(scores).entropy - exact).abs().max()) < 1e-5


# --- merging, numbers that are none, errors ----------------------------------------------------------------------


def test_micro_batches_equal_one_batch():
    """Five pieces of unequal visibility, one of them with a head that sees nothing."""
    query, key, scale = made(20, 20, batch=5, largest=50.0)
    visible = torch.rand(5, 2, 20, 20, generator=torch.Generator().manual_seed(2)) < 0.4
    visible[3, 1] = False
    whole = read(AttentionEvent(query=query, key=key, scale=scale, mask=visible))
    parts = []
    for index in range(5):
        one = AttentionInstrument()
        piece = slice(index, index + 1)
        one.observe(AttentionEvent(query=query[piece], key=key[piece], scale=scale, mask=visible[piece]))
        parts.append(one)
    parts[3].merge(parts[4])
    parts[1].merge(parts[2])
    parts[1].merge(parts[3])
    parts[0].merge(parts[1])
    merged = {stat.name: value for stat, value in parts[0].read().items()}
    for name, values in whole.items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-9, msg=name)
    assert_exact(merged, attention_scores(query, key, scale=scale), visible)


def test_a_head_that_sees_nothing():
    query, key, scale = made(5, 5)
    found = read(AttentionEvent(query=query, key=key, scale=scale, mask=torch.zeros(5, 5, dtype=torch.bool)))
    assert found.pop("masked_rows").tolist() == [10.0] * 2
    assert found.pop("blind_rows").tolist() == [0.0] * 2  # tokens that nobody sees are padding, here all of them
    assert all(bool(found[name].isnan().all()) for name in found.keys() - OF_THE_CALL)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_propagate(value: float):
    query, key, scale = made(6, 6)
    query[0, 1, 5, 0] = value
    found = read(AttentionEvent(query=query, key=key, scale=scale, causal=True))
    assert not found["entropy"][1].isfinite()
    assert bool(found["entropy"][0].isfinite())


def test_no_queries_is_nothing_seen():
    query, key, scale = made(0, 5)
    assert read(AttentionEvent(query=query, key=key, scale=scale)) == {}


def test_shapes_that_do_not_fit():
    query, key, scale = made(5, 5, heads=4, key_heads=3)
    with pytest.raises(UsageError, match=r"\(2, 4, 5, 16\).*\(2, 3, 5, 16\).*multiple"):
        attention_statistics(query, key, scale=scale)


def test_calls_are_checked_as_those_of_attention():
    query, key, _ = made(5, 5)
    named, number = (attention_statistics(query, key, scale=scale) for scale in ("dim", 1 / query.shape[-1]))
    assert torch.equal(named.entropy, number.entropy)
    with pytest.raises(UsageError, match="'sqrt', 'none', 'dim'"):
        attention_statistics(query, key, scale="root")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"bfloat16 and key torch.float32"):
        attention_statistics(query.bfloat16(), key)
    with pytest.raises(UsageError, match="broadcastable"):
        attention_statistics(query, key, mask=torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"bool \(True = visible\) or floating"):
        attention_statistics(query, key, mask=torch.ones(5, 5, dtype=torch.long))


MEMORY = """
import re, torch
from evenkeel.instruments.attention import AttentionInstrument
from evenkeel.tracing.events import AttentionEvent

def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
torch.manual_seed(0)
query, key = torch.randn(1, 4, 16384, 64), torch.randn(1, 4, 16384, 64)
AttentionInstrument().observe(AttentionEvent(query=query[:, :, :256], key=key[:, :, :256], causal=True))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kibibytes("VmRSS")
instrument = AttentionInstrument()
with torch.no_grad():
    instrument.observe(AttentionEvent(query=query, key=key, scale=0.125, causal=True))
print((kibibytes("VmHWM") - before) * 1024 / (query.numel() * query.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_linear_in_the_length():
    """At 16,384 tokens less than six times the query; the full scores would take 256 times the query."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 6
