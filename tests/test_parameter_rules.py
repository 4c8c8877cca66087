"""What is read of parameters and optimizers, and the rules about weights, updates and gradients, on real models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis
from evenkeel.measuring import _widths
from evenkeel.schema import Finding

IDS = torch.arange(64).reshape(4, 16) * 11 % 64


def model(seed: int = 0) -> ek.Transformer:
    return ek.Transformer(ek.TransformerConfig(vocabulary=64, context=16, depth=2, d_model=32), seed=seed)


def trained(
    net: nn.Module,
    optimizers: torch.optim.Optimizer | list[torch.optim.Optimizer] | None = None,
    *,
    steps: int = 4,
    schedule: Callable[[int], float] | None = None,
    dtype: torch.dtype | None = None,
) -> Diagnosis:
    """A few steps, each measured."""
    net = net if dtype is None else net.to(dtype)
    several = [torch.optim.AdamW(net.parameters(), lr=1e-3)] if optimizers is None else optimizers
    several = several if isinstance(several, list) else [several]
    rates = [torch.optim.lr_scheduler.LambdaLR(item, schedule) for item in several] if schedule else []
    with ek.watch(net, optimizer=several if len(several) > 1 else several[0], every=1) as watch:
        for _ in range(steps):
            with watch.step():
                loss = net(IDS, labels=IDS).loss
                loss.backward()
                for item in (*several, *rates):
                    item.step()
                for item in several:
                    item.zero_grad()
                watch.log(loss=loss)
        return watch.diagnose()


def found(diagnosis: Diagnosis, code: str) -> Finding | None:
    return next((item for item in diagnosis.findings if item.code == code), None)


def read(diagnosis: Diagnosis, stat: str, step: int = 0) -> dict[str, float]:
    return {
        item.site.rpartition(":")[0]: item.values[0]
        for item in diagnosis.readings
        if item.stat == stat and item.step == step and item.site.endswith("parameter")
    }


# --- what is read ------------------------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_definition() -> None:
    net = model()
    weight = net.get_parameter("blocks.0.feedforward.down.weight").detach().double().numpy()
    gains = read(trained(copy.deepcopy(net), steps=1), "gain")
    expected = np.sqrt((weight**2).mean()) * math.prod(weight.shape) ** 0.25
    assert gains["blocks.0.feedforward.down.weight"] == pytest.approx(expected, rel=1e-6)
    assert "embedding.weight" not in gains and not any(path.endswith("norm.weight") for path in gains)


def test_widths_of_convolutions_stacks_and_vectors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(6, 12, 5)
            self.experts = nn.Parameter(torch.zeros(4, 8, 32))
            self.token = nn.Parameter(torch.zeros(1, 1, 1))
            self.table = nn.Embedding(9, 3)

    net = Odd()
    assert _widths(net) == {id(net.conv.weight): math.sqrt(6 * 12) * 5, id(net.experts): 16.0}


def test_the_learning_rate_and_where_it_is_to_go() -> None:
    diagnosis = trained(model(), steps=3, schedule=lambda step: (step + 1) / 10)
    path = "blocks.0.feedforward.down.weight"
    assert [read(diagnosis, "learning_rate", step)[path] for step in range(3)] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert {read(diagnosis, "planned_learning_rate", step)[path] for step in range(3)} == {1e-3}


def test_the_share_of_16_bit_elements_that_changed() -> None:
    net = model().to(torch.bfloat16)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    path, parameter = "blocks.0.feedforward.down.weight", net.get_parameter("blocks.0.feedforward.down.weight")
    twin = copy.deepcopy(net)
    twin(IDS, labels=IDS).loss.backward()
    gradient = twin.get_parameter(path).grad
    assert gradient is not None
    before = parameter.detach().float()
    expected = ((before - 1e-2 * gradient.float()).bfloat16() != before.bfloat16())[gradient != 0].double().mean()
    share = read(trained(net, optimizer, steps=1), "changed_share")[path]
    assert 0.05 < expected < 0.95 and share == pytest.approx(float(expected), abs=0.01)
    assert read(trained(model(), steps=1), "changed_share") == {}


class WithMaster(torch.optim.SGD):
    """SGD on float32 copies of the weights, which it keeps in its state."""

    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for item in group["params"]:
                master = self.state[item].setdefault("master", item.detach().float().clone())
                master -= group["lr"] * item.grad.float()
                item.data.copy_(master)


def test_an_optimizer_with_float32_weights_loses_nothing() -> None:
    for kind, silent in ((torch.optim.SGD, False), (WithMaster, True)):
        net = model().to(torch.bfloat16)
        diagnosis = trained(net, kind(net.parameters(), lr=1e-4))
        assert (found(diagnosis, "NUM610") is None) is silent, kind


# --- NUM609, NUM610 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "sick"), [(0.01, True), (0.2, False), (1.0, False), (2.0, False), (12.0, True)])
def test_an_init_of_the_wrong_size(factor: float, sick: bool) -> None:
    net = model()
    with torch.no_grad():
        for name, item in net.named_parameters():
            if item.dim() == 2 and "embedding" not in name:
                item.mul_(factor)
    finding = found(ek.inspect(net, [{"input_ids": IDS, "labels": IDS}]), "NUM609")
    assert (finding is not None) is sick


def test_outputs_that_start_at_zero_are_no_small_init() -> None:
    net = model()
    with torch.no_grad():
        for name, item in net.named_parameters():
            if "down" in name or "output" in name:
                item.zero_()
    diagnosis = trained(net, steps=3)
    assert not {item.code for item in diagnosis.findings if item.severity != "info"} & {"NUM609", "RUN804", "RUN805"}


def test_bfloat16_at_a_rate_that_rounds_away_and_at_one_that_does_not() -> None:
    net = model().to(torch.bfloat16)
    lost = found(trained(net, torch.optim.AdamW(net.parameters(), lr=1e-6)), "NUM610")
    assert lost is not None and lost.severity == "warning"
    kept = trained(model().to(torch.bfloat16), steps=4)
    assert found(kept, "NUM610") is None


# --- RUN804, RUN805, RUN806 --------------------------------------------------------------------------------------


def test_steps_too_large_are_seen_in_the_first_step_of_a_warm_up() -> None:
    def first_step(peak: float) -> Finding | None:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=peak)
        return found(trained(net, optimizer, steps=1, schedule=lambda step: (step + 1) / 100), "RUN804")

    assert first_step(3e-3) is None
    sick = first_step(0.3)
    assert sick is not None and "planned peak" in sick.message and sick.evidence[0].value > 0.3


def test_steps_too_small_only_once_the_rate_has_arrived() -> None:
    def at(rate: float, schedule: Callable[[int], float]) -> Finding | None:
        net = model()
        return found(trained(net, torch.optim.AdamW(net.parameters(), lr=rate), schedule=schedule), "RUN805")

    assert at(1e-9, lambda _: 1.0) is not None
    assert at(1e-3, lambda step: (step + 1) * 1e-6) is None
    assert at(1e-3, lambda _: 1.0) is None


def test_a_parameter_in_no_optimizer_and_several_optimizers() -> None:
    net = model()
    matrices = [item for item in net.parameters() if item.dim() == 2]
    others = [item for item in net.parameters() if item.dim() != 2]
    first, second = torch.optim.AdamW(matrices[1:], lr=1e-3), torch.optim.SGD(others, lr=1e-3)
    finding = found(trained(net, [first, second]), "RUN806")
    left = next(name for name, item in net.named_parameters() if item is matrices[0])
    assert finding is not None and finding.sites == (f"{left}:parameter.parameter",)
    first.add_param_group({"params": [matrices[0]]})
    assert found(trained(net, [first, second]), "RUN806") is None
    only_one = found(trained(net, first), "RUN806")
    assert only_one is not None and len(only_one.sites) == len(others)


def test_an_optimizer_of_another_model_is_an_error() -> None:
    net = model()
    finding = found(trained(net, torch.optim.SGD(copy.deepcopy(net).parameters(), lr=1e-3)), "RUN806")
    assert finding is not None and finding.severity == "error"


# --- GRD503 ------------------------------------------------------------------------------------------------------


def detach_behind(module: nn.Module) -> None:
    def cut(_: nn.Module, __: object, output: object) -> object:
        return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()  # type: ignore[union-attr]

    module.register_forward_hook(cut)


@pytest.mark.parametrize(
    "place", ["blocks.1.attention", "blocks.0.feedforward", "blocks.0", "blocks.1.feedforward.down"]
)
def test_what_no_gradient_reaches_is_named(place: str) -> None:
    net = model()
    detach_behind(net.get_submodule(place))
    finding = found(ek.inspect(net, [{"input_ids": IDS, "labels": IDS}]), "GRD503")
    assert finding is not None and finding.sites[0].startswith(place)


def test_frozen_parts_adapters_and_poolers_are_no_cut() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    frozen = model()
    frozen.get_submodule("blocks.0").requires_grad_(False)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    lora: nn.Module = get_peft_model(small, LoraConfig(r=2, target_modules=["c_attn"]))
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    pooled = BertForMaskedLM(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=16))
    pooled.bert.pooler = type(pooled.bert)(pooled.config).pooler
    for net in (model(), frozen, lora, pooled):
        diagnosis = ek.inspect(net, [{"input_ids": IDS, "labels": IDS}])
        assert found(diagnosis, "GRD503") is None and found(diagnosis, "NUM609") is None


def test_without_a_backward_pass_nothing_is_cut() -> None:
    diagnosis = ek.inspect(model(), [{"input_ids": IDS, "labels": IDS}], backward=False)
    assert found(diagnosis, "GRD503") is None


def test_adapters_train_silently() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    lora: nn.Module = get_peft_model(small, LoraConfig(r=2, target_modules=["c_attn", "c_fc"]))
    weights = [item for item in lora.parameters() if item.requires_grad]
    codes = {item.code for item in trained(lora, torch.optim.AdamW(weights, lr=2e-3)).findings}
    assert not codes & {"RUN804", "RUN805", "RUN806", "NUM609", "NUM610", "GRD503"}


def test_reading_parameters_leaves_a_step_as_it_is() -> None:
    bare, watched = model(), model()
    for net, look in ((bare, False), (watched, True)):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        watch = ek.watch(net, optimizer=[optimizer], every=1)
        for _ in range(2):
            if look:
                watch.begin_step()
            net(IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if look:
                watch.end_step()
    pairs: list[tuple[Tensor, Tensor]] = list(zip(bare.parameters(), watched.parameters(), strict=True))
    assert all(torch.equal(first, second) for first, second in pairs)
