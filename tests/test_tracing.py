"""Sites are found from tensors: exact tables for public families and for plain models with unhelpful names."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import families
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from evenkeel.schema import Site
from evenkeel.tracing.events import AttentionEvent, Event, GateEvent, GradientEvent, RouterEvent
from evenkeel.tracing.structure import Structure
from evenkeel.tracing.tracer import Tracer


def trace(model: nn.Module, run: Callable[[], object]) -> tuple[tuple[Site, ...], list[tuple[Site, Event]]]:
    events: list[tuple[Site, Event]] = []
    tracer = Tracer(Structure(model), lambda site, event: events.append((site, event)))
    with tracer:
        run()
    return tracer.sites, events


def places(sites: Sequence[Site]) -> list[str]:
    shown = [site for site in sites if site.kind not in ("module", "residual", "norm")]
    return [f"{site.path} {site.kind} {site.op}" + (f" @{site.call}" if site.call else "") for site in shown]


def blocks(sites: Sequence[Site]) -> list[str]:
    return [site.path for site in sites if site.kind == "residual"]


@pytest.mark.parametrize("family", families.CONFIGS)
def test_families_show_exactly_their_places(family: str) -> None:
    model, batch = families.make(family)
    sites, _ = trace(model, lambda: model(**batch).loss.backward())
    assert sorted(places(sites)) == sorted(families.PLACES[family]())
    unmeasured = {site.kind for site in sites if site.status != "measured"}
    assert unmeasured <= {"recurrence"}
    assert all(site.reason for site in sites if site.status != "measured")


@pytest.mark.parametrize("family", families.BLOCKS)
def test_blocks_are_the_repeated_layers_and_gradients_reach_them(family: str) -> None:
    model, batch = families.make(family)
    sites, events = trace(model, lambda: model(**batch).loss.backward())
    assert blocks(sites) == families.BLOCKS[family]
    reached = {site.path for site, event in events if site.kind == "residual" and isinstance(event, GradientEvent)}
    assert reached >= set(families.BLOCKS[family])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "opt"])
def test_eager_and_fused_attention_are_one_site(family: str) -> None:
    eager, batch = families.make(family, attention="eager")
    sites, events = trace(eager, lambda: eager(**batch))
    assert sorted(places(sites)) == sorted(families.PLACES[family]())
    assert all(event.scores is not None for _, event in events if isinstance(event, AttentionEvent))


class FeedForward(nn.Module):
    """Names that say nothing: u and v lead in, w leads out, and `mix` is what lies between."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.u, self.v, self.w = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.w(self.mix(self.u(x), self.v(x)))


def squared(x: Tensor) -> Tensor:
    return x * x


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


MIXES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[str]]] = {
    "nothing": (lambda a, b: a, []),
    "product of two linear maps": (lambda a, b: a * b, []),
    "soft-cap": (lambda a, b: 30 * torch.tanh(a / 30), []),
    "x·sigmoid(x)": (lambda a, b: a * torch.sigmoid(a), ["activation silu"]),
    "x·sigmoid(x) in place": (lambda a, b: a.mul_(torch.sigmoid(a)), ["activation silu"]),
    "quick gelu": (lambda a, b: a * torch.sigmoid(1.702 * a), ["activation quick_gelu"]),
    "relu² by power": (lambda a, b: F.relu(a) ** 2, ["activation relu2"]),
    "relu² by square": (lambda a, b: F.relu(a).square(), ["activation relu2"]),
    "relu² by product": (lambda a, b: squared(F.relu(a)), ["activation relu2"]),
    "clamp": (lambda a, b: a.clamp(min=0), ["activation relu"]),
    "sigmoid by exp": (lambda a, b: 1 / (1 + torch.exp(-a)), ["activation sigmoid"]),
    "tanh-GELU spelled out": (lambda a, b: tanh_gelu(a), ["activation gelu_tanh"]),
    "GELU by erf": (lambda a, b: a * 0.5 * (1 + torch.erf(a / math.sqrt(2))), ["activation gelu"]),
    "mish": (lambda a, b: a * torch.tanh(F.softplus(a)), ["activation mish"]),
    "steep leaky relu": (lambda a, b: F.leaky_relu(a, 0.2), ["activation leaky_relu"]),
    "glu": (lambda a, b: torch.sigmoid(a) * b, ["activation sigmoid", "gate glu"]),
    "glu with the gate second": (lambda a, b: b * torch.sigmoid(a), ["activation sigmoid", "gate glu"]),
    "glu by chunk": (lambda a, b: F.glu(torch.cat([a, b], -1)), ["gate glu"]),
    "geglu": (lambda a, b: F.gelu(a) * b, ["activation gelu", "gate geglu"]),
    "reglu in place": (lambda a, b: F.relu_(a) * b, ["activation relu", "gate reglu"]),
    "swiglu in place": (lambda a, b: F.silu(a).mul_(b), ["activation silu", "gate swiglu"]),
    "swiglu through casts": (lambda a, b: F.silu(a.double()).to(a.dtype) * b, ["activation silu", "gate swiglu"]),
    "swiglu through a view": (
        lambda a, b: (F.silu(a).flatten() * b.flatten()).reshape(a.shape),
        ["activation silu", "gate swiglu"],
    ),
    "swiglu, shifted": (lambda a, b: (F.silu(a) * 2 + 1) * b, ["activation silu", "gate swiglu"]),
}


@pytest.mark.parametrize("name", MIXES)
def test_feed_forwards_are_told_by_their_tensors(name: str) -> None:
    mix, expected = MIXES[name]
    model = nn.Sequential(FeedForward(mix))
    sites, events = trace(model, lambda: model(torch.randn(2, 5, 16)).sum().backward())
    assert [place.removeprefix("0 ") for place in places(sites)] == expected
    for _, event in events:
        if isinstance(event, GateEvent):
            torch.testing.assert_close(event.activated * event.up, event.product)


class Attention(nn.Module):
    """Attention by einsum, and a GLU by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(32, 16)
        self.e, self.f = nn.Softmax(dim=-1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.a(x).reshape(batch, length, 3, 2, 8).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8)
        hidden = torch.ones(length, length).triu(1).bool()
        weights = self.f(self.e(scores.masked_fill(hidden, -1e4)))
        x = x + self.b(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
        gate, up = self.c(x).chunk(2, -1)
        return x + self.d(gate * torch.sigmoid(gate) * up)


def test_attention_by_einsum_with_its_mask() -> None:
    model = nn.Sequential(Attention(), Attention())
    x = torch.randn(2, 5, 16)
    sites, events = trace(model, lambda: model(x).sum().backward())
    assert places(sites) == [
        f"{layer} {place}" for layer in (0, 1) for place in ("attention softmax", "activation silu", "gate swiglu")
    ]
    assert blocks(sites) == ["0", "1"]
    for event in (event for _, event in events if isinstance(event, AttentionEvent)):
        assert event.scores is not None and event.scores.shape == (2, 2, 5, 5)
        assert event.visible is not None
        assert torch.equal(event.visible.expand(2, 2, 5, 5), torch.ones(5, 5).tril().bool().expand(2, 2, 5, 5))


def test_flex_attention_with_a_score_function_and_a_block_mask() -> None:
    class Flexible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Linear(16, 64)

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.p(x).reshape(1, 128, 4, 16).transpose(1, 2), self.p(x)[..., :32].reshape(1, 128, 2, 16)
            mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 128, 128, device="cpu")
            k = k.transpose(1, 2)
            return flex_attention(q, k, k, lambda s, b, h, i, j: s + h - 0.5 * (i - j), mask, enable_gqa=True)

    model, x = Flexible().eval(), torch.randn(1, 128, 16)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the eager form is slow
        sites, events = trace(model, lambda: model(x))
        q, k = model.p(x).reshape(1, 128, 4, 16).transpose(1, 2), model.p(x)[..., :32].reshape(1, 128, 2, 16)
    assert places(sites) == [" attention softmax"]
    event = next(event for _, event in events if isinstance(event, AttentionEvent))
    place = torch.arange(128)
    expected = q @ k.transpose(1, 2).repeat_interleave(2, 1).mT / 4 + torch.arange(4)[:, None, None]
    assert event.scores is not None and event.visible is not None
    torch.testing.assert_close(event.scores, expected - 0.5 * (place[:, None] - place))
    assert torch.equal(event.visible[0, 3], place[:, None] >= place)


def test_softmax_over_another_dimension_and_transposed_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p: nn.Module = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.p(x)
            weights = (y @ y.mT).softmax(dim=-2)  # keys are rows
            return weights.mT @ x

    model = Odd()
    x = torch.randn(2, 5, 8)
    sites, events = trace(model, lambda: model(x))
    assert places(sites) == [" attention softmax"]
    event = next(event for _, event in events if isinstance(event, AttentionEvent))
    y = model.p(x)
    assert event.scores is not None
    torch.testing.assert_close(event.scores.squeeze(1), (y @ y.mT).mT)


def test_stock_transformer_layers_and_padding() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for training in (True, False):
        model.train(training)
        x = torch.randn(2, 5, 16)
        sites, events = trace(model, lambda x=x: model(x, src_key_padding_mask=padding))
        assert places(sites) == [
            f"layers.{index}{place}"
            for index in (0, 1)
            for place in (".self_attn attention softmax", " activation relu")
        ]
        event = next(event for _, event in events if isinstance(event, AttentionEvent))
        assert event.padded_queries is not None and torch.equal(event.padded_queries, padding)


def test_shared_modules_get_the_path_of_their_caller_and_a_call_number() -> None:
    act = nn.GELU()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.act = nn.Linear(8, 8), act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.l(x))

    shared_act = nn.Sequential(Layer(), Layer())
    assert places(trace(shared_act, lambda: shared_act(torch.randn(2, 8)))[0]) == [
        "0.act activation gelu",
        "1.act activation gelu",
    ]
    layer = Layer()
    shared_layer = nn.Sequential(layer, layer)
    assert places(trace(shared_layer, lambda: shared_layer(torch.randn(2, 8)))[0]) == [
        "0.act activation gelu",
        "0.act activation gelu @1",
    ]


class HiddenSwiGLU(torch.autograd.Function):
    """As a fused kernel: nothing inside is visible to a function mode."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        with torch._C.DisableTorchFunction():
            return F.silu(gate) * up

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        s = torch.sigmoid(gate)
        return gradient * up * s * (1 + gate * (1 - s)), gradient * gate * s


@pytest.mark.parametrize("gradients", [True, False])
def test_a_fused_kernel_is_listed_as_not_measured(gradients: bool) -> None:
    model = nn.Sequential(FeedForward(HiddenSwiGLU.apply), FeedForward(HiddenSwiGLU.apply))
    with torch.set_grad_enabled(gradients):
        sites, _ = trace(model, lambda: model(torch.randn(2, 5, 16)))
    assert places(sites) == ["0 gate fused", "1 gate fused"]
    hidden = [site for site in sites if site.kind == "gate"]
    assert all(site.status == "not_measured" and "fused kernel" in site.reason for site in hidden)


def test_fused_recurrences_are_listed() -> None:
    model = nn.LSTM(8, 8)
    sites, _ = trace(model, lambda: model(torch.randn(3, 2, 8)))
    assert places(sites) == [" recurrence lstm"]
    assert [site.status for site in sites if site.kind == "recurrence"] == ["not_measured"]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_routers_hand_on_the_experts_that_were_chosen(family: str) -> None:
    model, batch = families.make(family)
    _, events = trace(model, lambda: model(**batch))
    routed = [event for _, event in events if isinstance(event, RouterEvent)]
    assert len(routed) == 2
    for event in routed:
        assert event.experts == 4 and event.chosen.shape == (18, 2)
        assert (event.chosen[:, 0] != event.chosen[:, 1]).all()


def test_decoding_with_a_cache_sees_few_queries_and_many_keys() -> None:
    model, batch = families.make("llama")
    model.eval()
    ids = batch["input_ids"][:, :4]
    sites, events = trace(
        model, lambda: cast(Any, model).generate(ids, max_new_tokens=3, do_sample=False, use_cache=True)
    )
    assert places(sites) == families.PLACES["llama"]()
    shapes = [
        (event.query.shape[2], event.key.shape[2])
        for _, event in events
        if isinstance(event, AttentionEvent) and event.query is not None and event.key is not None
    ]
    assert sorted(set(shapes)) == [(1, 5), (1, 6), (4, 4)]


def test_a_failing_instrument_costs_its_site_and_not_the_step() -> None:
    model, batch = families.make("llama")

    def observe(site: Site, event: Event) -> None:
        if site.kind == "gate":
            raise ValueError("in an instrument")

    tracer = Tracer(Structure(model), observe)
    with tracer:
        loss = model(**batch).loss
    assert torch.equal(loss, model(**batch).loss)
    failed = [site for site in tracer.sites if site.status == "not_measured"]
    assert [site.kind for site in failed] == ["gate", "gate"]
    assert all("ValueError: in an instrument" in site.reason for site in failed)


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:].relu() if x.dim() == 3 else {}["nothing"]


class ScaledElu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.steepness * torch.expm1(x))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.Softmax(-1), ["0.1 activation softmax"]),
        (nn.LayerNorm(16, elementwise_affine=False), []),
        (nn.AvgPool1d(3), []),
        (nn.Dropout(0.3), []),
        (Raising(), ["0.1 activation relu"]),
        (ScaledElu(), ["0.1 activation unknown pointwise"]),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_is_elementwise_and_what_is_not(part: nn.Module, expected: list[str]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16), part))
    state = torch.get_rng_state()
    sites, _ = trace(model.eval(), lambda: model(torch.ones(2, 5, 16)))
    assert places(sites) == expected
    assert torch.equal(torch.get_rng_state(), state)
