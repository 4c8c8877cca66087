"""Instruments of every other kind against a short NumPy twin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from instrument_cases import Numbers, activation, assert_twin, drawn, read, stepped

from evenkeel.tracing.events import (
    ActivationEvent,
    ExponentialEvent,
    GateEvent,
    GradientEvent,
    InputGradientEvent,
    OutputEvent,
    ParameterEvent,
    RouterEvent,
    StreamEvent,
)

pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


# --- activation --------------------------------------------------------------------------------------------------


def activation_twin(x: np.ndarray, y: np.ndarray, slope: np.ndarray, largest_slope: float) -> Numbers:
    """Of (tokens, channels)."""
    return {
        "input_mean": x.mean(),
        "input_rms": np.sqrt((x**2).mean()),
        "input_absmax": np.abs(x).max(),
        "output_mean": y.mean(),
        "output_rms": np.sqrt((y**2).mean()),
        "output_absmax": np.abs(y).max(),
        "mean_energy": (y.mean(0) ** 2).sum() / (y**2).mean(0).sum(),
        "zero_gradient_share": (slope == 0).mean(),
        "small_gradient_share": (np.abs(slope) < 1e-2 * largest_slope).mean(),
        "dead_channel_share": (slope == 0).all(0).mean(),
        "slope_rms": np.sqrt((slope**2).mean()),
        "tokens": len(x),
        "channels": x.shape[1],
        "fan_in": 12,
    }


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


SLOPES = {
    "relu": (torch.relu, lambda x: (x > 0) * 1.0, 1.0),
    "relu_in_place": (torch.relu_, lambda x: (x > 0) * 1.0, 1.0),
    "tanh": (torch.tanh, lambda x: 1 - np.tanh(x) ** 2, 1.0),
    "sigmoid": (torch.sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x)), 0.25),
    "silu": (F.silu, lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))), 1.0998393),
    "relu_squared": (lambda x: torch.relu(x).square(), lambda x: 2 * np.maximum(x, 0), 20.0),
}


@pytest.mark.parametrize("shape", [(3, 50, 40), (200, 3000), (77,)])
@pytest.mark.parametrize("name", SLOPES)
def test_activation(name: str, shape: tuple[int, ...]):
    """Channels have means of their own, some so low that ReLU is dead there."""
    function, slope, largest = SLOPES[name]
    x = drawn(*shape) + (torch.linspace(-4.5, 3, shape[-1]) if len(shape) > 1 else 0)
    flat = x.double().reshape(-1, shape[-1] if len(shape) > 1 else 1)
    event = ActivationEvent(input=x, output=function(x.clone()), function=function, fan_in=12)
    twin = activation_twin(flat.numpy(), function(flat.clone()).numpy(), slope(flat.numpy()), largest)
    assert_twin(read("activation", event), twin)


def test_channels_of_a_convolution():
    x = drawn(2, 5, 6, 7) + torch.linspace(-4, 2, 5)[:, None, None]
    flat = x.movedim(1, -1).reshape(-1, 5).double()
    twin = activation_twin(flat.numpy(), torch.relu(flat).numpy(), (flat > 0).double().numpy(), 1.0)
    assert_twin(read("activation", activation(x, torch.relu, channel_dim=1)), twin)


@pytest.mark.parametrize(
    ("function", "dtype", "dies_at"),
    [
        (torch.sigmoid, torch.float32, 16.69),
        (torch.sigmoid, torch.bfloat16, 6.25),
        (torch.sigmoid, torch.float16, 8.375),
        (torch.tanh, torch.float32, 9.06),
        (torch.tanh, torch.bfloat16, 3.5),
    ],
)
def test_the_gradient_is_zero_where_the_dtype_says_so(function: Callable, dtype: torch.dtype, dies_at: float):
    """The published thresholds of saturation; measured in float32, a sigmoid of bf16 would live until 16.69."""
    for x, share in ((dies_at * 1.01, 1.0), (dies_at * 0.97, 0.0)):
        event = activation(torch.full((4, 3), x).to(dtype), function)
        found = read("activation", event)
        assert found["zero_gradient_share"] == found["dead_channel_share"] == share


# --- gate --------------------------------------------------------------------------------------------------------


def gate_twin(a: np.ndarray, product: np.ndarray) -> Numbers:
    """Of (tokens, channels)."""
    centred = product - product.mean()
    return {
        "gate_open_share": (np.abs(a) > 0.5 * np.sqrt((a**2).mean())).mean(),
        "selectivity": a.var(0).mean() / a.var(),
        "product_absmax": np.abs(product).max(),
        "product_kurtosis": (centred**4).mean() / (centred**2).mean() ** 2,
        "dead_channel_share": (a == 0).all(0).mean(),
        "tokens": len(a),
        "activated_rms": np.sqrt((a**2).mean()),
        "token_share": a.var(0).mean() / (a**2).mean(),
    }


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", [(3, 40, 30), (100, 5000)])
def test_gate(shape: tuple[int, ...], offset: float):
    """With an offset, variance is what is left of a large mean: sums in float32 would lose it."""
    a = torch.relu(drawn(*shape) + torch.linspace(-8, 2, shape[-1])) + offset
    up = drawn(*shape, seed=1)
    flat = [item.reshape(-1, shape[-1]).double().numpy() for item in (a, a * up)]
    assert_twin(read("gate", GateEvent(activated=a, up=up, product=a * up)), gate_twin(flat[0], flat[1]))


def test_a_gate_that_does_not_choose_and_one_that_only_chooses():
    same = drawn(30).expand(50, 30)
    alike = drawn(50, 1).expand(50, 30)
    one = torch.ones(50, 30)
    assert read("gate", GateEvent(activated=same, up=one, product=same))["selectivity"] == pytest.approx(0, abs=1e-12)
    assert read("gate", GateEvent(activated=alike, up=one, product=alike))["selectivity"] == pytest.approx(1)


# --- router ------------------------------------------------------------------------------------------------


def test_router():
    chosen = torch.tensor([[0, 1], [0, 2], [0, 1]])
    share = np.array([3, 2, 1]) / 6
    entropy = -(share * np.log(share)).sum() / np.log(4)
    expected: Numbers = {
        "load_entropy_relative": entropy,
        "top_share": 0.5,
        "experts": 4,
        "chosen_per_token": 2,
        "tokens": 3,
    }
    assert_twin(read("router", RouterEvent(chosen=chosen, experts=4)), expected)
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.0, 0.1, 0.0], [1.0, 0.0, 0.0, -1.0]])
    found = read("router", RouterEvent(chosen=chosen, experts=4, scores=scores))
    assert_twin(found, {**expected, "tied_share": 1 / 3})


# --- residual, parameter, numerics -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 7, 33), (2, 6, 33), (1,)])
def test_residual(shape: tuple[int, ...]):
    x, gradient, given = drawn(*shape) * 5, drawn(*shape, seed=1), drawn(*shape, seed=2) + 1
    size = np.abs(x.double().numpy())
    own, before = ((item - item.reshape(-1, shape[-1]).mean(0)).double().numpy().ravel() for item in (x, given))
    expected: Numbers = {
        "residual_rms": np.sqrt((size**2).mean()),
        "residual_absmax_ratio": size.max() / np.median(size),
        "top_channel_share": (size**2 / (size**2).sum(-1, keepdims=True)).reshape(-1, shape[-1]).mean(0).max(),
        "backward:gradient_rms": np.sqrt((gradient.double().numpy() ** 2).mean()),
    }
    assert_twin(read("residual", OutputEvent(output=x), GradientEvent(gradient=gradient)), expected)
    g, out = gradient.double().numpy(), x.double().numpy()
    across = g - (g * out).sum(-1, keepdims=True) / (out * out).sum(-1, keepdims=True) * out
    both = {**expected, "backward:gradient_across_rms": np.sqrt((across**2).mean())}
    assert_twin(read("residual", OutputEvent(output=x), GradientEvent(gradient=gradient, output=x)), both)
    expected["input_cosine"] = 0 if len(shape) == 1 else own @ before / np.sqrt((own @ own) * (before @ before))
    for carries, share in (((True, True), 1), ((True, False, True), 0)):
        told = [StreamEvent(carries_input=item) for item in carries]
        found = read("residual", OutputEvent(output=x, input=given), GradientEvent(gradient=gradient), *told)
        assert_twin(found, {**expected, "carries_input": share})


def test_parameter():
    weight, gradient, update = drawn(30, 20), drawn(30, 20, seed=1) * 1e-3, drawn(30, 20, seed=2) * 1e-5
    rms = [np.sqrt((item.double().numpy() ** 2).mean()) for item in (weight, gradient, update)]
    found = read("parameter", ParameterEvent(weight=weight, gradient=gradient, update=update))
    expected: Numbers = {
        "weight_rms": rms[0],
        "elements": 600,
        "backward:gradient_rms": rms[1],
        "update:update_ratio": rms[2] / rms[0],
    }
    assert_twin(found, expected)
    assert read("parameter", ParameterEvent(weight=weight)).keys() == {"weight_rms", "elements"}
    zeros = torch.zeros(3)
    assert read("parameter", ParameterEvent(weight=zeros, update=zeros))["update:update_ratio"] == 0


def unevenness(weight: np.ndarray) -> float:
    """The larger F-ratio of rows and columns: n times the variance of the groups' means over that of all squares."""
    groups = [[line @ line / len(line) for line in table] for table in (weight, weight.T)]
    widths = weight.shape[1], weight.shape[0]
    return max(n * np.var(means, ddof=1) for n, means in zip(widths, groups, strict=True)) / np.var(weight**2)


def test_a_linear_map_and_its_optimizer():
    weight, update = drawn(30, 20), drawn(30, 20, seed=2) * 1e-5
    rms = [np.sqrt((item.double().numpy() ** 2).mean()) for item in (weight, update)]
    expected: Numbers = {
        "weight_rms": rms[0],
        "elements": 600,
        "gain": rms[0] * 600**0.25,
        "unevenness": unevenness(weight.double().numpy()),
        "update:update_ratio": rms[1] / rms[0],
        "update:in_optimizer": 1,
        "update:learning_rate": 1e-4,
        "update:planned_learning_rate": 3e-3,
        "update:changed_share": 0.25,
        "update:moved_share": 0.5,
    }
    width = math.sqrt(30 * 20)
    assert_twin(read("parameter", ParameterEvent(weight=weight, width=width), stepped(update)), expected)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float16, 65504.0), (torch.bfloat16, 3.3895314e38), (torch.float32, 3.4028235e38)],
)
def test_numerics(dtype: torch.dtype, largest: float):
    x = (drawn(400, 500) * 3).to(dtype)
    expected: Numbers = {
        "nonfinite": 0,
        "headroom_log2": np.log2(largest) - np.log2(np.abs(x.double().numpy()).max()),
        "backward:nonfinite": 2,
        "backward:nonfinite_input": 1,
        "exponent_max": float(x.max()),
        "exp_headroom": np.log(largest) - float(x.max()),
    }
    gradient, before = x.clone(), x.clone()
    gradient[7, 9], gradient[399, 499], before[3, 4] = math.nan, -math.inf, math.inf
    seen = (
        OutputEvent(output=x),
        GradientEvent(gradient=gradient),
        InputGradientEvent(gradient=before),
        ExponentialEvent(exponents=x, dtype=dtype),
    )
    assert_twin(read("module", *seen), expected)
