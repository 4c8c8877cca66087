"""Inspecting a live module: any family, any batch form, and the model as it was afterwards."""

from __future__ import annotations

import copy

import families
import pytest
import torch
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.errors import NothingMeasuredError, UsageError


@pytest.mark.parametrize("family", ["llama", "rwkv", "mamba", "mixtral", "bert", "t5", "vit"])
def test_families_are_inspected_and_left_as_they_were(family: str) -> None:
    model, batch = families.make(family)
    model(**batch).loss.backward()
    gradients = [None if item.grad is None else item.grad.clone() for item in model.parameters()]
    weights = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    diagnosis = ek.inspect(model, [batch, batch])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(item.training for item in model.modules())
    for before, after in zip(gradients, model.parameters(), strict=True):
        assert (before is None) == (after.grad is None)
        assert before is None or after.grad is None or torch.equal(before, after.grad)
    assert all(torch.equal(weights[name], item) for name, item in model.state_dict().items())
    if family != "vit":
        assert diagnosis.data.tokens == 2 * batch["input_ids"].numel()
    assert {"gradient_rms"} <= {item.stat for item in diagnosis.readings}
    assert not [finding.code for finding in diagnosis.findings if finding.severity == "error"]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for layer in self.layers:
            x = layer(x * scale)
        return x


def test_tensors_tuples_and_dicts_are_batches() -> None:
    model, x = Plain(), torch.randn(2, 5, 16)
    found = [ek.inspect(model, [batch]) for batch in (x, (x, 1.0), {"x": x, "scale": 1.0})]
    assert found[0].readings == found[1].readings == found[2].readings
    assert [site.path for site in found[0].sites if site.kind == "residual"] == ["layers.0", "layers.1"]


def test_the_loss_can_be_given_and_the_backward_pass_left_out() -> None:
    model, x = Plain(), torch.randn(2, 5, 16)
    by_default, doubled, none = (
        ek.inspect(model, [x]),
        ek.inspect(model, [x], loss=lambda output, _: 2 * output.square().sum()),
        ek.inspect(model, [x], backward=False),
    )

    def gradients(diagnosis: ek.Diagnosis) -> list[float]:
        return [item.values[0] for item in diagnosis.readings if item.stat == "gradient_rms"]

    assert gradients(doubled) == pytest.approx([2 * value for value in gradients(by_default)], rel=1e-5)
    assert gradients(by_default) and not gradients(none)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_measure_and_nothing_to_measure_on() -> None:
    with pytest.raises(NothingMeasuredError, match="Linear"):
        ek.inspect(nn.Linear(4, 4), [torch.randn(2, 4)])
    with pytest.raises(UsageError, match="no batches"):
        ek.inspect(Plain(), [])


def test_a_module_that_the_data_never_reached_is_listed() -> None:
    class Optional(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.pooler = nn.Sequential(nn.Linear(16, 16), nn.Tanh())

    diagnosis = ek.inspect(Optional(), [torch.randn(2, 5, 16)])
    site = next(site for site in diagnosis.sites if site.path == "pooler.1")
    assert (site.kind, site.op, site.status) == ("activation", "tanh", "not_reached")


def test_hostile_module_names_are_made_safe() -> None:
    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("[/x]", "\x1b[31mred", "a" * 10_000):
                self.add_module(name, nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.children():
                x = part(x)
            return x

    diagnosis = ek.inspect(Hostile(), [torch.randn(3, 8)])
    assert sum(site.kind == "activation" and site.status == "measured" for site in diagnosis.sites) == 3
    for text in (diagnosis.to_text(), diagnosis.to_text(color=True).replace("\x1b[", ""), diagnosis.to_json()):
        assert "\x1b" not in text and max(len(site.path) for site in diagnosis.sites) < 250
    assert "[/x]" in diagnosis.to_text()
