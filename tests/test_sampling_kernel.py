"""The sampling kernel's own promises: samples that mislead it, float32's error bound, its memory, its layouts."""

from __future__ import annotations

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evenkeel.functional import Sampler, distribution, sample
from evenkeel.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable_because() is not None, reason="there is no kernel here")

APART, STRETCH, JITTER = 512, 16, 40503
"""How a row of up to 131,072 is sampled: 16 of each 512, from a place on that the number of the 512 gives."""


def support_by_sorting(logits: Tensor, p: float, temperature: float) -> int:
    """How long the shortest prefix is, by NumPy's sort and cumulative sum in 80 bits."""
    numbers = logits.numpy().astype(np.longdouble)
    mass = np.cumsum(np.exp((np.sort(numbers)[::-1] - numbers.max()) / np.longdouble(temperature)))
    return int(np.searchsorted(mass, p * mass[-1])) + 1


def is_sampled(size: int) -> Tensor:
    places = torch.arange(size)
    first = (places // APART * JITTER & 511).clamp(max=APART - STRETCH)
    return (places % APART >= first) & (places % APART < first + STRETCH)


MISLEADING = {
    "sampled low": lambda x: torch.where(is_sampled(len(x)), x - 4, x),
    "sampled high": lambda x: torch.where(is_sampled(len(x)), x + 4, x),
    "sampled alone low": lambda x: torch.where(is_sampled(len(x)), -30.0, x),
    "sampled alone high": lambda x: torch.where(is_sampled(len(x)), x + 30, x),
    "sampled alike": lambda x: torch.where(is_sampled(len(x)), 1.0, x),
    "ascending": lambda x: x.sort().values,
    "descending": lambda x: x.sort(descending=True).values,
    "coarse": lambda x: x.round(),
    "two values": lambda x: (x > 1).float(),
}


@pytest.mark.parametrize("name", MISLEADING)
@pytest.mark.parametrize("size", (1025, 5000, 40_000))
def test_a_misleading_sample_costs_time_and_nothing_else(name: str, size: int):
    torch.manual_seed(size)
    logits = MISLEADING[name](torch.randn(size))
    for p in (1e-6, 0.01, 0.3, 0.9, 0.999, 1 - 1e-9):
        for temperature in (0.3, 1.0, 5.0):
            found = sample(logits, top_p=p, temperature=temperature, seeds=1).support
            assert int(found) == support_by_sorting(logits, p, temperature), (p, temperature)
    for k in (1, 2, 1000, size - 1):
        assert int(sample(logits, top_k=k, seeds=1).support) == k


def test_the_sample_is_where_these_tests_think():
    from evenkeel.kernels.cpu.prefixes import _sampled

    row = torch.arange(40_000.0).numpy()
    keys, masses = np.empty(2000, np.uint32), np.empty(2000, np.float32)
    count = _sampled(row, row + 1, 0.0, keys, masses)
    assert set(masses[:count] - 1) == set(torch.arange(40_000)[is_sampled(40_000)][:count].tolist())


@pytest.mark.parametrize("p", (0.1, 0.2, 0.25, 0.6))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
def test_what_typical_left_of_equal_numbers_is_all_that_counts(p: float, dtype: torch.dtype):
    """typical_p cuts through the more probable of two numbers, whose last places are out, and top_p follows."""
    places = torch.arange(4096)
    logits = torch.where((places % 512 < 16) | (places >= 3600), 0.5, 0.0).to(dtype)
    upper = int((logits > 0).sum())
    whole = (4096 - upper) + upper * math.exp(0.5)
    kept = 127.5 * math.exp(0.5)
    found = sample(logits, order="llama.cpp", typical_p=(4096 - upper + kept) / whole, top_p=p, seeds=1).support
    left = np.r_[np.full(128, math.exp(0.5)), np.ones(4096 - upper)].cumsum()
    assert int(found) == int(np.searchsorted(left, p * left[-1])) + 1


def test_what_is_impossible_is_never_in_the_support():
    torch.manual_seed(0)
    for p in (1 - 2.0**-52, 1 - 2.0**-53, 1 - 1e-12, 0.9):
        for size in (2000, 50_000):
            logits = torch.where(torch.rand(20, size) < 0.5, -math.inf, torch.randn(20, size))
            found = sample(logits, top_p=p, seeds=torch.arange(20))
            assert (found.support <= (logits > -math.inf).sum(-1)).all()
            assert logits.gather(1, found.tokens[:, None]).isfinite().all()


def test_numbers_at_the_ends_of_float64():
    torch.manual_seed(0)
    logits = torch.randn(1, 100, dtype=torch.float64)
    masked, finite = logits.clone(), logits.clone()
    masked[0, 50:], finite[0, 50:] = -math.inf, torch.finfo(torch.float64).min
    assert torch.equal(distribution(finite, typical_p=0.5), distribution(masked, typical_p=0.5))
    wide = torch.tensor([[1e308, -1e308, -1e307, -math.inf]], dtype=torch.float64)
    assert distribution(wide, top_n_sigma=1.0).tolist() == [[1, 0, 0, 0]]
    assert distribution(torch.tensor([1e4, 0.0])).tolist() == [1, 0]


def test_vocabularies_in_turn_and_python_threads():
    torch.manual_seed(0)
    rows = [torch.randn(2, size) for size in (3000, 70, 9000, 1025)]
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.5}
    before = [torch.randint(len(row[0]), (2, 30)) for row in rows]

    def tokens(place: int) -> list[int]:
        return sample(rows[place], previous=before[place], seeds=place, **options).tokens.tolist()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(tokens, list(range(4)) * 50))
    assert together == [tokens(place) for place in range(4)] * 50


def test_float32_weights_are_within_their_bound():
    from evenkeel.kernels.cpu.filters import SLACK, fast

    torch.manual_seed(0)
    for top, temperature in ((0.0, 1.0), (5.3, 0.8), (-40.0, 0.013), (3e4, 2.0), (700.0, 1.7), (2e6, 7.0)):
        row = (top - torch.rand(400_000) * 60 * temperature).numpy()
        row[0] = top
        weights, sums = np.empty(row.size, np.float32), np.empty(row.size // 1024 + 1)
        fast(row, weights, sums, np.float32(top), temperature, False, False)
        exact = np.exp((row.astype(np.float64) - np.float64(np.float32(top))) / temperature)
        ratio = weights / exact
        error = (ratio.max() - ratio.min()) / ratio.mean() / 2
        assert error < 0.75 * SLACK, (top, temperature, error)


def test_rows_of_any_stride_are_read_where_they_lie():
    torch.manual_seed(0)
    states = torch.randn(4, 3, 2000)
    wanted = sample(states[:, -1].clone(), top_p=0.9, seeds=torch.arange(4)).tokens
    assert torch.equal(sample(states[:, -1], top_p=0.9, seeds=torch.arange(4)).tokens, wanted)
    assert torch.equal(sample(states[:, -1].t().contiguous().t(), top_p=0.9, seeds=torch.arange(4)).tokens, wanted)
    backwards = states[:, -1].flip(0)
    assert torch.equal(sample(backwards, top_p=0.9, seeds=torch.arange(3, -1, -1)).tokens.flip(0), wanted)
    one = torch.randn(2000).expand(3, -1)
    assert len(set(sample(one, seeds=5).tokens.tolist())) == 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64))
def test_a_warm_call_allocates_little(dtype: torch.dtype):
    logits = torch.randn(2, 100_000).to(dtype)
    sampler = Sampler(temperature=0.8, top_p=0.9)
    sample(logits, sampler, seeds=1)
    tracemalloc.start()
    sample(logits, sampler, seeds=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with torch.profiler.profile(profile_memory=True) as profile:
        sample(logits, sampler, seeds=3)
    assert peak < 50_000  # and 200,000 logits
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) < 50_000


def test_no_row_and_one_token():
    assert sample(torch.empty(0, 7)).tokens.shape == (0,)
    found = sample(torch.tensor([[3.0], [math.inf], [-1e30]]), top_p=0.1, top_k=3, seeds=1, return_logprobs=True)
    assert found.tokens.tolist() == [0, 0, 0] and found.support.tolist() == [1, 1, 1]
    assert found.logprobs is not None and found.logprobs.tolist() == [0, 0, 0]
