"""Facts of pointwise functions against quadrature of the float64 references, and against torch's own gradients."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evenkeel.facts import FACTS, Facts, ZeroTails
from evenkeel.functional import ACTIVATIONS
from evenkeel.reference.activations import REFERENCES, SLOPES

NAMES = tuple(FACTS)

IN_TORCH = {
    "identity": lambda x: x * 1,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
}


def slope(function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


def expectation(function) -> float:
    """E g(x) for x ~ N(0, 1): 40 Gauss-Legendre nodes on each unit interval, so that kinks at integers do no harm."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x = torch.tensor(np.concatenate([(nodes + 1) / 2 + left for left in range(-14, 14)]))
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float((function(x) * density * torch.tensor(np.tile(weights / 2, 28))).sum())


def normal_below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def test_every_reference_has_facts_and_the_other_way_round():
    assert set(FACTS) == set(REFERENCES) == set(IN_TORCH)


@pytest.mark.parametrize("name", NAMES)
def test_moments_under_a_standard_normal(name: str):
    f, facts = REFERENCES[name], FACTS[name]
    assert expectation(f) == pytest.approx(facts.mean, abs=1e-9)
    assert expectation(lambda x: f(x) ** 2) == pytest.approx(facts.second_moment, abs=1e-9)
    assert expectation(lambda x: slope(f, x) ** 2) == pytest.approx(facts.slope_second_moment, abs=1e-9)
    assert facts.mean_energy == pytest.approx(expectation(f) ** 2 / expectation(lambda x: f(x) ** 2), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_largest_slope_and_the_share_of_small_slopes(name: str):
    f, facts = REFERENCES[name], FACTS[name]
    grid = torch.linspace(-14, 14, 28 * 2000 + 2, dtype=torch.float64)  # an even count: no point on a kink
    size = slope(f, grid).abs()
    if math.isinf(facts.max_slope):
        assert float(slope(f, torch.tensor(1e6, dtype=torch.float64))) > 1e6
        small = size == 0
    else:
        beside_kinks = torch.tensor([-3, 0, 3], dtype=torch.float64)[:, None] + torch.tensor([-1e-9, 1e-9]).double()
        largest = float(slope(f, torch.cat([grid, beside_kinks.flatten()])).abs().max())
        assert largest == pytest.approx(facts.max_slope, rel=1e-6)
        small = size < 0.01 * facts.max_slope

    def is_small(x: float) -> bool:
        value = float(slope(f, torch.tensor([x], dtype=torch.float64)).abs())
        return value == 0 if math.isinf(facts.max_slope) else value < 0.01 * facts.max_slope

    edges = []
    for place in torch.nonzero(small[1:] != small[:-1]).flatten().tolist():
        low, high = float(grid[place]), float(grid[place + 1])
        inside = is_small(low)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if is_small(middle) == inside else (low, middle)
        edges.append(low)
    bounds = [-math.inf, *edges, math.inf]
    shares = [normal_below(high) - normal_below(low) for low, high in pairwise(bounds)]
    first = 0 if small[0] else 1
    assert sum(shares[first::2]) == pytest.approx(facts.small_slope_share, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_of_the_derivative_and_flat_parts(name: str):
    f, facts = REFERENCES[name], FACTS[name]
    zeros = torch.tensor(facts.derivative_zeros, dtype=torch.float64)
    assert bool((slope(f, zeros).abs() < 1e-9).all())
    grid = torch.linspace(-20, 20, 40002, dtype=torch.float64)
    values = slope(f, grid)
    crossings = int(((values[1:] * values[:-1]) < 0).sum())
    assert crossings == len(facts.derivative_zeros)
    flat = torch.zeros_like(grid, dtype=torch.bool)
    for low, high in facts.flat:
        flat |= (grid > low) & (grid < high)
    assert bool((values[flat] == 0).all())
    assert bool((values[~flat & (grid.abs() < 5)] != 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_range_and_saturation(name: str):
    f, facts = REFERENCES[name], FACTS[name]
    low, high = facts.range
    grid = torch.cat([torch.linspace(-50, 50, 100_001, dtype=torch.float64), torch.tensor([-1e5, 1e5]).double()])
    values = f(grid)
    assert float(values.min()) >= low - 1e-9 and float(values.max()) <= high + 1e-9
    assert float(values.min()) == pytest.approx(low, abs=1e-4) if math.isfinite(low) else float(values.min()) < -40
    assert float(values.max()) == pytest.approx(high, abs=1e-4) if math.isfinite(high) else float(values.max()) > 40
    if facts.derivative_zeros:
        lowest = REFERENCES[name](torch.tensor(facts.derivative_zeros, dtype=torch.float64))
        assert float(lowest.min()) == pytest.approx(low, abs=1e-9)
    left, right = (float(slope(f, torch.tensor([x], dtype=torch.float64)).abs()) < 1e-6 for x in (-1e5, 1e5))
    assert facts.saturates == {(0, 0): "neither", (1, 0): "left", (0, 1): "right", (1, 1): "both"}[left, right]
    assert facts.bounded == (math.isfinite(low) and math.isfinite(high))


def numbers(dtype: torch.dtype) -> Tensor:
    """All numbers of a 16-bit format up to 65,504 in size; of float32 one in 4,096, and those near each bound."""
    if dtype == torch.float32:
        first, last = (torch.tensor(value).view(torch.int32).item() for value in (2.0**-20, 65504.0))
        positive = torch.arange(int(first), int(last), 4096, dtype=torch.int32).view(torch.float32)
    else:
        positive = torch.arange(1, 0x7FFF, dtype=torch.int16).view(dtype)
        positive = positive[positive.isfinite() & (positive <= 65504)]
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=dtype), positive])


def assert_zero_tails(tails: ZeroTails, x: Tensor, gradient: Tensor, *, within: float = 0.0) -> None:
    """The gradient is 0 in the tails, and begins where they end; within: or so much nearer to 0, as a share."""
    zero = gradient == 0
    assert bool(zero[(x <= tails.below) | (x >= tails.above)].all())
    inside = x[~zero]
    if x.dtype == torch.float32:  # one number in 4,096 is looked at
        assert math.isinf(tails.below) or float(inside.min()) < tails.below + 2e-3 * abs(tails.below) + 1e-5
        assert math.isinf(tails.above) or float(inside.max()) > tails.above - 2e-3 * abs(tails.above) - 1e-5
        assert bool(zero[:1]) == math.isfinite(tails.below) and bool(zero[-1:]) == math.isfinite(tails.above)
    else:
        before, behind = x[x < inside.min()], x[x > inside.max()]
        below, above = (
            float(before.max()) if len(before) else -math.inf,
            float(behind.min()) if len(behind) else math.inf,
        )
        assert tails.below <= below <= (1 - within) * tails.below
        assert (1 - within) * tails.above <= above <= tails.above


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_where_gradients_are_rounded_to_zero(name: str, dtype: torch.dtype):
    facts, key, x = FACTS[name], str(dtype).removeprefix("torch."), numbers(dtype)
    # torch's own slope of GELU in float16 ends at -6.04 on a Zen 4, at -5.97 on a Xeon with AMX; one number serves both
    within = 0.015 if (name, key) == ("gelu", "float16") else 0.0
    tails = facts.torch_zero[key]
    if (name, key) == ("gelu", "bfloat16") and torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert facts.evenkeel_zero is not None
        tails = facts.evenkeel_zero[key]  # there torch loses no more than the format does, as ours
    assert_zero_tails(tails, x, slope(IN_TORCH[name], x), within=within)
    assert (facts.evenkeel_zero is None) == (name not in ACTIVATIONS)
    if facts.evenkeel_zero is not None:
        assert_zero_tails(facts.evenkeel_zero[key], x, slope(ACTIVATIONS[name].function, x))


@pytest.mark.parametrize("name", tuple(SLOPES))
def test_slopes_of_the_references_are_their_derivatives(name: str):
    x = torch.cat([torch.linspace(-8, 8, 1602), torch.tensor([-30.0, 30.0])]).double()
    assert torch.allclose(SLOPES[name](x), slope(REFERENCES[name], x), rtol=1e-12, atol=1e-13)


def test_mean_energy_of_a_centred_function_is_zero():
    facts = FACTS["tanh"]
    assert isinstance(facts, Facts) and facts.mean_energy == 0


def test_the_page_of_functions_is_current():
    docs = Path(__file__).parents[1] / "docs"
    made = subprocess.run([sys.executable, docs / "activations.py"], capture_output=True, text=True, check=True).stdout
    assert made == (docs / "activations.md").read_text(), "run: python docs/activations.py > docs/activations.md"
