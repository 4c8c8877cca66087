"""Claims that no other covers, and softmaxes of other packages: numbers that closed forms and NumPy confirm."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from evenkeel import functional
from evenkeel.ledger import _softmaxes, claims


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict[str, float]]:
    measured = claims(["C22", "C49", "C50", "C53", "C54"]).claims
    return {item.claim.id: {number.name: number.value for number in item.measurements} for item in measured}


def test_a_layer_without_activation_is_linear(numbers: dict[str, dict[str, float]]) -> None:
    """The same layers in NumPy, with another seed."""
    random = np.random.default_rng(12)
    first, second = random.normal(size=(32, 128)) / np.sqrt(32), random.normal(size=(128, 32)) / np.sqrt(128)
    one, other = random.normal(size=(2, 256, 32))

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ first, 0) @ second

    departure = np.linalg.norm(relu(one + other) - relu(one) - relu(other)) / np.linalg.norm(relu(one + other))
    assert numbers["C49"]["relu.departure"] == pytest.approx(departure, rel=0.1)
    assert numbers["C49"]["identity.departure"] < 1e-14


def test_where_a_sigmoid_rounds_to_its_ends(numbers: dict[str, dict[str, float]]) -> None:
    """1 − σ(x) < e^−x is lost from half a unit in the last place of 1 on; e^−|x|, below half the least number."""
    for dtype, digits in (("float32", 25), ("bfloat16", 9), ("float16", 12)):
        found = numbers["C50"][f"evenkeel.{dtype}.one_from"]
        assert found == pytest.approx(digits * math.log(2), abs=0.05)
    assert numbers["C50"]["evenkeel.float32.zero_below"] == pytest.approx(-150 * math.log(2), abs=0.05)


def test_cross_entropy_wants_a_distribution(numbers: dict[str, dict[str, float]]) -> None:
    """Gradient descent in closed form: σ(z)'s own −Σ q log σ(z) falls for ever, so that each σ(z) goes to 1."""
    c53 = numbers["C53"]
    assert c53["softmax.cross_entropy_over_entropy"] == pytest.approx(1, abs=1e-6)
    assert c53["sigmoids.cross_entropy_over_entropy"] < 0.01 and c53["sigmoids.sum"] > 7.5
    assert c53["binary.sum"] == pytest.approx(1, abs=1e-4)


def test_long_keys_win(numbers: dict[str, dict[str, float]]) -> None:
    random = np.random.default_rng(13)
    key = random.normal(size=(512, 64))
    key *= np.exp(random.normal(size=(512, 1))) / np.linalg.norm(key, axis=1, keepdims=True)
    itself = ((key @ key.T).argmax(1) == np.arange(512)).mean()
    assert numbers["C54"]["unequal_lengths.itself_first"] == pytest.approx(itself, abs=0.1)


def test_softmaxes_that_are_not_installed_are_listed(
    numbers: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    c22 = numbers["C22"]
    assert all((f"{name}.survives" in c22) != (f"{name}.not_installed" in c22) for name in _softmaxes.IMPLEMENTATIONS)
    assert c22["implementations"] == sum(f"{name}.survives" in c22 for name in _softmaxes.IMPLEMENTATIONS)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    without = {number.name: number.value for number in claims("C22").claims[0].measurements}
    assert without["scipy.not_installed"] == 1 and "scipy.survives" not in without
    assert without["implementations.survivors"] == 1


def test_one_softmax_that_overflows_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_softmaxes.IMPLEMENTATIONS, "careless", lambda: lambda x: functional.naive_softmax(x, dim=-1))
    (c22,) = claims("C22").claims
    assert c22.verdict == "does not hold"
    assert [bound.measurement for bound in c22.missed] == ["implementations.survivors"]
