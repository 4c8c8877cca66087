"""Changes to models that spell out by hand what they do are what they are by definition."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from swap_cases import ByHand, ByHandGate, OneCall, snapshot
from torch import Tensor, nn

import evenkeel as ek
from evenkeel import Change
from evenkeel.errors import ModelError, UsageError


def in_place(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


SPELLED = {
    "relu": F.relu,
    "relu in place, unnamed": in_place,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "sigmoid method": lambda x: x.sigmoid(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x).square(),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "softplus": lambda x: F.softplus(x),
}


@pytest.mark.parametrize("spelled", SPELLED)
def test_an_activation_is_found_however_it_is_spelled(spelled: str) -> None:
    torch.manual_seed(0)
    model, x = ByHand(SPELLED[spelled]), torch.randn(5, 6)
    built = copy.deepcopy(model)
    built.function = torch.tanh
    before = model(x)
    with ek.swap(model, Change("feedforward.activation", "tanh"), batch=x):
        found, expected = model(x), built(x)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(
            torch.autograd.grad(found.square().sum(), list(model.parameters())),
            torch.autograd.grad(expected.square().sum(), list(built.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)
    assert torch.equal(model(x), before)


def test_glu_takes_another_activation() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 6)), torch.randn(5, 6)
    first, second = model[0](x).chunk(2, -1)
    with ek.swap(model, Change("feedforward.activation", "silu"), batch=x):
        torch.testing.assert_close(model(x), model[2](first * F.silu(second)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # with dropout there is no kernel, and another way is taken
@pytest.mark.parametrize(
    ("change", "scale", "softcap", "normed"),
    [
        (Change("attention.scale", 3), 3, None, False),
        (Change("attention.softcap", 0.5), 0.5, 0.5, False),
        (Change("attention.qk_norm", True), 0.5, None, True),
    ],
    ids=str,
)
def test_fused_attention_is_its_definition(
    masked: bool, dropout: float, change: Change, scale: float, softcap: float | None, normed: bool
) -> None:
    torch.manual_seed(0)
    model, x = OneCall(dropout, masked).train(), 3 * torch.randn(2, 5, 16)
    with ek.swap(model, change, batch=x):
        found, expected = model(x), model.by_definition(x, scale, softcap, normed)
        torch.testing.assert_close(found, expected.float())
        weights = [model.query.weight, model.key.weight, model.value.weight]
        for mine, theirs in zip(
            torch.autograd.grad(found.square().sum(), weights),
            torch.autograd.grad(expected.square().sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


class ScaledBefore(OneCall):
    """The same with the scale in the queries, as Whisper and OPT have it."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        return F.scaled_dot_product_attention(query * 0.5, key, value, is_causal=True, scale=1.0, enable_gqa=True)


@pytest.mark.parametrize(
    ("change", "scale", "softcap", "normed"),
    [
        (Change("attention.scale", 3), 3, None, False),
        (Change("attention.temperature", 2), 0.25, None, False),
        (Change("attention.softcap", 0.5), 0.5, 0.5, False),
        (Change("attention.qk_norm", True), 0.5, None, True),
    ],
    ids=str,
)
def test_a_scale_that_lies_in_the_queries_counts(
    change: Change, scale: float, softcap: float | None, normed: bool
) -> None:
    torch.manual_seed(0)
    model, x = ScaledBefore(), 3 * torch.randn(2, 5, 16)
    with ek.swap(model, change, batch=x):
        expected = model.by_definition(x, scale, softcap, normed).float()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"has a scale of 0.5 already"):
        ek.swap(model, Change("attention.scale", 0.5), batch=x)


class InSteps(OneCall):
    """Attention by hand, with the scale where somebody put it."""

    def __init__(self, scaled: str) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        key, value = (item.repeat_interleave(2, 1) for item in (key, value))
        mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        if self.scaled == "by a quotient":
            scores = query @ key.mT / 2.0 + mask
        elif self.scaled == "by a tensor":
            scores = torch.matmul(query, key.mT).div_(torch.full([], 2.0)) + mask
        elif self.scaled == "in the keys":
            scores = (query @ (key * 0.5).mT).masked_fill(mask < 0, -torch.inf)
        elif self.scaled == "behind the mask":
            scores = (query @ key.mT + mask) * 0.5
        else:
            query, key = query.flatten(0, 1), key.flatten(0, 1)
            scores = torch.baddbmm(mask, query, key.mT, alpha=0.5).unflatten(0, (len(x), -1))
        return torch.matmul(torch.softmax(scores, -1), value)


@pytest.mark.parametrize("scaled", ["by a quotient", "by a tensor", "in the keys", "behind the mask", "in one call"])
@pytest.mark.parametrize(
    ("change", "scale", "softcap", "normed"),
    [
        (Change("attention.scale", 3), 3, None, False),
        (Change("attention.softcap", 0.5), 0.5, 0.5, False),
        (Change("attention.qk_norm", True), 0.5, None, True),
    ],
    ids=str,
)
def test_attention_in_steps_is_its_definition(
    scaled: str, change: Change, scale: float, softcap: float | None, normed: bool
) -> None:
    torch.manual_seed(0)
    model, x = InSteps(scaled), 3 * torch.randn(2, 5, 16)
    torch.testing.assert_close(model(x), model.by_definition(x, 0.5, None, False).float(), rtol=1e-4, atol=1e-4)
    if scaled == "behind the mask" and softcap is not None:
        with pytest.raises(UsageError, match="scaled after the mask was added"):
            ek.swap(model, change, batch=x)
        return
    with ek.swap(model, change, batch=x):
        expected = model.by_definition(x, scale, softcap, normed).float()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("same_size", [True, False])
def test_multi_head_attention_takes_another_scale(need_weights: bool, same_size: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, kdim=16 if same_size else 12, vdim=16 if same_size else 12, batch_first=True)
    nn.init.normal_(model.in_proj_bias)
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16 if same_size else 12)
    arguments = {"query": x, "key": memory, "value": memory, "need_weights": need_weights}
    model.eval()
    weights = (
        model.in_proj_weight.chunk(3) if same_size else (model.q_proj_weight, model.k_proj_weight, model.v_proj_weight)
    )
    biases = model.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(item, weight, bias).unflatten(-1, (2, 8)).transpose(1, 2)
        for item, weight, bias in zip((x, memory, memory), weights, biases, strict=True)
    )
    attended = torch.softmax(query @ key.mT / 8, -1) @ value
    with ek.swap(model, Change("attention.scale", "dim"), batch=arguments):
        torch.testing.assert_close(model(**arguments)[0], model.out_proj(attended.transpose(1, 2).flatten(2)))
    with pytest.raises(UsageError, match="softcap cannot be put"):
        ek.swap(model, Change("attention.softcap", 5.0), batch=arguments)


def test_torchs_encoder_layer_in_eval_mode_takes_no_fast_path_around_the_change() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "nhead": 2, "dim_feedforward": 24, "batch_first": True}
    model = nn.TransformerEncoderLayer(activation="relu", **sizes).eval()
    built = nn.TransformerEncoderLayer(activation="gelu", **sizes).eval()
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 16)
    with torch.no_grad(), ek.swap(model, Change("feedforward.activation", "gelu"), batch=x):
        torch.testing.assert_close(model(x), built(x))
    module = nn.TransformerEncoderLayer(activation=nn.ReLU(), **sizes).eval()
    before = snapshot(module)
    with pytest.raises(UsageError, match="set_fastpath_enabled"):
        ek.swap(module, Change("feedforward.activation", "gelu"), batch=x)
    assert snapshot(module) == before


def test_a_gate_by_functions_is_fused_and_other_uses_get_the_activation() -> None:
    class Twice(ByHandGate):
        def forward(self, x: Tensor) -> Tensor:
            activated = F.silu(self.gate(x))
            more = activated.sum(-1, keepdim=True) + torch.sum(input=activated, dim=-1, keepdim=True)
            return self.down(activated * self.up(x)) + more

    torch.manual_seed(0)
    for model in (ByHandGate(), Twice()):
        x = torch.randn(3, 4)
        expected = model(x)
        with ek.swap(model, Change("feedforward.kernel", "fused"), batch=x):
            torch.testing.assert_close(model(x), expected)
            sites = ek.inspect(model, [x], backward=False).sites
        assert [site.op for site in sites if site.kind == "gate"] == ["swiglu"]


def test_a_run_that_is_not_like_the_traced_one_is_told_of() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.map(x)
            return F.relu(x).square() if x.shape[0] > 1 else x

    model = Sometimes()
    with (
        ek.swap(model, Change("feedforward.activation", "silu"), batch=torch.randn(2, 4)),
        pytest.raises(ModelError, match=r"called \w+ 0 times, and one or more times when swap traced it"),
    ):
        model(torch.randn(1, 4))
