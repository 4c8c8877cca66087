"""The module where a NaN or Inf begins is named: placements by hand, and random ones in public models."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import evenkeel as ek

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from diagnosis import first_nan


class Branch(nn.Module):
    """Two linear maps and code of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.power, self.root = 1.0, False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        if self.root:
            h = h + (0 * h.detach()).where(h.detach() < 0, 0 * h).sqrt()
        return self.down(h**2 * self.power * self.power)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(8), Branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layers, self.head = (
            nn.Embedding(30, 8),
            nn.ModuleList(Block() for _ in range(3)),
            nn.Linear(8, 30),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def branch(self, number: int) -> Branch:
        return self.layers[number].branch  # type: ignore[return-value]


IDS = torch.arange(20).reshape(2, 10)


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def finding(model: nn.Module):
    found = [item for item in ek.inspect(model, [IDS], loss=loss).findings if item.code == "NUM601"]
    assert len(found) == 1 and found[0].severity == "error"
    return found[0]


def test_a_sound_model_has_none() -> None:
    assert not [item for item in ek.inspect(Small(), [IDS], loss=loss).findings if item.code == "NUM601"]


def test_a_weight_is_named_with_its_module() -> None:
    model = Small()
    with torch.no_grad():
        model.branch(1).down.weight[3, 5] = math.nan
    found = finding(model)
    assert found.sites == ("layers.1.branch.down:module.Linear", "layers.1.branch.down.weight:parameter.parameter")


def test_a_row_that_nobody_looks_up_is_named_as_well() -> None:
    model = Small()
    with torch.no_grad():
        model.embed.weight[29, 0] = math.inf
    found = finding(model)
    assert found.sites == ("embed.weight:parameter.parameter",) and "no output shows it" in found.message


def test_what_overflows_between_modules_is_inside_the_one_whose_code_it_is() -> None:
    model = Small()
    model.branch(2).power = 1e30
    assert finding(model).sites[0] == "layers.2.branch:module.inside"


def test_a_gradient_lost_between_modules_is_that_of_their_code() -> None:
    model = Small()
    model.branch(1).root = True
    assert finding(model).sites[0].startswith("layers.1.branch:")


@pytest.mark.parametrize("place", ["layers.1.branch.up", "layers.2.norm", "layers.0"])
def test_a_gradient_that_a_module_spoils_on_its_way_to_the_input(place: str) -> None:
    model = Small()
    module = model.get_submodule(place)
    module.register_full_backward_hook(lambda _, given, __: tuple(torch.full_like(item, math.nan) for item in given))
    assert finding(model).sites[0].rpartition(":")[0] == place


def test_a_parameter_whose_gradient_alone_is_lost() -> None:
    model = Small()
    model.branch(0).up.bias.register_hook(lambda gradient: gradient * math.inf)
    assert finding(model).sites[0] == "layers.0.branch.up:module.Linear"


def test_hooks_of_the_model_still_have_their_say() -> None:
    model, bare = Small(), Small()
    for item in (model, bare):
        item.branch(1).down.register_forward_hook(lambda _, __, out: out.register_hook(lambda g: 2 * g) and None)
    loss(bare(IDS), IDS).backward()
    with ek.watch(model, every=1) as watch, watch.step():
        loss(model(IDS), IDS).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), bare.parameters(), strict=True))  # type: ignore[arg-type]


def test_every_random_placement_is_named() -> None:
    missed = [(case, expected, named) for case, expected, named in first_nan.run(50, seed=7) if expected != named]
    assert missed == []
