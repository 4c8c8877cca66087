"""Claims on public models: what tracing their classes finds, against their configs, NumPy and hand counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evenkeel
from evenkeel.ledger import (
    CLAIMS,
    Ledger,
    MeasuredClaim,
    Verdict,
    _families,
    claims,
    conventions,
    draw_markdown,
    draw_pages,
    families,
    gates,
    sizes,
    without_softmax,
)
from evenkeel.ledger._families import deepseek_v3_routers, instance, trace
from evenkeel.schema import Site

transformers = pytest.importorskip("transformers")

MEASURED = ("C06", "C07", "C25", "C26", "C32", "C44", "C45")


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return claims(MEASURED)


@pytest.fixture(scope="module")
def numbers(ledger: Ledger) -> dict[str, dict[str, float]]:
    return {item.claim.id: {number.name: number.value for number in item.measurements} for item in ledger.claims}


def verdict_now(name: str) -> Verdict:
    claim = CLAIMS[name]
    return MeasuredClaim(claim=claim, measurements=tuple(claim.measure())).verdict


GRID = np.linspace(-10, 10, 2561)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_functions_of_the_gpts(numbers: dict[str, dict[str, float]]) -> None:
    """Both configs name GELU, and the names stand for the tanh form that OpenAI's code has."""
    assert transformers.OpenAIGPTConfig().afn == "gelu"
    assert transformers.GPT2Config().activation_function == "gelu_new"
    for found, name in ((numbers["C06"], "openai_gpt"), (numbers["C07"], "gpt2")):
        for other, values in (("relu", np.maximum(GRID, 0)), ("gelu", gelu(GRID)), ("gelu_tanh", gelu_tanh(GRID))):
            expected = np.abs(gelu_tanh(GRID) - values).max()
            assert found[f"{name}.distance_from_{other}"] == pytest.approx(expected, rel=0.01, abs=2e-6)


def test_gates_of_four_families(numbers: dict[str, dict[str, float]]) -> None:
    between = np.abs(silu(GRID) - gelu_tanh(GRID)).max()
    for name, config in (
        ("llama", transformers.LlamaConfig()),
        ("mistral", transformers.MistralConfig()),
        ("qwen2", transformers.Qwen2Config()),
        ("qwen3", transformers.Qwen3Config()),
        ("gemma", transformers.GemmaConfig()),
        ("gemma2", transformers.Gemma2Config()),
        ("gemma3", transformers.Gemma3TextConfig()),
    ):
        named = getattr(config, "hidden_activation", None) or config.hidden_act
        own, other = ("silu", "gelu_tanh") if named == "silu" else ("gelu_tanh", "silu")
        assert named in ("silu", "gelu_pytorch_tanh")
        assert numbers["C26"][f"{name}.distance_from_{own}"] < 1e-5
        assert numbers["C26"][f"{name}.distance_from_{other}"] == pytest.approx(between, rel=1e-3)
        assert numbers["C26"][f"{name}.swiglu_feed_forwards"] == (named == "silu")


def compute_as(monkeypatch: pytest.MonkeyPatch, model: Callable[[str], nn.Module]) -> None:
    """A world in which the families' classes are these."""
    monkeypatch.setattr(families, "instance", model)
    monkeypatch.setattr(families, "described", lambda model_type: evenkeel.describe(model(model_type)).feedforwards)


@pytest.mark.parametrize(
    ("name", "settings", "verdict"),
    [
        ("C06", {"afn": "relu"}, "does not hold"),  # its paper says GELU all the same
        ("C07", {"activation_function": "gelu"}, "holds with a caveat"),  # exact, but GPT-3 stays cited
        ("C07", {"activation_function": "relu"}, "does not hold"),
        ("C26", {"hidden_act": "silu", "hidden_activation": "silu"}, "holds"),  # a world of SwiGLU
        ("C26", {"hidden_act": "relu", "hidden_activation": "relu"}, "does not hold"),
    ],
)
def test_models_with_other_functions(
    name: str, settings: dict[str, str], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdicts follow what the models compute: the same experiments, on models with another activation."""
    compute_as(monkeypatch, lambda model_type: instance(model_type, **settings))
    assert verdict_now(name) == verdict
    numbers = {number.name: number.value for number in CLAIMS[name].measure()}
    if settings.get("afn") == "relu":
        assert numbers["openai_gpt.distance_from_relu"] == 0 and numbers["openai_gpt.relu_feed_forwards"] == 1
    if settings.get("activation_function") == "gelu":
        assert numbers["gpt2.distance_from_gelu"] < 1e-5


def with_feed_forward(model: nn.Module, forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """The model, its feed-forwards computing something else from the same projections."""
    for module in model.modules():
        if hasattr(module, "down_proj"):
            module.forward = partial(forward, module)
    return model


def test_a_feed_forward_without_a_gate_is_no_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    def ungated(own: Any, x: Tensor) -> Tensor:
        return own.down_proj(own.act_fn(own.gate_proj(x)))

    silu = {"hidden_act": "silu", "hidden_activation": "silu"}
    compute_as(monkeypatch, lambda model_type: with_feed_forward(instance(model_type, **silu), ungated))
    assert verdict_now("C26") == "does not hold"


def test_which_projection_is_activated(numbers: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    c32 = numbers["C32"]
    assert c32["activated.distance_from_silu_of_gate_proj"] < 1e-6 and c32["other.distance_from_up_proj"] < 1e-6
    assert min(c32["activated.distance_from_silu_of_up_proj"], c32["other.distance_from_gate_proj"]) > 0.1

    def swapped(own: Any, x: Tensor) -> Tensor:
        return own.down_proj(own.gate_proj(x) * own.act_fn(own.up_proj(x)))

    compute_as(monkeypatch, lambda model_type: with_feed_forward(instance(model_type), swapped))
    item = MeasuredClaim(claim=CLAIMS["C32"], measurements=tuple(CLAIMS["C32"].measure()))
    assert {bound.measurement for bound in item.missed} == {"cited.against"}


def test_three_matrices_for_two(numbers: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    c25 = numbers["C25"]
    assert c25["gated.parameters"] == c25["plain.parameters"] == 3 * 768 * 2048 == 2 * 768 * 3072
    config = transformers.LlamaConfig()
    expected = 3 * config.hidden_size * config.intermediate_size / (2 * 4 * config.hidden_size**2)
    assert c25["llama_7b.parameters_over_plain"] == pytest.approx(expected)
    monkeypatch.setattr(sizes, "_GATED", 3072)
    assert verdict_now("C25") == "does not hold"  # three matrices of 4·d are half as many again


def test_a_formula_with_its_factors_exchanged_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(own: Any, x: Tensor) -> Tensor:
        return own.down_proj(own.gate_proj(x) * own.act_fn(own.up_proj(x)))

    def exchanged(model_type: str, **settings: int) -> nn.Module:
        block = _families.feed_forward(model_type, **settings)
        return with_feed_forward(block, swapped) if model_type == "llama" else block

    monkeypatch.setattr(sizes, "feed_forward", exchanged)
    assert verdict_now("C25") == "does not hold"


RELEASED = {"LLaMA 7B": 2.6875, "Llama 3 8B": 3.5, "Qwen2.5 7B": 5.286, "Gemma 7B": 8.0, "DeepSeek-V3": 2.571}


def test_released_sizes(numbers: dict[str, dict[str, float]]) -> None:
    ratios = {name: hidden / width for name, (width, hidden) in sizes._RELEASED.items()}
    for name, ratio in RELEASED.items():
        assert ratios[name] == pytest.approx(ratio, abs=1e-3)
    near = [name for name, ratio in ratios.items() if 2.5333 <= ratio <= 2.8]
    c44 = numbers["C44"]
    assert c44["released.share_near_8_over_3"] == pytest.approx(len(near) / len(ratios))
    assert c44["released.smallest"] == min(ratios.values()) and c44["released.largest"] == max(ratios.values())


def test_sizes_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {str(width): (3 * width, 8 * width) for width in range(1, 30)}
    monkeypatch.setattr(sizes, "_RELEASED", told)
    assert verdict_now("C44") == "holds"
    monkeypatch.setattr(sizes, "_RELEASED", dict(list(told.items())[:5]))
    assert verdict_now("C44") == "undecided"


KINDS = {
    "openai-gpt": "gelu",
    "gpt2": "gelu",
    "bloom": "gelu",
    "opt": "relu",
    "nemotron": "relu",
    "llama": "gated_silu",
    "mistral": "gated_silu",
    "olmo2": "gated_silu",
    "qwen2": "gated_silu",
    "qwen3": "gated_silu",
    "granite": "gated_silu",
    "gemma": "gated_gelu",
    "gemma2": "gated_gelu",
    "gemma3_text": "gated_gelu",
    "gpt_oss": "gated_other",
}
"""What papers and model pages say of these families."""


def test_kinds_of_feed_forwards(numbers: dict[str, dict[str, float]]) -> None:
    found = _families.installed_families()
    for name, kind in KINDS.items():
        sites = found[name]
        assert sites is not None and conventions.feed_forward_kind(sites) == kind, name
    shares = [value for name, value in numbers["C45"].items() if name.startswith("families.")]
    traced, somewhere = numbers["C45"]["families.traced"], numbers["C45"]["families.sigmoid_somewhere"]
    assert sum(shares) - traced - somewhere == pytest.approx(1)
    assert traced == sum(sites is not None for sites in found.values())


def site(kind: Any, op: str) -> Site:
    return Site(path="layer", kind=kind, op=op)


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (("gate", "swiglu"), "holds with a caveat"),  # PaLM still came first
        (("activation", "gelu"), "does not hold"),
        (("activation", "sigmoid"), "does not hold"),
    ],
)
def test_other_libraries_get_other_verdicts(
    kind: tuple[str, str], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conventions, "installed_families", lambda: {str(n): (site(*kind),) for n in range(60)})
    assert verdict_now("C45") == verdict
    monkeypatch.setattr(conventions, "installed_families", lambda: {str(n): (site(*kind),) for n in range(9)})
    assert verdict_now("C45") == "undecided"


def test_routers_and_gates_with_a_sigmoid() -> None:
    """DeepSeek-V3's own code calls sigmoid on its router's logits; with softmax there it would not count."""
    assert deepseek_v3_routers() == 1
    outputs = trace(instance("qwen3_next", num_hidden_layers=4)).sites
    assert [item.path for item in outputs if item.op == "glu" and "self_attn" in item.path] == [
        "model.layers.3.self_attn"
    ]
    assert trace(instance("mixtral")).count("router", "sigmoid") == 0


@pytest.mark.parametrize("name", ["C06", "C07", "C11", "C25", "C26", "C32", "C42", "C45"])
def test_without_transformers_public_models_are_undecided(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(*_: object, **__: object) -> Tensor:
        return torch.zeros(8, dtype=torch.float64)

    for module in (conventions, families, gates, sizes, without_softmax):
        monkeypatch.setattr(module, "transformers_installed", lambda: False)
    monkeypatch.setattr(gates, "_memory", lambda gate: (quick(), quick()))
    monkeypatch.setattr(without_softmax, "_retrieval", quick)
    monkeypatch.setattr(without_softmax, "_label_sets", quick)
    item = claims([name]).claims
    assert item[0].verdict == "undecided"
    assert "not measured" in draw_markdown(item)
    assert "could not be measured" in " ".join(draw_pages(item, "en").split())
