"""What holds for all instruments: merging, NaN, fake tensors, random state; and samples of magnitudes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from instrument_cases import AtSite, activation, drawn, finished, read, stats, stepped
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from evenkeel.functional._statistics import Magnitudes
from evenkeel.instruments import INSTRUMENTS
from evenkeel.instruments._rows import some_rows
from evenkeel.schema import SITE_KINDS
from evenkeel.tracing.events import (
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

pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


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
