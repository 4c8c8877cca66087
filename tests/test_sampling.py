"""Sampling against the sort oracle, against transformers, against Philox as published, and against chance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as warpers

from evenkeel.errors import UsageError
from evenkeel.functional import Sampler, distribution, sample
from evenkeel.functional import _sampling as sampling
from evenkeel.functional._uniforms import philox, uniforms
from evenkeel.reference import sampling as reference

NUMBERS = st.one_of(st.integers(-4, 4).map(float), st.floats(-30, 30, width=32), st.just(-math.inf))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.just(0.0), st.floats(0.05, 5)),
        "top_k": st.integers(0, 50),
        "top_p": st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0, 1)),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0.01, 1),
        "top_n_sigma": st.floats(0, 4),
        "epsilon": st.floats(0, 1),
    },
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@given(
    rows=st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=3),
    options=OPTIONS,
    order=st.sampled_from(tuple(reference.ORDERS)),
)
@settings(max_examples=400, deadline=None)
def test_what_is_left_is_what_a_sort_leaves(rows: list[list[float]], options: dict[str, Any], order: str):
    rows = [row if max(row) > -math.inf else [0.0, *row[1:]] for row in rows]
    logits = torch.tensor(rows)
    exact = torch.stack([reference.distribution(row, order, **options) for row in logits])
    found = distribution(logits, order=order, **options)
    assert torch.equal(found > 0, exact > 0)
    assert torch.allclose(found, exact, rtol=1e-12, atol=0)
    drawn = sample(logits, seeds=1, order=order, return_logprobs=True, **options)
    assert drawn.support.tolist() == (exact > 0).sum(-1).tolist()
    assert drawn.logprobs is not None
    assert torch.allclose(drawn.logprobs, exact.log().gather(-1, drawn.tokens[:, None]).squeeze(-1), atol=1e-12)


def test_every_option_may_differ_by_row():
    logits = torch.randn(4, 30)
    values: dict[str, Any] = {
        "temperature": (0.0, 0.5, 1.0, 2.0),
        "top_k": (0, 5, 1, 100),
        "top_p": (0.9, 0.5, 1.0, 0.0),
        "min_p": (0.0, 0.1, 0.01, 0.0),
    }
    columns: dict[str, Any] = {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}
    together = distribution(logits, Sampler(**columns))
    for row in range(4):
        alone = distribution(logits[row], Sampler(**{name: numbers[row] for name, numbers in values.items()}))
        assert torch.allclose(together[row], alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("warper", "options"),
    [
        (warpers.TopKLogitsWarper(5), {"top_k": 5}),
        (warpers.TopPLogitsWarper(0.7), {"top_p": 0.7}),
        (warpers.MinPLogitsWarper(0.1), {"min_p": 0.1}),
        (warpers.TypicalLogitsWarper(0.6), {"typical_p": 0.6}),
        (warpers.EpsilonLogitsWarper(0.02), {"epsilon": 0.02}),
        (warpers.TemperatureLogitsWarper(0.6), {"temperature": 0.6}),
    ],
)
def test_filters_are_those_of_transformers(warper: Any, options: dict[str, Any]):
    logits = 2 * torch.randn(20, 60)
    theirs = warper(torch.zeros(20, 1, dtype=torch.long), logits.clone()).softmax(-1)
    ours = distribution(logits, **options)
    assert torch.equal(ours > 0, theirs > 0)
    assert torch.allclose(ours.float(), theirs, atol=1e-6)


def test_all_filters_together_are_those_of_transformers_in_its_order():
    logits = 2 * torch.randn(40, 200)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8}
    model: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=200))
    config = GenerationConfig(do_sample=True, **options)
    theirs: Any = model._get_logits_processor(config, input_ids_seq_length=1)
    wanted = theirs(torch.zeros(40, 1, dtype=torch.long), logits.clone()).softmax(-1)
    found = distribution(logits, **options)
    assert torch.equal(found > 0, wanted > 0)
    assert torch.allclose(found.float(), wanted, atol=1e-6)


def test_penalties():
    logits = torch.randn(2, 10)
    previous = torch.tensor([[3, 3, 4, -1], [0, 1, 2, 3]])
    penalty: Any = warpers.RepetitionPenaltyLogitsProcessor(1.3)
    theirs = penalty(previous[1:], logits[1:].clone())
    ours = distribution(logits, previous=previous, repetition_penalty=1.3)
    assert torch.allclose(ours[1:].float(), theirs.softmax(-1))
    exact = reference.penalized(logits[0], [3, 3, 4], 1.3, 0.4, 0.2)
    found = distribution(logits, previous=previous, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)
    assert torch.allclose(found[0], exact.softmax(-1))
    biased = logits[0].double() + torch.tensor([0, 0, 5.0, 0, 0, 0, 0, 0, 0, -math.inf])
    assert torch.allclose(distribution(logits[0], logit_bias={2: 5.0, 9: -math.inf}), biased.softmax(-1))


@pytest.mark.parametrize("temperature", (1e-320, 1e-30, 1e30))
def test_no_temperature_overflows(temperature: float):
    p = distribution(torch.tensor([5.0, 9.0, 9.0, -1e30]), temperature=temperature)
    few = [0, 0.5, 0.5, 0] if temperature < 1 else [1 / (3 + 1 / math.e)] * 3
    assert p.tolist()[: len(few)] == pytest.approx(few)


def test_infinite_logits_and_ties():
    logits = torch.tensor(
        [[1.0, math.inf, 0.0, math.inf], [2.0, 2.0, 2.0, 1.0], [-math.inf, 3.0, -math.inf, -math.inf]]
    )
    assert distribution(logits)[0].tolist() == [0, 0.5, 0, 0.5]
    assert (distribution(logits, top_k=2) > 0).tolist()[1] == [True, True, False, False]
    assert sample(logits, temperature=0).tokens.tolist() == [1, 0, 1]
    assert sample(logits, seeds=5).support.tolist() == [2, 4, 1]


def by_hand(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4×32-10 in Python's integers, as in the paper's figure."""
    for _ in range(10):
        one, two = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            two >> 32 ^ counter[1] ^ key[0],
            two & 0xFFFFFFFF,
            one >> 32 ^ counter[3] ^ key[1],
            one & 0xFFFFFFFF,
        )
        key = ((key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return counter


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(-(2**63), 2**63 - 1))
def test_random_words_are_those_of_philox(seed: int, position: int):
    words = philox(torch.tensor([seed]), torch.tensor([position]))
    low = 0xFFFFFFFF
    exact = by_hand((position & low, position >> 32 & low, 0, 0), (seed & low, seed >> 32 & low))
    assert tuple(int(word) for word in words) == exact
    assert 0 < float(uniforms(torch.tensor([seed]), torch.tensor([position]))) < 1


def test_the_published_words():
    """The first known answer of Random123's kat_vectors: counter and key of zeros."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert [hex(int(word)) for word in philox(zero, zero)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_a_rows_token_is_its_own():
    logits, seeds = torch.randn(50, 40), torch.arange(50)
    together = sample(logits, seeds=seeds, position=7, temperature=1.5).tokens
    alone = [sample(logits[row], seeds=int(seeds[row]), position=7, temperature=1.5).tokens.item() for row in range(50)]
    assert together.tolist() == alone
    assert together.tolist() != sample(logits, seeds=seeds, position=8, temperature=1.5).tokens.tolist()
    again = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, second = (sample(logits, generator=one).tokens for one in again)
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", ({}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 4, "order": "llama.cpp"}))
def test_frequencies_are_the_probabilities(options: dict[str, Any]):
    """A G-test on 100,000 draws, whose statistic is χ² of support − 1 degrees; the bound is six deviations above."""
    logits, draws = torch.randn(12), 100_000
    p = distribution(logits, **options)
    tokens = sample(logits.expand(draws, -1), seeds=11, position=torch.arange(draws), **options).tokens
    counts = torch.bincount(tokens, minlength=12).double()
    assert (counts[p == 0] == 0).all()
    freedom = int((p > 0).sum()) - 1
    g = 2 * torch.xlogy(counts, counts / (draws * p).clamp(min=1e-300)).sum().item()
    assert g < freedom + 6 * math.sqrt(2 * freedom)


def test_tails_are_reached(monkeypatch: pytest.MonkeyPatch):
    """A token of probability 2^-40 behind 131,071 others gets the last 2^-40 of the uniform numbers."""
    logits = torch.zeros(2**17, dtype=torch.float64)
    logits[-1] = -23 * math.log(2)
    share = float(distribution(logits)[-1])
    assert share == pytest.approx(2.0**-40, rel=1e-4)
    for number, token in ((1 - share / 2, 2**17 - 1), (1 - share * 2, 2**17 - 2)):
        monkeypatch.setattr(sampling, "_drawn", lambda *_, number=number: torch.tensor([number], dtype=torch.float64))
        assert int(sample(logits).tokens) == token


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(torch.tensor([[0.0, 1.0], [math.nan, 0.0]])), "row 1 of the logits holds NaN"),
        (lambda: sample(torch.tensor([[-math.inf] * 2])), "row 0 of the logits is −inf throughout"),
        (lambda: sample(torch.ones(2, 3, dtype=torch.long)), "give floating"),
        (lambda: sample(torch.zeros(3), top_q=0.5), "no option 'top_q'"),
        (lambda: Sampler(top_p=1.5), "top_p is 1.5; it must lie from 0 to 1"),
        (lambda: Sampler(order="vllm"), "'transformers', 'llama.cpp'"),  # pyright: ignore[reportArgumentType]
        (lambda: sample(torch.zeros(2, 3), top_p=torch.ones(3)), r"one for each row: \(2,\)"),
        (lambda: sample(torch.zeros(2, 3), previous=torch.ones(3, 1, dtype=torch.long)), r"\(2, 'n'\)"),
        (lambda: sample(torch.zeros(3), previous=torch.tensor([3])), "there are 3 tokens"),
        (lambda: sample(torch.zeros(3), logit_bias={7: 1.0}), "token 7"),
        (lambda: sample(torch.zeros(3), logit_bias={0: 1.0, -2: 1.0}), "token -2"),
        (lambda: distribution(torch.zeros(1), logit_bias={0: -math.inf}), "after penalties and bias is −inf"),
        (lambda: sample(torch.zeros(3), seeds=1, generator=torch.Generator()), "give one of them"),
    ],
)
def test_errors_say_what_to_give(call: Any, message: str):
    with pytest.raises(UsageError, match=message):
        call()


FEW, MANY = [0.0, 1.0, 1.0, 1.0, -1.0, 0.12], [3.7] + [0.0] * 60


@pytest.mark.parametrize(
    ("row", "options", "wrong"),
    [
        (FEW, {"top_p": 0.5}, lambda scores, p: sampling._only(scores, scores.softmax(-1).cumsum(-1) <= p)),
        (FEW, {"top_k": 2}, lambda scores, k: sampling._only(scores, scores >= scores.topk(int(k)).values[:, -1:])),
        (FEW, {"min_p": 0.5}, lambda scores, share: sampling._only(scores, scores.softmax(-1) >= share)),
        (MANY, {"typical_p": 0.5}, sampling._top_p),
        (
            FEW,
            {"top_n_sigma": 1.15},
            lambda scores, n: sampling._only(scores, scores >= scores.amax() - n * scores.std()),
        ),
    ],
)
def test_wrong_variants_would_be_caught(
    row: list[float], options: dict[str, Any], wrong: Any, monkeypatch: pytest.MonkeyPatch
):
    """No order, ties kept, a share of the whole, another order, the sample's deviation: each leaves something else."""
    logits = torch.tensor([row])
    exact = reference.distribution(logits[0], **options) > 0
    assert torch.equal(distribution(logits, **options)[0] > 0, exact)
    monkeypatch.setitem(sampling._STEPS, next(iter(options)), wrong)
    assert not torch.equal(distribution(logits, **options)[0] > 0, exact)
