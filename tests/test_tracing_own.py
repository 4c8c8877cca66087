"""Models built of evenkeel's own functions are measured like any others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenkeel as ek
from evenkeel import functional as own
from evenkeel.tracing import calls


class Model(nn.Module):
    """One head of attention, a gated layer and a head, each function given from outside."""

    def __init__(self, activation, attend, product, normalise) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.activation, self.attend, self.product, self.normalise = activation, attend, product, normalise

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.down(self.product(self.gate(x), self.up(x)))
        x = self.activation(x)
        return self.normalise(self.head(x)) if self.normalise else self.head(x)


def measured(model: Model, loss) -> tuple[list[tuple[str, str, str]], dict[tuple[str, str], list[float]]]:
    torch.manual_seed(0)
    ids = torch.randint(50, (2, 9))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Tensor) -> Tensor:
            return loss(self.inner(ids), ids)

    diagnosis = ek.inspect(WithLoss(), [ids], backward=False)
    sites = [
        (site.path, site.kind, site.op)
        for site in diagnosis.sites
        if site.kind in ("activation", "gate", "attention", "head")
    ]
    values = {(reading.site, reading.stat): list(reading.values) for reading in diagnosis.readings}
    return sites, values


def loss_of_torch(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def test_the_same_sites_and_readings_as_torchs_own_functions():
    torchs = Model(
        F.gelu,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda g, u: F.silu(g) * u,
        None,
    )
    ours = Model(own.gelu, lambda q, k, v: own.attention(q, k, v, causal=True), own.swiglu, None)
    expected_sites, expected = measured(torchs, loss_of_torch)
    sites, values = measured(ours, lambda logits, ids: own.cross_entropy(logits, ids))
    assert sorted(sites) == sorted(expected_sites)
    assert {op for _, _, op in sites} == {"gelu", "silu", "swiglu", "softmax"}
    assert values.keys() == expected.keys()
    for key, numbers in expected.items():
        if key[1] == "zero_gradient_share":  # ours reaches further: torch's GELU ends at -6.2
            assert values[key] <= numbers
            continue
        assert values[key] == pytest.approx(numbers, rel=1e-4, abs=1e-6), key


def test_a_softcap_a_window_and_a_mask_reach_the_instrument():
    mask = (torch.rand(9, 9) > 0.3) | torch.eye(9, dtype=torch.bool)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = 5 * torch.tanh(q @ k.mT / 8**0.5 / 5)
        places = torch.arange(9)
        near = (places[:, None] - places).abs() < 4
        return F.softmax(scores.masked_fill(~(mask & near), float("-inf")), -1) @ v

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return own.attention(q, k, v, mask=mask, softcap=5.0, window=4)

    found = [measured(Model(F.gelu, attend, own.glu, None), loss_of_torch)[1] for attend in (eager, fused)]
    attention = {key for key in found[0] if "attention" in key[0]}
    assert attention
    for key in attention:
        assert found[1][key] == pytest.approx(found[0][key], rel=1e-4, abs=1e-5), key


def test_a_softcap_and_a_temperature_reach_the_heads_readings():
    def by_hand(logits: Tensor, ids: Tensor) -> Tensor:
        return loss_of_torch(3 * torch.tanh(logits / 3) / 2, ids)

    def in_one(logits: Tensor, ids: Tensor) -> Tensor:
        return own.cross_entropy(logits, ids, softcap=3.0, temperature=2.0)

    found = [measured(Model(F.gelu, own.attention, own.glu, None), loss)[1] for loss in (by_hand, in_one)]
    head = {stat: values for (site, stat), values in found[0].items() if ":head" in site}
    assert head
    for stat, values in head.items():
        assert {s: v for (site, s), v in found[1].items() if ":head" in site}[stat] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("held", [2**22, 100])
def test_logits_that_are_never_held_are_measured_all_the_same(monkeypatch: pytest.MonkeyPatch, held: int):
    monkeypatch.setattr(calls, "_MOST_LOGITS", held)
    config = ek.nn.HeadConfig(softcap=3.0, bias=True)
    head, x, ids = ek.nn.Head(16, 50, config), torch.randn(4, 9, 16), torch.randint(50, (4, 9))
    ids[0, :3] = -100
    torch.nn.init.normal_(head.get_parameter("bias"))

    class Whole(nn.Module):
        def __init__(self, loss: Callable[[], Tensor]) -> None:
            super().__init__()
            self.head, self.loss = head, loss

        def forward(self) -> Tensor:
            return self.loss()

    found = []
    for loss in (lambda: head(x, target=ids), lambda: F.cross_entropy(head(x).flatten(0, 1), ids.flatten())):
        diagnosis = ek.inspect(Whole(loss), [{}], backward=False)
        found.append({item.stat: item.values for item in diagnosis.readings if ":head" in item.site})
    assert len(found[0]) > 5 and found[0].keys() == found[1].keys()
    for stat, values in found[0].items():
        assert values == pytest.approx(found[1][stat], rel=1e-4), stat


def test_what_no_instrument_reads_is_listed_with_its_reason():
    sinks = torch.zeros(2)
    model = Model(own.relu2, lambda q, k, v: own.attention(q, k, v, sinks=sinks), own.clamped_swiglu, None)

    diagnosis = ek.inspect(model, [torch.randint(50, (2, 9))], backward=False)
    reasons = {(site.kind, site.op): site.reason for site in diagnosis.sites if site.status == "not_measured"}
    assert "learned sinks" in reasons[("attention", "softmax")]
    assert {site.op for site in diagnosis.sites if site.kind in ("activation", "gate")} == {
        "relu2",
        "quick_gelu",
        "clamped_swiglu",
    }
