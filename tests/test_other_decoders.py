"""False alarms once raised on healthy decoders of other kinds: gates, routers, logits, gradient scalers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import make
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis

WIDTH, CLASSES, EXPERTS = 32, 64, 8


class Block(nn.Module):
    """A residual block around a feed-forward of some kind."""

    def __init__(self, feedforward: nn.Module) -> None:
        super().__init__()
        self.norm, self.feedforward = nn.LayerNorm(WIDTH), feedforward

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feedforward(self.norm(x))


class Model(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, *feedforwards: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.layers = nn.ModuleList(Block(item) for item in feedforwards)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x).float()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        return logits


class Feedforward(nn.Module):
    """Down(silu(up)), and a sigmoid of one number a token that does something with it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.score = nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH), nn.Linear(WIDTH, 1)

    def inner(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Shared(Feedforward):
    """Qwen2-MoE's shared expert: the number multiplies its output."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.score(x)) * self.inner(x)


class Padded(Feedforward):
    """Qwen3-Next's beta: one number a head, turned and padded before it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        beta = F.pad(torch.sigmoid(self.score(x)).transpose(1, 2).contiguous(), (0, 3)).transpose(1, 2)
        return (F.pad(self.inner(x), (0, 0, 0, 3)) * beta)[:, :-3]


class Added(Feedforward):
    """No gate: the number is added, by way of another map."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.back(torch.sigmoid(self.score(x)))


class Stepped(Feedforward):
    """Mamba's step: a softplus scales several channels and is no share of them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.score(x)) * self.inner(x)


class Scattered(nn.Module):
    """Llama 4's router: the scores of the chosen experts in a row of -inf, then a sigmoid; they multiply inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x).flatten(0, 1)
        values, indices = logits.topk(1, dim=1)
        scores = torch.full_like(logits, -math.inf).scatter_(1, indices, values)
        scores = torch.sigmoid(scores.float())
        given = x.flatten(0, 1).repeat(EXPERTS, 1) * scores.transpose(0, 1).reshape(-1, 1)
        return torch.bmm(given.view(EXPERTS, -1, WIDTH), self.experts).sum(0).view(x.shape)


def text(rows: int = 16) -> Tensor:
    return torch.randint(3, CLASSES, (rows, 48), generator=torch.Generator().manual_seed(0)) ** 2 % CLASSES


def inspected(kind: type[nn.Module]) -> Diagnosis:
    torch.manual_seed(0)
    return ek.inspect(Model(kind(), kind()), [text()])


def kinds(diagnosis: Diagnosis) -> set[tuple[str, str]]:
    return {(site.kind, site.op) for site in diagnosis.sites if site.kind in ("activation", "gate", "router")}


def told(diagnosis: Diagnosis, code: str) -> str | None:
    """The severity of a rule's finding, None where it is silent."""
    return next((finding.severity for finding in diagnosis.findings if finding.code == code), None)


@pytest.mark.parametrize("kind", [Shared, Padded])
def test_one_number_that_gates_all_channels(kind: type[nn.Module]) -> None:
    diagnosis = inspected(kind)
    assert ("gate", "glu") in kinds(diagnosis)
    assert told(diagnosis, "ARC702") is None and told(diagnosis, "ACT101") is None


def test_what_is_added_or_no_share_is_no_gate() -> None:
    assert {kind for kind, _ in kinds(inspected(Added)) | kinds(inspected(Stepped))} == {"activation"}
    assert told(inspected(Added), "ARC702") == "info"  # a bottleneck of one channel


def test_a_sigmoid_of_the_chosen_experts_scores_is_a_router() -> None:
    diagnosis = inspected(Scattered)
    assert kinds(diagnosis) == {("router", "sigmoid")}
    readings = {item.stat: item.values for item in diagnosis.readings if ":router" in item.site}
    assert readings["experts"] == (EXPERTS,) and readings["chosen_per_token"] == (1.0,)
    assert told(diagnosis, "ACT101") is None  # seven of eight are sigmoid(-inf)


def test_routers_that_all_begin_at_zero() -> None:
    """One of several is a fault, and so are all of them once the model has learned."""
    model: Any = make("mixtral")[0]
    for layer in model.model.layers:
        layer.mlp.gate.weight.data.zero_()
    ids = torch.randint(3, 100, (24, 24), generator=torch.Generator().manual_seed(0))
    assert told(ek.inspect(model, [{"input_ids": ids, "labels": ids}]), "GLU203") == "info"


@pytest.mark.parametrize(("bias", "severity"), [(0.0, "info"), (-300.0, "error")])
def test_a_gate_of_zeros_opens_and_one_without_slope_does_not(bias: float, severity: str) -> None:
    model: Any = make("llama")[0]
    for layer in model.model.layers:
        gate = layer.mlp.gate_proj
        gate.weight.data.zero_()
        gate.bias = nn.Parameter(torch.full((gate.weight.shape[0],), bias))
    ids = torch.randint(3, 100, (24, 24), generator=torch.Generator().manual_seed(0))
    assert told(ek.inspect(model, [{"input_ids": ids, "labels": ids}]), "GLU201") == severity


# --- attention logits --------------------------------------------------------------------------------------------


class Attend(nn.Module):
    """Causal attention of one head whose keys have a bias along a constant direction of all queries."""

    def __init__(self, shift: float, spread: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.key = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.key.weight, std=spread / WIDTH**0.5)
        nn.init.zeros_(self.key.bias)
        self.key.bias.data[0] = shift * WIDTH**0.5

    def forward(self, x: Tensor) -> Tensor:
        query = torch.cat([torch.ones_like(x[..., :1]), x[..., 1:]], -1)
        return F.scaled_dot_product_attention(query[:, None], self.key(x)[:, None], x[:, None], is_causal=True)[:, 0]


def attended(shift: float, spread: float) -> tuple[Diagnosis, dict[str, float]]:
    model = Model(Attend(shift, spread), Attend(shift, spread))
    diagnosis = ek.inspect(model, [text()])
    readings = [item for item in diagnosis.readings if ":attention" in item.site]
    return diagnosis, {item.stat: item.values[0] for item in readings[: len(readings) // 2]}


def test_a_shift_that_all_keys_share_is_no_large_logit() -> None:
    """The same scores but for a constant: the entropy is the same, and so is what is judged."""
    plain, without = attended(0.0, 1.0)
    shifted, with_shift = attended(500.0, 1.0)
    assert with_shift["max_logit"] > 490 > 20 > without["max_logit"]
    assert with_shift["max_logit_rise"] == pytest.approx(without["max_logit_rise"], abs=1e-3)
    assert with_shift["entropy"] == pytest.approx(without["entropy"], abs=1e-3)
    assert told(plain, "ATT303") is None and told(shifted, "ATT303") is None
    assert told(attended(500.0, 100.0)[0], "ATT303") == "warning"


# --- gradient scalers --------------------------------------------------------------------------------------------


def scaled_run(*, scale: float, steps: int, every: int, skip: bool = True, optimizer: bool = True) -> Diagnosis:
    """Scaled losses whose gradients overflow float32 at first; with `skip` such steps are left out, as scalers do."""
    model, batch = make("llama")
    model.train()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    watch = ek.watch(model, optimizer=sgd if optimizer else None, every=every, on_spike=False)
    for _ in range(steps):
        with watch.step():
            loss = model(**batch).loss
            scaler.scale(loss).backward()
            if skip:
                scaler.step(sgd)
                scaler.update()
            else:
                sgd.step()
            watch.log(loss=loss, gradient_norm=1.0)
            sgd.zero_grad()
    return watch.diagnose()


OVERFLOWS = 1e38  # times gradients of several units


@pytest.mark.parametrize("optimizer", [True, False])
def test_the_search_of_a_gradient_scaler_is_no_error(optimizer: bool) -> None:
    assert told(scaled_run(scale=OVERFLOWS * 3, steps=4, every=50, optimizer=optimizer), "NUM601") == "info"


def test_a_step_with_such_gradients_that_was_taken_is_an_error() -> None:
    assert told(scaled_run(scale=OVERFLOWS * 3, steps=1, every=50, skip=False), "NUM601") == "error"
    assert told(scaled_run(scale=OVERFLOWS * 3, steps=3, every=50, skip=False, optimizer=False), "NUM601") == "error"


# --- the dtype of logits -----------------------------------------------------------------------------------------


class Head(nn.Module):
    """A head in one dtype whose logits are cast to another for the loss; logits of about 200."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.dtype = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES), dtype
        nn.init.constant_(self.head.bias, 200.0)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids).to(self.dtype)
        logits = F.linear(x, self.head.weight.to(self.dtype), self.head.bias.to(self.dtype)).float()
        F.cross_entropy(logits.flatten(0, 1), input_ids.flatten())
        return logits


@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_judged_in_the_dtype_that_held_them(model: torch.dtype, head: torch.dtype) -> None:
    diagnosis = ek.inspect(Head(head).to(model), [text()])
    rounded = [item.message for item in diagnosis.findings if item.code == "OUT401" and item.severity == "warning"]
    assert [("bfloat16 rounds" in message) for message in rounded] == ([True] if head == torch.bfloat16 else [])


def test_autocast_rounds_a_float32_models_logits() -> None:
    model = Head(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert told(ek.inspect(model, [text()]), "OUT401") == "warning"
