"""Rules about gates, routers and idle or blind attention on live models."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis

KINDS = ("GLU", "ATT", "ARC701")


def found(diagnosis: Diagnosis, code: str) -> tuple[str, ...]:
    """Where a rule fires; nowhere is ()."""
    return next((finding.sites for finding in diagnosis.findings if finding.code == code), ())


def warned(diagnosis: Diagnosis) -> set[str]:
    return {item.code for item in diagnosis.findings if item.code.startswith(KINDS) and item.severity != "info"}


def made(family: str, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    model, _ = families.make(family, **options)
    ids = torch.randint(3, 100, (24, 24), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3_moe", "mamba", "bloom"])
def test_healthy_models_are_silent(family: str) -> None:
    model, batch = made(family)
    assert warned(ek.inspect(model, [batch])) == set()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(("bias", "code"), [(20.0, "GLU202"), (-20.0, "GLU201"), (0.0, None)])
def test_a_gate_held_by_its_bias(family: str, bias: float, code: str | None) -> None:
    model, batch = made(family)
    gate = model.model.layers[1].mlp.gate_proj
    gate.bias = nn.Parameter(torch.full((gate.weight.shape[0],), bias))
    diagnosis = ek.inspect(model, [batch])
    assert warned(diagnosis) == ({code} if code else set())
    assert code is None or [site.partition(":")[0] for site in found(diagnosis, code)] == ["model.layers.1.mlp"]


class Gated(nn.Module):
    """A feed-forward gated by a sigmoid whose projection is σ·N(0, 1) + bias."""

    def __init__(self, deviation: float, bias: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        nn.init.normal_(self.gate.weight, std=deviation / 32**0.5)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


@pytest.mark.parametrize(
    ("deviation", "bias", "codes"),
    [(1.0, 0.0, set()), (0.0, 0.0, set()), (1.0, 3.0, set()), (1.0, 20.0, {"GLU202"}), (1.0, -20.0, {"GLU201"})],
)
def test_a_sigmoid_gate_at_one_half_is_free_to_move(deviation: float, bias: float, codes: set[str]) -> None:
    assert warned(ek.inspect(Gated(deviation, bias), [torch.randn(600, 32)])) == codes


@pytest.mark.parametrize("loaded", [0, 1])
def test_a_router_that_always_chooses_the_same(loaded: int) -> None:
    model, batch = made("mixtral")
    model.model.layers[loaded].mlp.gate.weight.data.zero_()
    diagnosis = ek.inspect(model, [batch])
    assert [site.partition(":")[0] for site in found(diagnosis, "GLU203")] == [f"model.layers.{loaded}.mlp.gate"]
    assert warned(diagnosis) == {"GLU203"}


def with_mask(block: nn.Module, change: Any) -> None:
    def changed(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given, {**named, "attention_mask": change(named["attention_mask"].clone())}

    block.register_forward_pre_hook(changed, with_kwargs=True)


@pytest.mark.parametrize(("heads", "idle"), [(4, True), (3, False)])
def test_attention_that_rests_on_the_first_key(heads: int, idle: bool) -> None:
    """In all heads of a layer it is idle; where one head works on, the others are sinks as trained models have them."""
    model, batch = made("llama", attention="eager")

    def drawn_there(mask: Tensor) -> Tensor:
        mask = mask.repeat(1, 4, 1, 1)
        mask[:, :heads, :, 0] += 12
        return mask

    with_mask(model.model.layers[1], drawn_there)
    diagnosis = ek.inspect(model, [batch])
    assert found(diagnosis, "ATT305") == (("model.layers.1.self_attn:attention.softmax",) if idle else ())
    assert "ATT301" not in warned(diagnosis)


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -torch.inf])
def test_a_query_that_sees_nothing_is_the_cause_of_what_follows(value: float) -> None:
    model, batch = made("llama", attention="eager")

    def emptied(mask: Tensor) -> Tensor:
        mask[:, :, 5] = value
        return mask

    with_mask(model.model.layers[0], emptied)
    diagnosis = ek.inspect(model, [batch])
    assert found(diagnosis, "ATT306") == ("model.layers.0.self_attn:attention.softmax",)
    causes = {item.code: item.cause for item in diagnosis.findings if item.severity != "info"}
    assert causes.pop("ATT306") == "" and set(causes.values()) == {"ATT306"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_with_an_unused_end_are_padding(attention: str) -> None:
    model, batch = made("llama", attention=attention)
    document = torch.arange(24) // 10  # 0, 1, and an end that is nobody's
    seen = (document[:, None] == document) & torch.ones(24, 24, dtype=torch.bool).tril() & (document < 2)
    mask = torch.zeros(24, 1, 24, 24).masked_fill(~seen, torch.finfo(torch.float32).min)
    labels = torch.where(document < 2, batch["input_ids"], -100)
    diagnosis = ek.inspect(model, [{**batch, "labels": labels, "attention_mask": mask}])
    masked = [item.values for item in diagnosis.readings if item.stat == "masked_rows"]
    assert masked == [(96.0,) * 4] * 2 and warned(diagnosis) == set()


def test_scores_that_overflow_are_named_at_the_attention() -> None:
    model, batch = made("llama", attention="eager")
    for name in ("q_proj", "k_proj"):
        getattr(model.model.layers[1].self_attn, name).weight.data.mul_(1e3)
    diagnosis = ek.inspect(model.half(), [batch], backward=False)
    finding = next(item for item in diagnosis.findings if item.code == "ATT303")
    assert finding.severity == "error" and finding.sites == ("model.layers.1.self_attn:attention.softmax",)
    assert "overflow float16" in finding.message
    assert next(item.cause for item in diagnosis.findings if item.code == "NUM601") == "ATT303"


class Attend(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps, self.scale = nn.Linear(32, 96), scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (item.unflatten(-1, (2, 16)).transpose(1, 2) for item in self.maps(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


@pytest.mark.parametrize(
    ("scale", "severity"), [(16**-0.5, None), (1.0, None), (1 / 16, "info"), (0.1, "info"), (1 / 32, "warning")]
)
def test_scores_divided_by_the_head_size_are_a_choice(scale: float, severity: str | None) -> None:
    diagnosis = ek.inspect(Attend(scale), [torch.randn(4, 20, 32)], backward=False)
    assert [item.severity for item in diagnosis.findings if item.code == "ARC701"] == ([severity] if severity else [])
    assert "ATT302" not in warned(diagnosis)
