"""Predicted scales through a hundred layers against measured ones, against known cases, and on the page."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evenkeel.errors import UsageError
from evenkeel.facts import FACTS
from evenkeel.mean_field import Scales, gaussian_moments, predicted_scales
from evenkeel.reference.activations import REFERENCES

DOCS = Path(__file__).parents[1] / "docs"


def experiment() -> Any:
    """docs/mean_field.py, which makes the page and measures what is on it."""
    specification = importlib.util.spec_from_file_location("mean_field_page", DOCS / "mean_field.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


PAGE = experiment()


def largest_error(found: Scales, predicted: Scales) -> float:
    """|measured / predicted − 1|, at its largest over all layers, of signals and gradients."""
    pairs = zip((*found.forward, *found.backward), (*predicted.forward, *predicted.backward), strict=True)
    return max(abs(ours / theirs - 1) for ours, theirs in pairs)


@pytest.mark.parametrize("stack", PAGE.STACKS, ids=lambda item: f"{item.activation} {item.shown} {item.weight:.3g}")
def test_every_layer_of_a_wide_stack_is_as_predicted(stack: Any):
    found = PAGE.scales(stack)
    assert len(found.forward) == len(found.backward) == PAGE.DEPTH + 1 > 100
    assert largest_error(found, stack.predicted()) < 0.05
    lines = (DOCS / "mean-field.md").read_text().splitlines()
    cells = [cell.strip() for cell in PAGE.row(stack, found).split("|")]
    shown = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    (on_page,) = [line for line in shown if line[1:4] == cells[1:4]]
    assert [on_page[place] for place in (4, 6)] == [cells[place] for place in (4, 6)], "run: python docs/mean_field.py"
    assert all(abs(float(on_page[place]) - float(cells[place])) < 0.015 for place in (5, 7))


def test_weights_half_a_percent_larger_are_told_apart():
    for stack in (PAGE.Stack("relu", math.sqrt(2)), PAGE.Stack("tanh", 1.3)):
        other = stack._replace(weight=stack.weight * 1.005).predicted()
        assert largest_error(stack.predicted(), other) > 0.1
        assert largest_error(PAGE.measured(stack, PAGE.fast_map, PAGE.WIDTH, 8), other) > 0.05


@pytest.mark.parametrize(
    "stack",
    (PAGE.Stack("sigmoid", PAGE.critical("sigmoid")), PAGE.Stack("gelu", 1.0, residual=True, norm="pre")),
    ids=lambda item: item.shown,
)
def test_dense_matrices_agree_as_far_as_their_width_lets_them(stack: Any):
    width = 1024

    def dense(stream: torch.Generator):
        weight = torch.randn(width, width, generator=stream) / math.sqrt(width)
        return lambda x: x @ weight

    assert largest_error(PAGE.measured(stack, dense, width, 16), stack.predicted()) < 0.1


@pytest.mark.parametrize("name", REFERENCES)
def test_moments_at_scale_1_are_the_facts(name: str):
    value, slope = gaussian_moments(REFERENCES[name])
    bound = 1e-4 if name in ("relu6", "hardsigmoid", "hardswish") else 1e-8
    assert value == pytest.approx(FACTS[name].second_moment, rel=bound)
    assert slope == pytest.approx(FACTS[name].slope_second_moment, rel=bound)


@pytest.mark.parametrize("scale", (1e-4, 0.5, 3.0, 1e4))
def test_moments_at_other_scales(scale: float):
    """ReLU's are proportional to scale²; those of an error function have a closed form (Williams 1997)."""
    value, slope = gaussian_moments(REFERENCES["relu"], scale)
    assert value == pytest.approx(scale**2 / 2, rel=1e-8)
    assert slope == pytest.approx(0.5, rel=1e-8)
    double = 2 * scale**2
    value, slope = gaussian_moments(torch.erf, scale)
    assert value == pytest.approx(2 / math.pi * math.asin(double / (1 + double)), rel=1e-8)
    assert slope == pytest.approx(4 / math.pi / math.sqrt(1 + 2 * double), rel=1e-8)


def test_cases_that_can_be_done_by_hand():
    he = predicted_scales("relu", 3, weight=math.sqrt(2), start=5.0)
    assert he.forward == pytest.approx((5.0,) * 4) and he.backward == pytest.approx((1.0,) * 4)
    halved = predicted_scales("identity", 2, weight=0.5)
    assert halved.forward == pytest.approx((1, 0.5, 0.25)) and halved.backward == pytest.approx((0.25, 0.5, 1))
    biased = predicted_scales("relu", 2, weight=math.sqrt(2), bias=1.0)
    assert biased.forward == pytest.approx((1, math.sqrt(2), math.sqrt(3)))
    added = predicted_scales("relu", 2, residual=True)
    assert added.forward == pytest.approx((1, math.sqrt(1.5), 1.5)) == added.backward[::-1]
    before = predicted_scales("relu", 2, residual=True, norm="pre")
    assert before.forward == pytest.approx((1, math.sqrt(1.5), math.sqrt(2)))
    assert before.backward == pytest.approx((math.sqrt(1.5 * (1 + 0.5 / 1.5)), math.sqrt(1 + 0.5 / 1.5), 1))
    after = predicted_scales("relu2", 2, residual=True, norm="post", start=1.0)
    assert after.forward == pytest.approx((1, 1, 1))
    assert after.backward == pytest.approx((3 / 2.5, math.sqrt(3 / 2.5), 1))
    own = predicted_scales(lambda x: 3 * x, 1)
    assert own.forward == pytest.approx((1, 3))


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="depth is 0"):
        predicted_scales("relu", 0)
    with pytest.raises(UsageError, match="start is -1"):
        predicted_scales("relu", 3, start=-1)
    for name, value in {"weight": 0.0, "bias": math.nan, "start": math.inf}.items():
        with pytest.raises(UsageError, match=f"{name} is {value}"):
            predicted_scales("relu", 3, norm="pre", **{name: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="norm is 'layer'"):
        predicted_scales("relu", 3, norm="layer")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="did you mean 'gelu'"):
        predicted_scales("gellu", 3)
