"""Norms as sites: where they are found, what they are shown, and what NUM604, NUM605 and NUM606 make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.instruments.norm import NormInstrument
from evenkeel.nn import AttentionConfig, NormConfig, Transformer, TransformerConfig
from evenkeel.nn.norms import LayerNorm, RMSNorm
from evenkeel.schema import Site
from evenkeel.tracing.events import Event, NormEvent
from evenkeel.tracing.structure import Structure
from evenkeel.tracing.tracer import Tracer


def trace(model: nn.Module, run: Callable[[], object]) -> tuple[tuple[Site, ...], list[tuple[Site, NormEvent]]]:
    """All sites, and every norm's event with its tensors cloned, as later calls may write into them."""
    events: list[tuple[Site, NormEvent]] = []

    def observe(site: Site, event: Event) -> None:
        if isinstance(event, NormEvent):
            events.append((site, event))

    tracer = Tracer(Structure(model), observe)
    with tracer:
        run()
    return tracer.sites, events


def norms(sites: tuple[Site, ...]) -> list[str]:
    return [f"{site.path} {site.op}" for site in sites if site.kind == "norm"]


# --- where norms are found ---------------------------------------------------------------------------------------

_BLOCK_NORMS: dict[str, tuple[str, ...]] = {
    "llama": ("input_layernorm rms_norm", "post_attention_layernorm rms_norm"),
    "qwen3": (
        "input_layernorm rms_norm",
        "self_attn.q_norm rms_norm",
        "self_attn.k_norm rms_norm",
        "post_attention_layernorm rms_norm",
    ),
    "gemma2": (
        "input_layernorm rms_norm",
        "post_attention_layernorm rms_norm",
        "pre_feedforward_layernorm rms_norm",
        "post_feedforward_layernorm rms_norm",
    ),
    "gpt2": ("ln_1 layer_norm", "ln_2 layer_norm"),
    "bert": ("attention.output.LayerNorm layer_norm", "output.LayerNorm layer_norm"),
    "t5": ("layer.0.layer_norm rms_norm", "layer.1.layer_norm rms_norm"),
    "mamba": ("norm rms_norm",),
}
_STACKS = {"gpt2": "transformer.h", "bert": "bert.encoder.layer", "t5": "encoder.block", "mamba": "backbone.layers"}


@pytest.mark.parametrize("family", _BLOCK_NORMS)
def test_the_norms_of_families_in_order(family: str) -> None:
    model, batch = families.make(family)
    sites, events = trace(model, lambda: model(**batch))
    stack = _STACKS.get(family, "model.layers")
    found = [item for item in norms(sites) if item.startswith(f"{stack}.")]
    assert found == [f"{stack}.{layer}.{place}" for layer in (0, 1) for place in _BLOCK_NORMS[family]]
    for site, event in events:
        behind = "post_" in site.path if family == "gemma2" else "q_norm" in site.path or "k_norm" in site.path
        assert event.reads_stream != behind, site.path


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_our_own(kind: Any, placement: Any) -> None:
    config = TransformerConfig(
        depth=2,
        d_model=32,
        attention=AttentionConfig(heads=4),
        norm=NormConfig(kind=kind, placement=placement, offset=kind == "rms"),
    )
    model = Transformer(config, seed=0)
    sites, events = trace(model, lambda: model(torch.arange(8)[None]))
    assert len(norms(sites)) == 2 * config.norm.per_block + config.norm.before_head
    assert {site.op for site in sites if site.kind == "norm"} == {f"{kind}_norm"}
    behind = {site.path for site, event in events if not event.reads_stream}
    expected = {"attention_post_norm", "feedforward_post_norm"} if placement == "sandwich" else set()
    assert {path.rpartition(".")[2] for path in behind} == expected


def spelled_layer_norm(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * gain


SPELLED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "rsqrt of a power": (lambda x, g: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * g, "rms_norm"),
    "rsqrt of a square, gain first": (
        lambda x, g: g * (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)),
        "rms_norm",
    ),
    "division by the root of a product": (lambda x, g: x / (torch.mean(x * x, -1, True) + 1e-5).sqrt() * g, "rms_norm"),
    "division by a root": (lambda x, g: x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt() * g, "rms_norm"),
    "through double": (
        lambda x, g: (x.double() * (x.double() ** 2).mean(-1, keepdim=True).add(1e-5).pow(-0.5)).to(x.dtype) * g,
        "rms_norm",
    ),
    "centred by hand": (spelled_layer_norm, "rms_norm"),
    "by its variance": (
        lambda x, g: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) * g,
        "layer_norm",
    ),
    "a dynamic tanh": (lambda x, g: torch.tanh(0.5 * x) * g, "none"),
    "a cosine": (lambda x, g: x / x.norm(dim=-1, keepdim=True) * g, "none"),
}


class Spelled(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.g, self.l, self.function = nn.Parameter(torch.linspace(0.5, 2, 16)), nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.l(self.function(x, self.g))


@pytest.mark.parametrize("name", SPELLED)
def test_a_norm_that_is_spelled_out_is_shown_as_it_is(name: str) -> None:
    function, op = SPELLED[name]
    model = nn.Sequential(Spelled(function), nn.ReLU())
    x = torch.randn(3, 7, 16)
    sites, events = trace(model, lambda: model(x).sum().backward())
    if op == "none":
        assert norms(sites) == []
        return
    assert norms(sites) == [f"0 {op}"]
    ((_, event),) = events
    assert event.epsilon == pytest.approx(1e-5) and event.size == 16 and event.reads_stream
    gain = model[0].get_parameter("g").detach()
    torch.testing.assert_close(event.output, function(x, gain))
    given = x - x.mean(-1, keepdim=True) if name in ("centred by hand", "by its variance") else x
    torch.testing.assert_close(event.input.to(x.dtype), given)


@pytest.mark.parametrize("layer", [LayerNorm(16, offset=True), RMSNorm(16, offset=True), nn.RMSNorm(16)])
def test_what_a_fused_norm_is_shown_as(layer: nn.Module) -> None:
    x = torch.randn(3, 7, 16)
    _, events = trace(layer, lambda: layer(x))
    ((_, event),) = events
    torch.testing.assert_close(event.output, layer(x))
    torch.testing.assert_close(event.input, x)
    assert event.epsilon == {LayerNorm: 1e-5, RMSNorm: 1e-6}.get(type(layer), torch.finfo(x.dtype).eps)  # type: ignore[arg-type]


# --- what is read there ------------------------------------------------------------------------------------------


def twin(x: np.ndarray, y: np.ndarray, epsilon: float, centred: bool) -> dict[str, float]:
    """Of (tokens, channels), in float64."""
    variance = x.var(-1) if centred else (x**2).mean(-1)
    return {
        "input_rms": float(np.sqrt((x**2).mean())),
        "output_rms": float(np.sqrt((y**2).mean())),
        "constant_channel_share": float((np.ptp(y, axis=0) == 0).mean()),
        "constant_input_share": float((np.ptp(x, axis=0) == 0).mean()),
        "epsilon_share": float((epsilon / (variance + epsilon))[variance > 0].mean()),
        "reads_stream": 1.0,
        "tokens": float(len(x)),
    }


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-12])
@pytest.mark.parametrize("centred", [True, False])
def test_readings_equal_their_twin(centred: bool, scale: float) -> None:
    """A quarter of the channels has no gain, one input channel is constant, and some rows are nothing but zeros."""
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(4, 50, 24, generator=generator)
    x[..., 3] = 0.5 * scale
    x[1, 10:20] = 0.0 if not centred else x[1, 10:20]
    gain = torch.ones(24)
    gain[::4] = 0
    y = F.layer_norm(x, (24,), gain, torch.full((24,), 0.3))
    instrument = NormInstrument()
    for part in (slice(0, 1), slice(1, 4)):
        other = NormInstrument()
        other.observe(NormEvent(input=x[part], output=y[part], size=24, epsilon=1e-5, centred=centred))
        instrument.merge(other)
    found = {stat.name: float(value) for stat, value in instrument.read().items()}
    given, normed = (item.reshape(-1, 24).double().numpy() for item in (x, y))
    expected = twin(given, normed, 1e-5, centred)
    if not centred:
        expected["constant_input_share"] = 0.0  # rows of zeros differ from the constant
    assert found == pytest.approx(expected, rel=1e-6)


def test_groups_are_normalised_together_and_channels_stay_apart() -> None:
    x = torch.randn(6, 8, 5, 5)
    layer = nn.GroupNorm(4, 8)
    nn.init.zeros_(layer.weight[:2])
    _, events = trace(layer, lambda: layer(x))
    instrument = NormInstrument()
    instrument.observe(events[0][1])
    found = {stat.name: float(value) for stat, value in instrument.read().items()}
    groups = x.double().reshape(24, 50).numpy()
    assert found["constant_channel_share"] == 0.25 and found["tokens"] == 24
    assert found["epsilon_share"] == pytest.approx((1e-5 / (groups.var(-1) + 1e-5)).mean())


def test_a_large_input_is_sampled_evenly() -> None:
    x = torch.randn(64, 512, 256)
    instrument = NormInstrument()
    instrument.observe(NormEvent(input=x, output=3 * x, size=256, epsilon=1e-5, centred=True))
    found = {stat.name: float(value) for stat, value in instrument.read().items()}
    assert found["tokens"] == len(range(0, 64 * 512, 511))  # of 64 and more, at an odd distance
    assert found["input_rms"] == pytest.approx(1, abs=0.03) and found["output_rms"] == pytest.approx(3, abs=0.09)


# --- what the rules make of it -----------------------------------------------------------------------------------


def decoder(depth: int = 4, placement: Any = "pre", seed: int = 0) -> tuple[Transformer, Tensor]:
    config = TransformerConfig(
        depth=depth, d_model=32, attention=AttentionConfig(heads=4), norm=NormConfig(placement=placement)
    )
    return Transformer(config, seed=seed), torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))


def found(model: nn.Module, batch: Any, *codes: str) -> dict[str, tuple[str, set[str]]]:
    """Severity and paths of these findings."""
    diagnosis = ek.inspect(model, [batch])
    return {
        item.code: (item.severity, {site.rpartition(":")[0] for site in item.sites})
        for item in diagnosis.findings
        if item.code in codes
    }


NORM_CODES = ("NUM604", "NUM605", "NUM606")


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_healthy_norms_are_silent(placement: Any) -> None:
    assert found(*decoder(placement=placement), *NORM_CODES) == {}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3", "bert", "t5", "opt", "bloom", "mamba", "rwkv"])
def test_no_family_is_warned_of_its_norms(family: str) -> None:
    warned = {code for code, (severity, _) in found(*families.make(family), *NORM_CODES).items() if severity != "info"}
    assert warned == set()


@pytest.mark.parametrize(("gain", "code"), [(0.0, "NUM604"), (1e-5, "NUM604"), (300.0, "NUM605")])
@pytest.mark.parametrize("place", ["blocks.2.attention_norm", "blocks.0.feedforward_norm", "norm"])
@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_a_gain_that_is_wrong_is_named(placement: Any, place: str, gain: float, code: str) -> None:
    model, ids = decoder(placement=placement)
    nn.init.constant_(model.get_parameter(f"{place}.weight"), gain)
    assert found(model, ids, *NORM_CODES) == {code: ("warning", {place})}


def test_branches_that_all_start_at_zero_are_a_design() -> None:
    model, ids = decoder(placement="sandwich")
    for block in model.blocks:
        nn.init.zeros_(block.get_parameter("attention_post_norm.weight"))
    assert found(model, ids, "NUM604")["NUM604"][0] == "info"
    nn.init.ones_(model.get_parameter("blocks.0.attention_post_norm.weight"))
    assert found(model, ids, "NUM604")["NUM604"][0] == "warning"


def test_a_batch_of_one_token_over_and_over_tells_nothing() -> None:
    model, ids = decoder()
    nn.init.zeros_(model.get_parameter("blocks.1.attention_norm.weight"))
    assert found(model, torch.full_like(ids, 7), "NUM604") == {}


def test_an_init_far_too_small_starves_the_norms() -> None:
    model, ids = decoder()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1e-3)
    severity, paths = found(model, ids, "NUM606")["NUM606"]
    assert severity == "warning" and len(paths) == 9


def test_a_small_embedding_alone_is_info() -> None:
    model, ids = decoder()
    with torch.no_grad():
        model.get_parameter("embedding.weight").mul_(1e-4)
    assert found(model, ids, "NUM606")["NUM606"][0] == "info"
