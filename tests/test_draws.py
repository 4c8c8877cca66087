"""Drawing from what is left: Philox as published, the inverse CDF by definition, and the frequencies of many draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampling_cases import (
    DTYPES,
    KNIFE_EDGE,
    Case,
    by_hand,
    cases,
    either_way,
    logits_of,
    uniform_by_hand,
)
from torch import Tensor

from evenkeel.functional import Sampler, distribution, sample
from evenkeel.functional._uniforms import uniforms
from evenkeel.kernels.cpu._philox import unit
from evenkeel.reference import sampling as reference

WORDS = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """torch's own number of threads comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_published_words():
    """The known answers of Random123's kat_vectors for counters and keys of zeros, of ones, and of digits of π."""
    low = 0xFFFFFFFF
    assert by_hand((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert by_hand((low, low, low, low), (low, low)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    digits = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert by_hand(*digits) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@given(seed=WORDS, position=WORDS, more=WORDS)
@example(seed=0, position=0, more=-1)
@settings(deadline=None)
def test_uniform_numbers_are_those_of_philox(seed: int, position: int, more: int):
    one, two = np.array([seed]), np.array([position, more])
    for _ in either_way():
        numbers = uniforms(one, two, 2).tolist()
        assert numbers == [uniform_by_hand(seed, position), uniform_by_hand(seed, more)]
        assert all(0 < number < 1 and number * 2**53 % 2 == 1 for number in numbers)
        assert uniforms(two, one, 2).tolist() == [uniform_by_hand(position, seed), uniform_by_hand(more, seed)]


def test_no_word_gives_a_number_at_the_ends():
    for word, wanted in ((0, 2.0**-53), (0xFFFFFFFF, 1 - 2.0**-53)):
        assert unit(np.uint64(word), np.uint64(word)) == wanted


def assert_inverse(probabilities: Tensor, token: int, uniform: float) -> None:
    """Assert that the token is where the number falls, or beside where it falls on an edge."""
    near = [reference.drawn(probabilities.tolist(), uniform + shift) for shift in (-KNIFE_EDGE, KNIFE_EDGE)]
    assert min(near) <= token <= max(near)
    assert probabilities[token] > 0


@given(case=cases(), seed=WORDS, position=WORDS)
@settings(max_examples=300, deadline=None)
def test_a_token_is_where_its_uniform_number_falls(case: Case, seed: int, position: int):
    tokens = torch.stack(
        [
            sample(case.logits, order=case.order, seeds=seed, position=position, **case.given).tokens
            for _ in either_way()
        ]
    )
    for row, logits in enumerate(case.logits):
        exact = reference.filtered(logits, case.order, **case.of_row(row))
        if exact.margin > KNIFE_EDGE:
            wanted = reference.probabilities(exact, len(logits))
            for token in set(tokens[:, row].tolist()):
                assert_inverse(wanted, token, uniform_by_hand(seed, position))


@pytest.mark.parametrize(("shift", "token"), [(0, 1), (2, 0), (-2, 2)])
def test_a_token_of_any_rarity_comes_exactly_when_its_number_does(shift: int, token: int):
    """Between two others stands a token of probability 2^-40, around the number that will be drawn or beside it."""
    positions, half = torch.arange(2000), 2.0**-41
    before = torch.from_numpy(uniform_by_hand(7, positions.numpy().astype("u8"))) - half + shift * half
    logits = torch.stack([before, torch.full_like(before, 2 * half), 1 - before - 2 * half], -1).log()
    for _ in either_way():
        assert torch.equal(sample(logits, seeds=7, position=positions).tokens, torch.full_like(positions, token))


@pytest.mark.parametrize("options", ({}, {"temperature": 0.8, "top_p": 0.9}), ids=str)
@pytest.mark.parametrize("kind", ("normal", "heavy head", "far from 0", "nearly equal", "low stripes"))
def test_numbers_that_fall_close_to_an_edge(kind: str, options: dict[str, Any]):
    """Of half a million the hundred that are nearest to where one token's share ends and the next one's begins."""
    logits = logits_of((kind,), 3000, torch.float32, 3)
    sums = reference.distribution(logits[0], **options).cumsum(0)
    numbers = torch.from_numpy(uniform_by_hand(9, np.arange(2**19, dtype="u8")))
    tokens = torch.searchsorted(sums, numbers, right=True)
    apart = torch.minimum((sums[tokens] - numbers).abs(), (sums[(tokens - 1).clamp(min=0)] - numbers).abs())
    apart[apart < 1e-12] = 1  # which is more than float64 sums can be off
    near = apart.argsort()[:100]
    assert float(apart[near[0]]) < 1e-7 and float(apart[near[-1]]) < 1e-5
    for _ in either_way():
        assert torch.equal(sample(logits.expand(100, -1), seeds=9, position=near, **options).tokens, tokens[near])


@pytest.mark.parametrize("options", ({}, {"temperature": 0.8, "top_p": 0.9}), ids=str)
@pytest.mark.parametrize("count", (20_001, 60_000))
def test_tokens_of_large_vocabularies(count: int, options: dict[str, Any]):
    logits = logits_of(("normal", "heavy head", "equal", "ascending", "masked"), count, torch.float32, 0)
    tokens = sample(logits, seeds=5, position=torch.arange(5), **options).tokens
    for row, token in enumerate(tokens.tolist()):
        exact = reference.filtered(logits[row], **options)
        if exact.margin > KNIFE_EDGE:
            assert_inverse(reference.probabilities(exact, count), token, uniform_by_hand(5, row))


def test_a_rows_token_is_its_own(threads: None):
    """Whatever else is in the batch, in which order, on how many threads."""
    logits = logits_of(("normal", "heavy head", "coarse", "equal", "peaked") * 14, 1999, torch.float32, 2)
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95}
    seeds, position = torch.arange(70) // 3, 10**12 + torch.arange(70)
    torch.set_num_threads(1)
    together = sample(logits, seeds=seeds, position=position, **options).tokens
    for count in (2, 3):
        torch.set_num_threads(count)
        assert torch.equal(sample(logits, seeds=seeds, position=position, **options).tokens, together)
    alone = [
        int(sample(logits[row], seeds=int(seeds[row]), position=int(position[row]), **options).tokens)
        for row in range(70)
    ]
    assert together.tolist() == alone
    mixed = torch.randperm(70)
    again = sample(logits[mixed], seeds=seeds[mixed], position=position[mixed], **options).tokens
    assert torch.equal(again, together[mixed])
    shaped = (7, 2, 5)
    reshaped = sample(
        logits.view(*shaped, 1999), seeds=seeds.view(shaped), position=position.view(shaped), **options
    ).tokens
    assert torch.equal(reshaped, together.view(shaped))
    assert together.tolist() != sample(logits, seeds=seeds, position=position + 70, **options).tokens.tolist()
    assert together.tolist() != sample(logits, seeds=seeds + 70, position=position, **options).tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_in_memory(dtype: torch.dtype):
    whole = (3 * torch.randn(6, 4, 1001)).to(dtype)
    options: dict[str, Any] = {"seeds": 4, "temperature": 0.9, "top_p": 0.95}
    for view in (
        whole[:, 1],
        whole[..., ::2],
        whole[..., 1:],
        whole.transpose(0, 1),
        whole.mT,
        whole[:1].expand(5, 4, -1),
    ):
        before = view.clone(memory_format=torch.contiguous_format)
        rows = torch.arange(view[..., 0].numel()).view(view.shape[:-1])
        found, wanted = (sample(item, position=rows, **options) for item in (view, before))
        assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.support, wanted.support)
        assert torch.equal(distribution(view, top_p=0.95), distribution(before, top_p=0.95))
        assert torch.equal(view, before)
        assert found.tokens.shape == view.shape[:-1] and found.tokens.dtype == torch.int64


def test_a_type_changes_nothing_but_how_logits_are_rounded():
    for dtype in DTYPES:
        logits = (2 * torch.randn(20, 500)).to(dtype)
        single = logits.float()
        for sampler in (None, Sampler(temperature=0.7, top_k=40, top_p=0.9)):
            one, other = (sample(item, sampler, seeds=1, position=torch.arange(20)) for item in (logits, single))
            assert torch.equal(one.tokens, other.tokens) and torch.equal(one.support, other.support)


def test_no_rows():
    for shape in ((0, 5), (2, 0, 5)):
        found = sample(torch.empty(shape), seeds=1, top_p=0.9, return_logprobs=True)
        assert found.tokens.shape == found.support.shape == shape[:-1]
        assert distribution(torch.empty(shape)).shape == shape


def test_gradients_are_no_hindrance():
    logits = torch.randn(3, 50, requires_grad=True)
    found = sample(logits, seeds=1, return_logprobs=True)
    assert torch.equal(found.tokens, sample(logits.detach(), seeds=1).tokens)
    assert found.logprobs is not None and not found.logprobs.requires_grad


def test_a_generator_instead_of_seeds():
    logits = torch.randn(50, 40)
    first, second = (sample(logits, generator=torch.Generator().manual_seed(3)).tokens for _ in range(2))
    assert torch.equal(first, second)
    running = torch.Generator().manual_seed(3)
    assert torch.equal(sample(logits, generator=running).tokens, first)
    assert not torch.equal(sample(logits, generator=running).tokens, first)
    torch.manual_seed(3)
    assert torch.equal(sample(logits).tokens, first)


def chance(counts: Tensor, probabilities: Tensor) -> float:
    """The chance of counts that fit no better: a G-test; tokens that are expected less than ten times count as one."""
    expected = counts.sum() * probabilities
    rare = expected < 10
    observed, expected = (torch.cat([item[~rare], item[rare].sum().view(1)]) for item in (counts.double(), expected))
    cells = expected > 0
    g = 2 * torch.xlogy(observed[cells], observed[cells] / expected[cells]).sum().item()
    return float(mpmath.gammainc((int(cells.sum()) - 1) / 2, g / 2, regularized=True))


DRAWS = 10**6


def counted(logits: Tensor, options: dict[str, Any], seed: int) -> Tensor:
    """How often each token comes in DRAWS draws, at consecutive positions."""
    counts, step = torch.zeros(len(logits), dtype=torch.int64), max(1, 10**7 // len(logits))
    for start in range(0, DRAWS, step):
        position = torch.arange(start, min(DRAWS, start + step))
        tokens = sample(logits.expand(len(position), -1), seeds=seed, position=position, **options).tokens
        counts += torch.bincount(tokens, minlength=len(logits))
    return counts


@pytest.mark.parametrize(
    ("kind", "count", "dtype", "options"),
    [
        ("normal", 64, torch.float32, {"temperature": 0.8, "top_p": 0.9}),
        ("heavy head", 1000, torch.float32, {}),
        ("coarse", 100, torch.bfloat16, {"top_k": 30, "min_p": 0.01, "order": "llama.cpp", "temperature": 1.5}),
        ("equal", 50, torch.float16, {}),
        ("peaked", 50, torch.float32, {"temperature": 3.0}),
        ("normal", 100, torch.float64, {"typical_p": 0.8, "epsilon": 1e-4}),
        ("normal", 80, torch.float32, {"top_n_sigma": 2.5, "temperature": 1.2, "logit_bias": {3: 4.0}}),
    ],
)
def test_frequencies_are_the_probabilities(kind: str, count: int, dtype: torch.dtype, options: dict[str, Any]):
    logits = logits_of((kind,), count, dtype, 5)[0]
    rest = dict(options)
    scores = reference.biased(logits, rest.pop("logit_bias", {}))
    exact = reference.distribution(scores, rest.pop("order", "transformers"), **rest)
    counts = counted(logits, options, 11)
    assert int(counts.sum()) == DRAWS and not counts[exact == 0].any()
    assert chance(counts, exact) > 1e-6


def test_a_slightly_wrong_frequency_would_be_caught():
    """Of tokens with a heavy head: one of about 1% comes 15% too often, or the rarest, 1% together, never come."""
    p = reference.distribution(logits_of(("heavy head",), 300, torch.float32, 5)[0])
    counts = torch.multinomial(p, DRAWS, replacement=True, generator=torch.Generator().manual_seed(1)).bincount()
    assert chance(counts, p) > 1e-6
    one = int((p - 0.01).abs().argmin())
    assert chance(counts.index_add(0, torch.tensor([one]), counts[one : one + 1] * 15 // 100), p) < 1e-6
    rarest = p.sort().values.cumsum(0)[p.argsort().argsort()] < 0.01
    assert chance(counts * ~rarest, p) < 1e-6


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_rare_tokens_come_at_their_rate(dtype: torch.dtype):
    """A head with 2^14 tokens of probability 2^-30 before it and as many behind: together they have 2^-15.

    Only numbers in the first and the last 2^-16 can meet them, so that few of 2^22 draws need be made. Behind the head
    a sum in float32 stands still; a number of 24 bits meets every 64th of them, and noise in float32 none.
    """
    side = 2**14
    logits = torch.full((2 * side + 1,), -30 * math.log(2), dtype=dtype)
    logits[side] = 0
    each = float(reference.distribution(logits)[0])
    assert each == pytest.approx(2.0**-30, rel=1e-4)
    positions = torch.arange(2**22)
    numbers = torch.cat(
        [torch.from_numpy(uniform_by_hand(0, part.numpy().astype("u8"))) for part in positions.split(2**16)]
    )
    from_the_end = torch.minimum(numbers, 1 - numbers)
    near = from_the_end < 2 * side * each
    numbers, rare = numbers[near], from_the_end[near] < side * each
    tokens = torch.cat(
        [sample(logits.expand(len(part), -1), seeds=0, position=part).tokens for part in positions[near].split(64)]
    )
    assert bool((tokens[~rare] == side).all()) and not bool((tokens[rare] == side).any())
    assert abs(int(rare.sum()) - 128) < 5 * math.sqrt(128)
    place = torch.where(numbers < 0.5, numbers / each, 2 * side + 1 - (1 - numbers) / each)[rare]
    assert bool(((tokens[rare] + 0.5 - place).abs() <= 0.5 + 1e-3).all())
