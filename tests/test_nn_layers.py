"""Feed-forward, norms, blocks, heads and both ends equal their definitions, written out here in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_cases import mapped, normal, rms, small, stirred, token_rows
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel.functional import ACTIVATIONS, register_activation
from evenkeel.nn import (
    Attention,
    AttentionConfig,
    Block,
    EmbeddingConfig,
    FeedForward,
    FeedForwardConfig,
    Head,
    HeadConfig,
    LayerNorm,
    NormConfig,
    PositionConfig,
    RMSNorm,
    Transformer,
)

WIDTH = 24


def erf_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


ORACLES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": erf_gelu,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "identity": lambda x: x,
}


def fed(layer: FeedForward, x: Tensor, function: Callable[[Tensor], Tensor], d_ff: int) -> Tensor:
    """The feed-forward layer by its definition."""
    if layer.gate_up is not None:
        both = mapped(x, layer.gate_up)
        return mapped(function(both[..., :d_ff]) * both[..., d_ff:], layer.down)
    if layer.gate is not None:
        return mapped(function(mapped(x, layer.gate)) * mapped(x, layer.up), layer.down)
    return mapped(function(mapped(x, layer.up)), layer.down)


FORMS = {"plain": {"gated": False}, "gated": {}, "packed": {"packed": True}}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ORACLES)
def test_feed_forward_is_its_definition(name: str, form: str, bias: bool) -> None:
    config = FeedForwardConfig(activation=name, d_ff=10, bias=bias, **FORMS[form])
    layer, x = stirred(FeedForward(6, config).double()), normal(2, 5, 6)
    assert (layer.down.bias is not None) == bias
    torch.testing.assert_close(layer(x), fed(layer, x, ORACLES[name], 10), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(layer, (x[:1].clone().requires_grad_(),))


@pytest.mark.parametrize("form", FORMS)
def test_an_activation_of_ones_own_is_taken_by_name(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(ACTIVATIONS, "_entries", dict(ACTIVATIONS._entries))
    register_activation("cube", lambda x: x**3)
    config = FeedForwardConfig(activation="cube", d_ff=10, bias=True, **FORMS[form])
    layer, x = stirred(FeedForward(6, config).double()), normal(2, 5, 6)
    torch.testing.assert_close(layer(x), fed(layer, x, lambda x: x * x * x, 10), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [True, False])
def test_norms_are_those_of_transformers(grad: bool, dtype: torch.dtype) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    theirs: list[tuple[nn.Module, nn.Module]] = [
        (LlamaRMSNorm(WIDTH, eps=1e-3), RMSNorm(WIDTH, epsilon=1e-3)),
        (GemmaRMSNorm(WIDTH, eps=1e-3), RMSNorm(WIDTH, epsilon=1e-3, offset=True)),
        (nn.LayerNorm(WIDTH, eps=1e-3), LayerNorm(WIDTH, epsilon=1e-3)),
        (nn.LayerNorm(WIDTH, eps=1e-3, bias=False), LayerNorm(WIDTH, epsilon=1e-3, bias=False)),
        (NemotronLayerNorm1P(WIDTH, eps=1e-3), LayerNorm(WIDTH, epsilon=1e-3, offset=True)),
    ]
    x = (3 * normal(5, 2, WIDTH) + 1).to(dtype)
    for twin, ours in theirs:
        weights = {name: value.to(dtype) for name, value in stirred(ours).state_dict().items()}
        assert ours.to(dtype).load_state_dict(weights)
        wide = {name: value.double() for name, value in weights.items()}
        twin.load_state_dict({name: torch.zeros_like(value) for name, value in twin.state_dict().items()} | wide)
        with torch.set_grad_enabled(grad):
            found = ours(x)
        assert found.dtype == dtype
        expected = twin.double()(x.double())
        tolerance = 2**-8 if dtype == torch.bfloat16 else 2e-6  # one rounding
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=1e-6)


PLACEMENTS = ("pre", "post", "sandwich", "none")


@pytest.mark.parametrize("residual", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_blocks_are_written_out_by_placement(placement: Any, residual: tuple[bool, bool]) -> None:
    config = small(
        attention=AttentionConfig(residual=residual[0]),
        feedforward=FeedForwardConfig(residual=residual[1]),
        norm=NormConfig(placement=placement, epsilon=1e-2),
    )
    block, x = stirred(Block(config).double()), normal(2, 5, 32)

    def norm(name: str, x: Tensor) -> Tensor:
        return rms(x, block.get_submodule(name).get_parameter("weight"), 1e-2)

    def branch(part: str, around: bool, x: Tensor) -> Tensor:
        module, kept = block.get_submodule(part), x if around else torch.zeros_like(x)
        if placement == "pre":
            return kept + module(norm(f"{part}_norm", x))
        if placement == "post":
            return norm(f"{part}_post_norm", kept + module(x))
        if placement == "sandwich":
            return kept + norm(f"{part}_post_norm", module(norm(f"{part}_norm", x)))
        return kept + module(x)

    expected = branch("feedforward", residual[1], branch("attention", residual[0], x))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


def logits_by_hand(x: Tensor, matrix: Tensor, head: Head) -> Tensor:
    logits = x @ matrix.T if head.bias is None else x @ matrix.T + head.bias
    cap = head.config.softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 1.5},
    "z-loss": {"z_loss": 0.1},
    "all": {"bias": True, "softcap": 1.5, "z_loss": 0.1, "tied": True},
    "sigmoid": {"kind": "sigmoid"},
    "sigmoid, all": {"kind": "sigmoid", "bias": True, "softcap": 1.5, "tied": True},
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_their_losses_are_their_definitions(name: str) -> None:
    config = HeadConfig(**HEADS[name])
    head, x, embedding = stirred(Head(8, 13, config).double()), normal(3, 5, 8), normal(13, 8, seed=2)
    assert (head.weight is None) == config.tied
    matrix = embedding if head.weight is None else head.weight
    logits = logits_by_hand(x, matrix, head)
    torch.testing.assert_close(head(x, embedding), logits, rtol=1e-10, atol=1e-12)

    target = token_rows(3, 5, vocabulary=13)
    target[0, :2], target[2, 4] = -100, -100
    losses = []
    for row, wanted in zip(logits.flatten(0, 1), target.flatten().tolist(), strict=True):
        if wanted == -100:
            continue
        if config.kind == "sigmoid":
            classes = torch.arange(13) == wanted
            losses.append(-torch.where(classes, torch.sigmoid(row), 1 - torch.sigmoid(row)).log().sum())
        else:
            total = row.exp().sum()
            losses.append(total.log() - row[wanted] + config.z_loss * total.log() ** 2)
    expected = torch.stack(losses).mean()
    found = head(x, embedding, target)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    parameters = list(head.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    odds = F.logsigmoid(logits) if config.kind == "sigmoid" else logits
    assert torch.equal(head.log_odds(logits), odds)


@pytest.mark.parametrize("scale", ["sqrt", 3.0, 1.0])
@pytest.mark.parametrize("kind", ["learned", "none"])
def test_embeddings_are_scaled_before_positions_are_added(scale: Any, kind: Any) -> None:
    config = small(
        embedding=EmbeddingConfig(scale=scale), position=PositionConfig(kind=kind), norm=NormConfig(placement="none")
    )
    model, ids = stirred(Transformer(config)).double(), token_rows(2, 9)
    for block in model.blocks:
        for name in ("attention.output", "feedforward.down"):
            block.get_submodule(name).get_parameter("weight").data.zero_()
    expected = model.embedding.weight[ids] * (math.sqrt(32) if scale == "sqrt" else scale)
    if model.positions is not None:
        expected = expected + model.positions.weight[:9]
    torch.testing.assert_close(model.hidden(ids), expected, rtol=1e-12, atol=1e-12)
    mask = torch.ones(2, 9)
    mask[1, :4] = 0
    places = torch.tensor([[*range(9)], [0, 0, 0, 0, 0, 1, 2, 3, 4]])
    if model.positions is not None:
        expected = model.embedding.weight[ids] * (math.sqrt(32) if scale == "sqrt" else scale)
        expected = expected + model.positions.weight[places]
    torch.testing.assert_close(model.hidden(ids, attention_mask=mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_labels_are_judged_by_the_token_before(kind: Any) -> None:
    config = small(head=HeadConfig(kind=kind, softcap=2.0))
    model, ids = stirred(Transformer(config)).double(), token_rows(2, 9)
    labels = ids.clone()
    labels[0, 3] = -100
    result = model(ids, labels)
    assert result.logits is None
    logits, wanted = model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if kind == "softmax":
        expected = F.cross_entropy(logits, wanted)
    else:
        kept = wanted != -100
        classes = F.one_hot(wanted[kept], 61).double()
        expected = F.binary_cross_entropy_with_logits(logits[kept], classes, reduction="sum") / kept.sum()
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["rotary", "alibi", "relative"])
@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_a_model_gives_its_layers_their_positions(kind: Any, normalizer: Any) -> None:
    config = small(
        context=11,
        depth=1,
        norm=NormConfig(placement="none"),
        position=PositionConfig(kind=kind, buckets=4, farthest=6),
        attention=AttentionConfig(normalizer=normalizer, window=7),
    )
    model, ids = stirred(Transformer(config)).double(), token_rows(2, 11)
    block: Any = model.blocks[0]
    alone = Attention(32, config.attention, position=config.position).double()
    shared = {} if model.bias is None else {f"bias.{name}": item for name, item in model.bias.state_dict().items()}
    alone.load_state_dict({**block.attention.state_dict(), **shared})
    x = model.embedding.weight[ids]
    x = x + alone(x)
    torch.testing.assert_close(model.hidden(ids), x + block.feedforward(x), rtol=1e-10, atol=1e-12)
