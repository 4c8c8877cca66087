"""The sampling kernel's own promises: samples that mislead it, float32's error bound, its memory, its layouts."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from evenkeel.functional import Sampler, sample
from evenkeel.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable_because() is not None, reason="there is no kernel here")

APART, STRETCH = 512, 16
"""How a row of up to 131,072 is sampled: the first 16 of each 512."""


def support_by_sorting(logits: Tensor, p: float, temperature: float) -> int:
    """How long the shortest prefix is, by NumPy's sort and cumulative sum in 80 bits."""
    numbers = logits.numpy().astype(np.longdouble)
    mass = np.cumsum(np.exp((np.sort(numbers)[::-1] - numbers.max()) / np.longdouble(temperature)))
    return int(np.searchsorted(mass, p * mass[-1])) + 1


def is_sampled(size: int) -> Tensor:
    return torch.arange(size) % APART < STRETCH


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
        assert error < SLACK / 2, (top, temperature, error)


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
