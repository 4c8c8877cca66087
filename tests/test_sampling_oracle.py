"""The sort oracle of sampling itself: against plainer formulas, and that it tells wrong definitions from right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_cases import assert_as_defined

from evenkeel.functional import distribution
from evenkeel.reference import sampling as reference

NUMBERS = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-20, 20)), min_size=1, max_size=12)


def plainly(logits: np.ndarray, name: str, value: float) -> list[int]:
    """What a filter leaves, by the formula that its paper gives."""
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))
    if name == "top_k":
        return sorted(order[: int(value)])
    if name == "min_p":
        return np.flatnonzero(p >= value * p.max()).tolist()
    if name == "epsilon":
        return np.flatnonzero(p >= value).tolist() or order[:1]
    if name == "top_n_sigma":
        return np.flatnonzero(logits >= logits.max() - value * logits.std()).tolist()
    if name == "typical_p":
        entropy = -(p * np.log(p)).sum()
        order.sort(key=lambda token: abs(-np.log(p[token]) - entropy))
    lengths = (length for length in range(1, len(order)) if math.fsum(p[order[:length]]) >= value)
    return sorted(order[: next(lengths, len(order))])


@given(numbers=NUMBERS, name=st.sampled_from(sorted({*reference.FILTERS} - {"temperature"})), share=st.floats(0.01, 1))
@settings(max_examples=600, deadline=None)
def test_a_filter_alone_is_what_its_paper_says(numbers: list[float], name: str, share: float):
    value = {"top_k": math.ceil(10 * share), "top_n_sigma": 3 * share}.get(name, share)
    options: dict[str, Any] = {name: value}
    row = reference.filtered(torch.tensor(numbers, dtype=torch.float64), **options)
    assume(row.margin > 1e-9)
    assert sorted(row.tokens) == plainly(np.array(numbers), name, value)


def test_a_margin_is_how_close_a_decision_was():
    """Weights 1, ½, ¼, ¼: sums 1, 1.5, 1.75 and 2 of 2."""
    logits = torch.tensor([1.0, 0.5, 0.25, 0.25], dtype=torch.float64).log()
    cases: tuple[tuple[dict[str, Any], int, float], ...] = (
        ({"top_p": 0.7}, 2, 0.05),
        ({"top_p": 0.8}, 3, 0.05),
        ({"top_p": 1 - 2**-53}, 4, 0.125),
        ({"top_p": 1.0}, 4, math.inf),
        ({"min_p": 0.4}, 2, 0.25),
        ({"min_p": 1.0}, 1, 0.5),
        ({"epsilon": 0.2}, 2, 0.25),
        ({"epsilon": 0.99}, 1, 1 - 0.25 / 0.99),
        ({"top_k": 2}, 2, math.inf),
        ({"temperature": 0.0}, 1, math.inf),
        ({"temperature": 0.5, "top_p": 0.9}, 2, 1.25 / 1.375 - 0.9),
    )
    for options, length, margin in cases:
        row = reference.filtered(logits, **options)
        assert (len(row.tokens), row.margin) == (length, pytest.approx(margin, rel=1e-9)), options


def test_a_number_falls_on_a_token():
    weights = [0.0, 1.0, 0.0, 2.0, 1.0, 0.0]
    for uniform, token in ((0.0, 1), (2**-53, 1), (0.25 - 2**-54, 1), (0.25, 3), (0.75, 4), (1 - 2**-53, 4)):
        assert reference.drawn(weights, uniform) == token
    assert reference.drawn([1.0, 1e-300, 1e-16], 1 - 2**-53) == 0
    assert reference.drawn([1.0, 1e-300, 2.5e-16], 1 - 2**-53) == 2


def keeping(row: reference.Row, fits: Callable[[int], bool]) -> reference.Row:
    return row.only(place for place in range(len(row.tokens)) if fits(place))


def sums_of(row: reference.Row, dtype: Any = np.float64) -> np.ndarray:
    return np.cumsum(np.array(row.weights(), dtype))


def short_of_p(row: reference.Row, p: float) -> reference.Row:
    sums = sums_of(row)
    return keeping(row, lambda place: place == 0 or bool(sums[place] < p * sums[-1]))


def beyond_p(row: reference.Row, p: float) -> reference.Row:
    sums = sums_of(row)
    return keeping(row, lambda place: place == 0 or bool(sums[place - 1] <= p * sums[-1]))


def summed_in_float32(row: reference.Row, p: float) -> reference.Row:
    sums = sums_of(row, np.float32)
    return keeping(row, lambda place: place == 0 or bool(sums[place - 1] < p * sums[-1]))


def last_of_equals(row: reference.Row, k: int) -> reference.Row:
    order = sorted(range(len(row.tokens)), key=lambda place: (-row.logits[place], -row.tokens[place]))
    return row.only(order[: int(k)])


def with_ties(row: reference.Row, k: int) -> reference.Row:
    return keeping(row, lambda place: row.logits[place] >= row.logits[int(k) - 1])


def above_the_share(row: reference.Row, share: float) -> reference.Row:
    weights = row.weights()
    return keeping(row, lambda place: place == 0 or weights[place] > share)


def above_the_bound(row: reference.Row, bound: float) -> reference.Row:
    weights = row.weights()
    return keeping(row, lambda place: place == 0 or weights[place] > bound * sum(weights))


def by_a_samples_deviation(row: reference.Row, n: float) -> reference.Row:
    least = row.logits[0] - n * float(torch.tensor(row.logits, dtype=torch.float64).std())
    return keeping(row, lambda place: row.logits[place] >= least)


def ordered_anew(row: reference.Row, value: float) -> reference.Row:
    quotients = torch.full((max(row.tokens) + 1,), -torch.inf, dtype=torch.float64)
    below = torch.tensor(row.logits, dtype=torch.float64) - row.logits[0]
    return reference.ranked(quotients.scatter(0, torch.tensor(row.tokens), below / value))


FEW, MANY, LONG_TAIL = [0.0, 1.0, 1.0, 1.0, -1.0, 0.12], [3.7] + [0.0] * 60, [0.0] + [-17.5] * 20_000


@pytest.mark.parametrize(
    ("logits", "options", "wrong"),
    [
        (FEW, {"top_p": 0.5}, short_of_p),
        ([1.0] * 4, {"top_p": 0.5}, beyond_p),
        (LONG_TAIL, {"top_p": 0.9999}, summed_in_float32),
        (FEW, {"top_k": 2}, last_of_equals),
        (FEW, {"top_k": 2}, with_ties),
        ([1.0, 1.0, 0.0], {"min_p": 1.0}, above_the_share),
        (FEW, {"min_p": 0.5}, reference.epsilon),
        ([1.0] * 4, {"epsilon": 0.25}, above_the_bound),
        (MANY, {"typical_p": 0.5}, reference.top_p),
        (FEW, {"top_n_sigma": 1.15}, by_a_samples_deviation),
        ([1e-20, 2e-20, 1.0], {"temperature": 2.0, "top_k": 2}, ordered_anew),
    ],
)
def test_a_wrong_definition_would_be_caught(
    logits: list[float], options: dict[str, Any], wrong: Any, monkeypatch: pytest.MonkeyPatch
):
    found = distribution(torch.tensor(logits), **options)
    assert_as_defined(found, reference.filtered(torch.tensor(logits), **options))
    monkeypatch.setitem(reference.FILTERS, next(iter(options)), wrong)
    with pytest.raises(AssertionError):
        assert_as_defined(found, reference.filtered(torch.tensor(logits), **options))


def test_a_share_of_more_than_what_is_left_would_be_caught(monkeypatch: pytest.MonkeyPatch):
    logits, options = torch.zeros(4), {"top_k": 2, "top_p": 0.5}
    found = distribution(logits, **options)
    assert_as_defined(found, reference.filtered(logits, **options))
    monkeypatch.setitem(reference.ORDERS, "transformers", ("top_p", "top_k"))
    with pytest.raises(AssertionError):
        assert_as_defined(found, reference.filtered(logits, **options))
