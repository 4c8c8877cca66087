"""Watching modules in unusual forms: checkpointed, with state, sparse, padded, under inference mode."""

from __future__ import annotations

import copy
import weakref
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from watch_cases import Block, small, values

import evenkeel as ek


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = cast(Tensor, checkpoint(layer, x, use_reentrant=False))
        return x


def test_whole_modules_under_checkpointing_are_measured_bit_for_bit() -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(2, 8, 16)
    twin = copy.deepcopy(model)
    for item, watched in ((model, True), (twin, False)):
        torch.manual_seed(1)
        watch = ek.watch(item, every=1 if watched else 2**30)
        watch.begin_step()
        item(x).square().sum().backward()
        watch.end_step()
        if watched:
            assert {site.status for site in watch.record.sites()} == {"measured"}
    for first, second in zip(model.parameters(), twin.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None and torch.equal(first.grad, second.grad)


def test_calls_in_unusual_forms_never_disturb_the_step() -> None:
    model, ids = small()
    watch = ek.watch(model, every=1)
    with watch.step():
        logits = model(ids)
        similar = torch.einsum("bld,cld->bc", logits, logits)  # outside the model
        weights = torch.softmax(input=similar, dim=0).permute(dims=(1, 0))
        hidden = torch.masked_fill(input=weights, mask=weights > 2, value=-1e9)
        (F.log_softmax(input=hidden, dim=-1).sum() + F.linear(input=weights, weight=weights).sum()).backward()
        average = copy.deepcopy(model)  # an average of weights, taken in the middle of a step
        average(ids)
        parameters = {name: item.detach() for name, item in model.named_parameters()}

        def functional(values: dict[str, Tensor], row: Tensor) -> Tensor:
            return torch.func.functional_call(model, values, (row.unsqueeze(0),)).sum()

        model.eval()
        torch.func.vmap(torch.func.grad(functional), in_dims=(None, 0))(parameters, ids)
    sites = watch.record.sites()
    assert sum(site.kind == "attention" for site in sites) == 2
    assert watch.record.steps() == (0,)


def test_sparse_gradients_and_losses_of_several_values() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4), nn.GELU())
    watch = ek.watch(model, every=1)
    with watch.step():
        losses = model(torch.tensor([1, 1, 3])).square().sum(-1)
        losses.sum().backward()
        watch.log(loss=losses)
    rms = cast(Tensor, model[0].weight.grad).to_dense().square().mean().sqrt().item()
    found = values(watch.record.readings(), "gradient_rms", "0.weight")
    np.testing.assert_allclose(found[("0.weight:parameter.parameter", 0)], [rms], rtol=1e-6)
    (entry,) = watch.record.log_entries()
    assert entry.loss == pytest.approx(losses.mean().item()) and entry.gradient_norm is not None


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        cast(Tensor, self.calls).add_(1)
        return x.relu()


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.mask, self.act = nn.Linear(8, 24), Masking(), Counting()

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.p(x).unsqueeze(1).chunk(3, -1)
        return self.act(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x)))


def test_a_module_with_state_runs_as_often_as_without_watching_and_masks_are_no_findings() -> None:
    model = Masked()
    watch = ek.watch(model, every=1)
    with watch.step():
        model(torch.randn(2, 5, 8)).sum().backward()
    assert cast(Tensor, model.act.calls).item() == 1
    assert [finding.code for finding in watch.diagnose().findings if finding.severity != "info"] == []


def test_padding_given_by_position_is_padding() -> None:
    model, x = Masked(), torch.randn(2, 5, 8)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    by_name, by_place, none = (ek.inspect(model, [batch]) for batch in ({"x": x, "attention_mask": mask}, (x, mask), x))
    expected, found, other = (values(item.readings, "entropy") for item in (by_name, by_place, none))
    assert found == expected != other


def test_inference_mode_is_measured() -> None:
    model, ids = small()
    watch = ek.watch(model.eval(), every=1)
    with watch.step(), torch.inference_mode():
        model(ids)
    assert {site.status for site in watch.record.sites()} == {"measured"}


def test_no_activation_outlives_its_use_for_being_measured() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(20))
            self.alive: list[weakref.ref[Tensor]] = []
            self.most = 0

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
                self.alive.append(weakref.ref(x))
                self.most = max(self.most, sum(item() is not None for item in self.alive))
            return x

    model = Chain()
    watch = ek.watch(model, every=1)
    with watch.step(), torch.no_grad():
        model(torch.randn(4, 8))
    assert model.most <= 3
