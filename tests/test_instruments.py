"""Every instrument against a short NumPy twin; merging, NaN, fake tensors, random state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from evenkeel.functional._statistics import Magnitudes
from evenkeel.instruments import INSTRUMENTS, Stat, for_kind
from evenkeel.instruments._rows import some_rows
from evenkeel.schema import SITE_KINDS
from evenkeel.tracing.events import (
    ActivationEvent,
    AttentionEvent,
    Event,
    ExponentialEvent,
    GateEvent,
    GradientEvent,
    HeadEvent,
    InputGradientEvent,
    NormEvent,
    OutputEvent,
    ParameterEvent,
    ProbeEvent,
    RouterEvent,
    SigmoidHeadEvent,
    StreamEvent,
)

Numbers = dict[str, float | np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors, and other tests may run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class AtSite:
    """All instruments of a kind, as a site of it has them."""

    def __init__(self, kind: str) -> None:
        self.parts = [create() for create in for_kind(kind)]

    def observe(self, event: Event) -> None:
        for item in self.parts:
            item.observe(event)

    def merge(self, other: AtSite) -> None:
        for own, more in zip(self.parts, other.parts, strict=True):
            own.merge(more)

    def read(self) -> dict[Stat, Tensor]:
        return {stat: value for item in self.parts for stat, value in item.read().items()}


def stats(kind: str) -> set[Stat]:
    return {stat for create in for_kind(kind) for stat in create.stats}


def read(kind: str, *events: Event) -> dict[str, np.ndarray]:
    """The readings of one instrument by stat; a stat of another phase than forward as `phase:stat`."""
    instrument = AtSite(kind)
    with torch.no_grad():
        for event in events:
            instrument.observe(event)
    return finished(instrument)


def finished(instrument: AtSite) -> dict[str, np.ndarray]:
    return {
        stat.name if stat.phase == "forward" else f"{stat.phase}:{stat.name}": value.double().numpy()
        for stat, value in instrument.read().items()
    }


def assert_twin(found: dict[str, np.ndarray], expected: Numbers) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-12, err_msg=name)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- activation --------------------------------------------------------------------------------------------------


def activation(x: Tensor, function: Callable[[Tensor], Tensor], channel_dim: int = -1) -> ActivationEvent:
    return ActivationEvent(input=x, output=function(x), function=function, channel_dim=channel_dim, fan_in=12)


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


# --- router, head ------------------------------------------------------------------------------------------------


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


def head_twin(logits: np.ndarray, targets: np.ndarray) -> Numbers:
    """Rows of negative targets are ignored."""
    followers = (targets[1:] >= 0) & (targets[:-1] >= 0)
    echoes = (logits[1:].argmax(1) == targets[:-1])[followers]
    logits, targets = logits[targets >= 0], targets[targets >= 0]
    rows = np.arange(len(targets))

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return (np.log(np.exp(scaled - scaled.max(1)[:, None]).sum(1)) + scaled.max(1) - scaled[rows, targets]).mean()

    logsumexp = np.log(np.exp(logits - logits.max(1)[:, None]).sum(1)) + logits.max(1)
    p = np.exp(logits - logsumexp[:, None])
    right, top = p.argmax(1) == targets, p.max(1)
    bins = [(lower / 15 < top) & (top <= (lower + 1) / 15) for lower in range(15)]
    return {
        "loss": loss(1.0),
        "logsumexp_mean": logsumexp.mean(),
        "logit_absmax": np.abs(logits).max(),
        "logit_epsilon": 2.0**-23,
        "entropy": -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(1).mean(),
        "top_probability": top.mean(),
        "accuracy": right.mean(),
        "ece": sum(abs(right[one].mean() - top[one].mean()) * one.mean() for one in bins if one.any()),
        "optimal_temperature": min((2 ** (power / 6) for power in range(-12, 13)), key=loss),
        "temperature_gain": loss(1.0) - min(loss(2 ** (power / 6)) for power in range(-12, 13)),
        "target_entropy": -sum(share * np.log(share) for share in np.unique_counts(targets).counts / len(targets)),
        "probability_share": 0,
        "classes": logits.shape[1],
        "echo_share": echoes.mean() if echoes.size else math.nan,
        "tokens": len(targets),
    }


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 300.0])
@pytest.mark.parametrize(("rows", "classes"), [(500, 40), (1, 2), (130, 12_000)])
def test_head(rows: int, classes: int, sharpness: float):
    """Targets that are right more often than by chance; every seventh is ignored."""
    logits = sharpness * drawn(rows, classes)
    targets = (logits + 2 * sharpness * drawn(rows, classes, seed=1)).argmax(1)
    targets[1::7] = -100
    twin = head_twin(logits.double().numpy(), targets.numpy())
    assert_twin(read("head", HeadEvent(logits=logits, targets=targets)), twin)


def test_head_without_targets_and_with_excluded_classes():
    """Without targets nothing is said of the loss; a class of logit −inf has probability 0 and entropy 0·log 0 = 0."""
    logits = drawn(20, 9)
    twin = head_twin(logits.double().numpy(), np.zeros(20, dtype=int))
    wanted = (
        *("logsumexp_mean", "logit_absmax", "logit_epsilon", "entropy", "top_probability", "tokens", "classes"),
        "probability_share",
    )
    assert_twin(read("head", HeadEvent(logits=logits)), {name: twin[name] for name in wanted})
    widened = torch.cat([logits, torch.full((20, 1), -math.inf)], 1)
    np.testing.assert_allclose(read("head", HeadEvent(logits=widened))["entropy"], twin["entropy"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 300, 50_000])
def test_probabilities_are_told_from_logits(dtype: torch.dtype, classes: int):
    """A softmax in any dtype; not sigmoids, log-probabilities, or numbers in [0, 1] that sum to 1.05."""
    logits = 3 * drawn(70, classes)
    softmax = logits.softmax(-1)
    others = (logits.sigmoid(), logits.log_softmax(-1), softmax * 1.05, softmax + torch.eye(classes)[0] - 1)
    shares = [read("head", HeadEvent(logits=item.to(dtype)))["probability_share"] for item in (softmax, *others)]
    assert shares[0] == 1 and max(shares[1:]) < 0.5  # two sigmoids sum to about 1 in a few rows


def test_a_head_of_sigmoids():
    wanted = torch.tensor([1, 1, 0, 3, 1])
    found = read("head", SigmoidHeadEvent(logits=drawn(5, 40), wanted=wanted))
    assert_twin(found, {"sigmoid_classes": 40, "one_positive_share": 0.75, "sigmoid_rows": 4})


def test_a_probe_is_judged_by_its_largest_moves():
    event = ProbeEvent(
        earlier=torch.tensor([0.0, 0.3, 0.1]), later=torch.tensor([2.0, 0.5]), untouched=torch.tensor([0.0, 0.02])
    )
    for kind in ("head", "residual"):
        assert_twin(read(kind, event), {"future_leak": 0.15, "probe_noise": 0.01})


def test_calibration_is_judged_bin_by_bin():
    """Wrong at 0.9 and right at 0.95: neighbouring bins, whose errors of opposite sign must not cancel."""
    top = torch.tensor([0.9, 0.95])
    logits = torch.stack([top.log(), (1 - top).log()], 1)
    found = read("head", HeadEvent(logits=logits, targets=torch.tensor([1, 0])))
    assert found["ece"] == pytest.approx((0.9 + 0.05) / 2)


def test_any_class_can_be_the_ignored_one():
    logits, targets = drawn(50, 6), torch.arange(50) % 6
    twin = head_twin(logits.double().numpy(), torch.where(targets == 3, -1, targets).numpy())
    assert_twin(read("head", HeadEvent(logits=logits, targets=targets, ignore_index=3)), twin)


def test_rows_of_two_calls_are_no_neighbours():
    """Of three pairs within calls two echo; the pair across them would be a third."""
    targets = torch.tensor([0, 1, 2, 3, 4])
    logits = torch.eye(5)[torch.tensor([4, 0, 1, 2, 4])]
    calls = [HeadEvent(logits=logits[rows], targets=targets[rows]) for rows in (slice(0, 2), slice(2, 5))]
    assert read("head", *calls)["echo_share"] == pytest.approx(2 / 3)
    one, other = AtSite("head"), AtSite("head")
    one.observe(calls[0])
    other.observe(calls[1])
    one.merge(other)
    assert finished(one)["echo_share"] == pytest.approx(2 / 3)
    calls[1] = replace(calls[1], before=targets[1:2])
    assert read("head", *calls)["echo_share"] == pytest.approx(3 / 4)


def test_optimal_temperature_finds_the_temperature():
    """Targets drawn from the softmax of logits / 2: calibrated at temperature 2."""
    logits = 2 * drawn(4000, 10)
    noise = torch.rand(4000, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = (logits / 2 - (-noise.log()).log()).argmax(1)
    found = read("head", HeadEvent(logits=logits, targets=targets))
    assert found["optimal_temperature"] == pytest.approx(2, rel=0.13)
    assert found["ece"] > 0.1


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


def stepped(update: Tensor) -> ParameterEvent:
    return ParameterEvent(
        update=update,
        changed=torch.tensor([3.0, 12.0], dtype=torch.float64),
        moved=torch.tensor([5.0, 10.0], dtype=torch.float64),
        optimized=True,
        learning_rate=torch.tensor(1e-4, dtype=torch.float64),
        planned_rate=torch.tensor(3e-3, dtype=torch.float64),
    )


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


# --- what holds for all ------------------------------------------------------------------------------------------


def events(dtype: torch.dtype = torch.float32, batch: int = 6) -> dict[str, list[Event]]:
    """Every kind of event for every kind of site, sliced along the batch by `part`."""
    x, up = (drawn(batch, 10, 12, seed=seed).to(dtype) for seed in (0, 1))
    query, key = (drawn(batch, heads, 10, 8, seed=2).to(dtype) for heads in (4, 2))
    visible = torch.ones(10, 10, dtype=torch.bool).tril().expand(batch, 1, 10, 10)
    added = torch.zeros(batch, 1, 10, 10).masked_fill(~visible, -math.inf)
    padded = torch.arange(10).expand(batch, 10) < 2
    logits = 3 * drawn(batch * 10, 7).to(dtype)
    targets = torch.arange(batch * 10) % 7
    return {
        "activation": [activation(x, F.gelu)],
        "gate": [GateEvent(activated=torch.relu(x), up=up, product=torch.relu(x) * up)],
        "attention": [
            AttentionEvent(query=query, key=key, scale=0.3, causal=True, padded_queries=padded),
            AttentionEvent(query=query, key=key, scale=0.3, mask=visible),
            AttentionEvent(query=query, key=key, scale=0.3, mask=added),
            AttentionEvent(scores=query @ query.mT, visible=visible),
            AttentionEvent(scores=query @ query.mT + added, added=drawn(batch, 4, 10, 10, seed=3).to(dtype)),
        ],
        "router": [RouterEvent(chosen=targets.reshape(-1, 2), experts=7, scores=logits[::2])],
        "head": [
            HeadEvent(logits=logits, targets=targets),
            HeadEvent(logits=logits),
            SigmoidHeadEvent(logits=logits, wanted=targets % 3),
            ProbeEvent(earlier=up[:, 0, 0].abs(), later=up[:, 1, 0].abs(), untouched=up[:, 2, 0].abs()),
        ],
        "norm": [
            NormEvent(input=x, output=up, size=12, epsilon=1e-2, centred=True),
            NormEvent(input=x, output=up, size=12, epsilon=1e-2, centred=False, reads_stream=False),
        ],
        "residual": [
            OutputEvent(output=x, input=up),
            StreamEvent(carries_input=True),
            GradientEvent(gradient=up, output=up),
            ProbeEvent(earlier=up[:, 0, 0].abs(), later=up[:, 1, 0].abs(), untouched=up[:, 2, 0].abs()),
        ],
        "module": [
            OutputEvent(output=x),
            GradientEvent(gradient=up, output=up),
            InputGradientEvent(gradient=up),
            ExponentialEvent(exponents=up, dtype=dtype),
        ],
        "parameter": [replace(stepped(up), weight=x, gradient=up, width=11.0)],
    }


def part(event: Event, index: slice) -> Event:
    """The same event for some sequences of the batch of six."""
    if isinstance(event, ParameterEvent):
        return event
    fields = {name: getattr(event, name) for name in event.__slots__}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            rows = value.shape[0] // 6
            fields[name] = value[index.start * rows : index.stop * rows]
    return type(event)(**fields)


def test_every_kind_that_is_measured_has_an_instrument_and_an_event_here():
    measured = {instrument.kind for instrument in INSTRUMENTS.values()}
    assert measured == events().keys() == set(SITE_KINDS) - {"recurrence", "run"}
    for kind, seen in events().items():
        instrument = AtSite(kind)
        for event in seen:
            instrument.observe(event)
        found = instrument.read()
        assert found.keys() == stats(kind), kind
        for stat, value in found.items():
            assert value.dim() == (1 if stat.axis else 0), stat


PAIRED = {"echo_share"}  # of neighbouring rows of one call


@pytest.mark.parametrize("kind", events().keys())
def test_merging_is_associative_and_equals_one_batch(kind: str):
    for event in events()[kind]:
        whole = read(kind, event)
        for shape in ("left", "right"):
            parts = [AtSite(kind) for _ in range(3)]
            for instrument, index in zip(parts, (slice(0, 1), slice(1, 4), slice(4, 6)), strict=True):
                instrument.observe(part(event, index))
            if shape == "right":
                parts[1].merge(parts[2])
                parts[0].merge(parts[1])
            else:
                parts[0].merge(parts[1])
                parts[0].merge(parts[2])
            merged = finished(parts[0])
            assert merged.keys() == whole.keys()
            for name in merged.keys() - {"tokens"} - PAIRED:
                np.testing.assert_allclose(merged[name], whole[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", events().keys())
def test_merging_into_or_from_nothing_seen(kind: str):
    for seen_first in (True, False):
        one, other = AtSite(kind), AtSite(kind)
        assert not one.read()
        for event in events()[kind]:
            (one if seen_first else other).observe(event)
        expected = finished(one if seen_first else other)
        one.merge(other)
        for name, value in finished(one).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_waits_for_the_host(dtype: torch.dtype):
    """Fake tensors have no values: an `.item()` or a branch on a value raises."""
    with FakeTensorMode(), torch.no_grad():
        for kind, seen in events(dtype).items():
            first, second = AtSite(kind), AtSite(kind)
            for event in seen:
                first.observe(event)
                second.observe(event)
            first.merge(second)
            assert first.read().keys() == stats(kind), kind
        with pytest.raises(DataDependentOutputException):
            float(torch.zeros(3).sum())  # what the instruments would have raised


def test_random_state_and_events_stay_as_they_were():
    state = torch.get_rng_state()
    seen = events()
    before = [
        (value, value.clone())
        for kind in seen.values()
        for event in kind
        for value in (getattr(event, name) for name in event.__slots__)
        if isinstance(value, Tensor)
    ]
    for kind, several in seen.items():
        read(kind, *several)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, copy) and not value.requires_grad for value, copy in before)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("activation", {"input_mean", "input_rms", "input_absmax", "output_mean", "mean_energy", "slope_rms"}),
        ("gate", {"gate_open_share", "selectivity", "product_absmax", "product_kurtosis"}),
        ("head", {"loss", "logsumexp_mean", "logit_absmax", "entropy", "top_probability", "ece"}),
        ("residual", {"residual_rms", "residual_absmax_ratio", "backward:gradient_rms"}),
        ("parameter", {"weight_rms", "backward:gradient_rms", "update:update_ratio"}),
    ],
)
def test_one_nan_is_seen(kind: str, names: set[str]):
    for event in events()[kind]:
        fields = {name: getattr(event, name) for name in event.__slots__}
        for name, value in fields.items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 5:
                fields[name] = value.clone()
                fields[name].view(-1)[5] = math.nan
        found = read(kind, type(event)(**fields))
        assert all(np.isnan(found[name]) for name in names & found.keys())


@pytest.mark.parametrize("kind", sorted(events().keys() - {"parameter", "attention"}))
def test_an_expert_without_tokens_is_nothing_seen(kind: str):
    for event in events()[kind]:
        assert read(kind, part(event, slice(0, 0))) == {}


# --- magnitudes --------------------------------------------------------------------------------------------------


def test_magnitudes_of_a_large_tensor_are_an_even_sample():
    """Twelve channels of very different size: every stride that meets only some of them is far off."""
    x = drawn(200_000, 12) * torch.tensor([1e-3] * 4 + [1.0] * 4 + [1e3] * 4)
    sizes = Magnitudes()
    for piece in x.split(70_000):
        sizes.add(piece)
    sizes.add(drawn(10))
    exact = x.abs().flatten().double()
    assert float(sizes.median()) == pytest.approx(float(exact.median()), rel=0.02)
    for bound in (1e-4, 0.5, 700.0):
        share = float((exact > bound).double().mean())
        assert float(sizes.share_above(torch.tensor(bound))) == pytest.approx(share, abs=4e-3)


def test_magnitudes_stay_small():
    sizes = Magnitudes()
    for seed in range(8):
        sizes.add(drawn(300_000, seed=seed))
        assert sum(part.numel() for part in sizes._parts) <= 2**19


def test_merged_magnitudes_weigh_every_value_alike():
    """A large tensor of ones and a small one of twos: a sample that forgot its strides would overrate the small one."""
    for large_first in (True, False):
        large, small = Magnitudes(), Magnitudes()
        large.add(torch.ones(2_000_000))
        small.add(torch.full((500_000,), 2.0))
        both, other = (large, small) if large_first else (small, large)
        both.merge(other)
        assert float(both.share_above(torch.tensor(1.5))) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(("batch", "length", "columns"), [(32, 128, 768), (64, 512, 1024), (8, 96, 4096), (5, 7, 3)])
def test_a_sample_of_rows_meets_many_positions(batch: int, length: int, columns: int):
    positions = torch.arange(length).repeat(batch)[:, None].expand(-1, columns)
    seen = some_rows(positions)[:, 0]
    assert len(seen) >= min(len(positions), 32) and len(seen.unique()) >= min(length, 32)
