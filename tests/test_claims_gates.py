"""Claims on gates, bounded outputs and life without softmax (C11, C12, C29, C42), against torch, tables and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenkeel.ledger import CLAIMS, Ledger, MeasuredClaim, Verdict, _training, claims, gates, pixels, without_softmax
from evenkeel.ledger._training import SEEDS, Networks, interval, networks

MEASURED = ("C11", "C12", "C29", "C42")


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return claims(MEASURED)


@pytest.fixture(scope="module")
def numbers(ledger: Ledger) -> dict[str, dict[str, float]]:
    return {item.claim.id: {number.name: number.value for number in item.measurements} for item in ledger.claims}


def verdict_now(name: str) -> Verdict:
    claim = CLAIMS[name]
    return MeasuredClaim(claim=claim, measurements=tuple(claim.measure())).verdict


def test_an_lstm_is_torchs() -> None:
    cells = networks((0.01,), (2, 32), (8, 32), (32,), (8, 1), (1,))
    to_gates, recurrent, bias, to_output, output_bias = (item.detach() for item in cells.parameters)
    bias = bias + torch.linspace(-1, 1, 32, dtype=torch.float64)  # else all biases are 0
    inputs, _ = gates._kept_bits(torch.Generator().manual_seed(3), 6)
    found = gates._logits(torch.sigmoid, inputs, (to_gates, recurrent, bias, to_output, output_bias))
    theirs: Any = nn.LSTM(2, 8, batch_first=True, dtype=torch.float64)
    # Here the order is forget, input, output, candidate; torch's is input, forget, candidate, output.
    order = torch.cat([torch.arange(8) + 8 * place for place in (1, 0, 3, 2)])
    for network in range(SEEDS):
        with torch.no_grad():
            theirs.weight_ih_l0.copy_(to_gates[network].T[order])
            theirs.weight_hh_l0.copy_(recurrent[network].T[order])
            theirs.bias_ih_l0.copy_(bias[network, 0][order])
            theirs.bias_hh_l0.zero_()
            hidden, _ = theirs(inputs[network])
            expected = (hidden @ to_output[network] + output_bias[network])[..., 0]
        assert torch.allclose(found[network], expected, rtol=1e-12, atol=1e-14)


def test_kept_bits() -> None:
    inputs, wanted = gates._kept_bits(torch.Generator().manual_seed(4), 30)
    for sequence, answers in zip(inputs.flatten(0, 1)[:20].tolist(), wanted.flatten(0, 1)[:20].tolist(), strict=True):
        kept = None
        for (bit, mark), answer in zip(sequence, answers, strict=True):
            kept = bit if mark else kept
            assert answer == (kept == 1)
    assert inputs[..., 1].mean().item() == pytest.approx(0.1 + 0.9 / 30, abs=0.03)


def test_networks_train_as_torchs_adam_does() -> None:
    """Each network as if alone: its own rate, its own clipped gradient."""
    nets = networks((0.01, 0.1), (3, 2), (2,))
    start = [item.detach().clone() for item in nets.parameters]
    inputs = torch.randn(SEEDS, 5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def losses(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (4 * (x @ weight + bias - 1)).square().mean((-2, -1))

    nets.train(lambda: losses(nets.for_each(inputs), *nets.parameters), 7)
    for network in (0, 3, SEEDS, 2 * SEEDS - 1):
        alone = [item[network].clone().requires_grad_() for item in start]
        optimizer = torch.optim.Adam(alone, lr=(0.01, 0.1)[network // SEEDS], betas=(0.9, 0.99))
        for _ in range(7):
            optimizer.zero_grad()
            losses(inputs[network % SEEDS], *alone).backward()
            nn.utils.clip_grad_norm_(alone, 1.0)
            optimizer.step()
        for ours, theirs in zip(nets.parameters, alone, strict=True):
            assert torch.allclose(ours[network], theirs, rtol=1e-6)


def test_the_best_rate_of_each_seed() -> None:
    nets = Networks((1.0, 2.0), ())
    losses = torch.arange(2.0 * SEEDS).flip(0).double()
    losses[SEEDS] = math.nan
    (chosen,) = nets.best(losses, torch.arange(2.0 * SEEDS).double())
    assert chosen.tolist() == [0.0, *range(SEEDS + 1, 2 * SEEDS)]


def test_intervals_are_students() -> None:
    """t with 7 degrees of freedom has its 97.5% point at 2.3646 (tables); checked here by integrating its density."""
    assert SEEDS == 8
    density = np.array([(1 + x * x / 7) ** -4 for x in np.linspace(0, _training._STUDENT, 200_001)])
    inside = 2 * np.trapezoid(density, dx=_training._STUDENT / 200_000)
    whole = math.sqrt(7 * math.pi) * math.gamma(3.5) / math.gamma(4)
    assert inside / whole == pytest.approx(0.95, abs=1e-5)
    values = np.arange(8.0) ** 2
    mean, low, high = (item.value for item in interval("x", torch.tensor(values), "1"))
    half = 2.3646 * values.std(ddof=1) / math.sqrt(8)
    assert (mean, low, high) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))


def test_gates_need_a_function(numbers: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    c11 = numbers["C11"]
    assert c11["sigmoid.long.right"] > 0.99 > 0.9 > c11["identity.long.right"]
    monkeypatch.setattr(gates, "_STEPS", 40)
    monkeypatch.setitem(gates._GATES, "sigmoid", torch.zeros_like)  # a gate that is always shut remembers nothing
    monkeypatch.setattr(gates, "_GATES", {name: gates._GATES[name] for name in ("sigmoid", "identity")})
    values = {number.name: number.value for number in gates.C11.measure()}
    assert values["sigmoid.right"] < 0.7
    found = MeasuredClaim(claim=gates.C11, measurements=tuple(gates.C11.measure()))
    assert {"sigmoid.right", "sigmoid.long.right"} <= {bound.measurement for bound in found.missed}


def test_what_explains_a_gain() -> None:
    stream = torch.Generator().manual_seed(6)
    own, other = (torch.randn(2, 2048, 3, generator=stream, dtype=torch.float64) for _ in range(2))
    assert (gates._explained(own.abs(), own) > 0.98).all()
    assert (gates._explained(other, own).abs() < 0.1).all()
    assert gates._explained(own + other, own).tolist() == pytest.approx([0.5, 0.5], abs=0.08)
    channels = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).expand(1, 2048, 3)
    assert gates._selectivity(channels + 0 * own[:1]).item() == 0
    mixed = channels * math.sqrt(1.5) + other[:1]  # channels' variance 1, tokens' variance 1
    assert gates._selectivity(mixed).item() == pytest.approx(0.5, abs=0.05)


def test_gating_has_a_matrix_to_choose_by(
    numbers: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    c29 = numbers["C29"]
    assert c29["gated.gain_explained_by_own_input"] < 0.75 < 0.95 < c29["gelu.gain_explained_by_own_input"]
    assert c29["gated.selectivity"] > 0.9 < c29["gelu.selectivity"]
    assert c29["gated_frozen.loss"] > c29["gated.loss"]
    monkeypatch.setattr(gates, "_FIT_STEPS", 0)  # what was never trained has learned nothing
    assert verdict_now("C29") == "does not hold"


def test_pixels(numbers: dict[str, dict[str, float]]) -> None:
    c12 = numbers["C12"]
    assert c12["full_range.sigmoid.outside"] == c12["mid_range.sigmoid.outside"] == 0
    assert c12["full_range.linear.outside"] > 0.1 > 0.01 > c12["mid_range.linear.outside"]
    images = pixels._images(torch.Generator().manual_seed(7), 500, darkest=0.0)
    assert images.min() == 0 and 0.99 < images.max() <= 1 and images.shape == (SEEDS, 500, 64)
    middle = pixels._images(torch.Generator().manual_seed(7), 500, darkest=0.25)
    assert middle.min() == 0.25 and torch.allclose(middle, 0.25 + images / 2)


@pytest.mark.parametrize(
    ("arm", "function", "verdict"),
    [
        ("sigmoid", lambda x: x, "does not hold"),  # no better than what it is compared with
        ("linear", torch.sigmoid, "does not hold"),  # nothing to be kept in range
    ],
)
def test_outputs_that_are_alike(arm: str, function: object, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_STEPS", 30)
    monkeypatch.setitem(pixels._OUTPUTS, arm, function)
    assert verdict_now("C12") == verdict


def test_attention_and_labels_without_softmax(numbers: dict[str, dict[str, float]]) -> None:
    c42 = numbers["C42"]
    assert c42["attention.softmax.found"] > c42["attention.sigmoid.found"] > 0.9
    # Softmax puts at most one label above ½, so it can name sets of one label at best: 6 of the 64, by symmetry.
    assert c42["labels.softmax.exact"] < 7 / 64 + 0.1 < 0.8 < c42["labels.sigmoid.exact"]
    sets = without_softmax._label_sets(normalised=True)
    assert sets.shape == (SEEDS,) and (sets < 0.25).all()


def test_a_head_that_cannot_choose_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_softmax, "_STEPS", 40)
    uniform = without_softmax._retrieval(lambda scores: 1 / 16 + 0 * scores)
    assert 0.5 < uniform.mean() < 0.7  # one of sixteen values is a little of their mean
    monkeypatch.setattr(without_softmax, "_sigmoid", lambda scores: 1 / 16 + 0 * scores)
    monkeypatch.setattr(without_softmax, "_label_sets", lambda **_: torch.zeros(SEEDS, dtype=torch.float64))
    monkeypatch.setattr(without_softmax, "deepseek_v3_routers", lambda: 0)
    assert verdict_now("C42") == "holds"  # a world where nothing but softmax works
