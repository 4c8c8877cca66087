"""The head's instruments against a short NumPy twin: losses, calibration, temperature, probes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from instrument_cases import AtSite, Numbers, assert_twin, drawn, finished, read

from evenkeel.tracing.events import (
    HeadEvent,
    ProbeEvent,
    SigmoidHeadEvent,
)

pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


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
