"""Rules about the head on live models: what its logits, its targets and its loss have to do with each other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import families
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.data import standard_library_text
from evenkeel.diagnosis import Diagnosis
from evenkeel.nn import HeadConfig, Transformer, TransformerConfig
from evenkeel.schema import DataInfo
from evenkeel.training import adamw, byte_batches, train

CONFIG = TransformerConfig(vocabulary=256, context=48, depth=2, d_model=64)
HEADS = {"OUT401", "OUT402", "OUT403", "OUT404", "OUT405", "OUT406"}


def of_head(diagnosis: Diagnosis) -> dict[str, str]:
    """The severities of the findings about the head, by code; info left out."""
    return {item.code: item.severity for item in diagnosis.findings if item.code in HEADS and item.severity != "info"}


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    ids = next(byte_batches(standard_library_text(), context=48, size=16, seed=5))
    return {"input_ids": ids, "labels": ids}


@pytest.fixture(scope="module")
def trained() -> Transformer:
    """At about 2.7 nats a byte, less than the bytes' frequencies alone can give."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    train(
        model,
        adamw(model, learning_rate=5e-3),
        byte_batches(standard_library_text(), context=48, size=16, seed=0),
        steps=90,
    )
    return model


def fresh(**parts: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocabulary=256, context=48, depth=2, d_model=64, **parts))


def scaled(model: Transformer, factor: float) -> Transformer:
    model = copy.deepcopy(model)
    with torch.no_grad():
        cast(Tensor, model.head.weight).mul_(factor)
    return model


def test_healthy_heads_are_silent(trained: Transformer, batch: dict[str, Tensor]) -> None:
    for model in (fresh(), fresh(head=HeadConfig(tied=True)), fresh(head=HeadConfig(softcap=5.0)), trained):
        assert of_head(ek.inspect(model, [batch])) == {}


def test_after_training_three_times_the_logits_are_overconfident(
    trained: Transformer, batch: dict[str, Tensor]
) -> None:
    assert of_head(ek.inspect(scaled(trained, 3), [batch])) == {"OUT402": "warning"}


@pytest.mark.parametrize("known", [True, False])
def test_an_unembedding_scaled_up_is_drift_whether_the_model_knows_anything_or_not(
    trained: Transformer, batch: dict[str, Tensor], known: bool
) -> None:
    diagnosis = ek.inspect(scaled(trained if known else fresh(), 12), [batch])
    found = of_head(diagnosis)
    assert (
        found["OUT401"] == "warning" and found["OUT403"] == "warning" and set(found) <= {"OUT401", "OUT402", "OUT403"}
    )
    cause = {item.code: item.cause for item in diagnosis.findings}
    assert cause["OUT401"] in (None, "", "NUM609") and cause["OUT403"] == (cause["OUT401"] or "OUT401")


def test_random_weights_are_never_overconfident(batch: dict[str, Tensor]) -> None:
    """A tied head of large embeddings says the last token again, and in code that is right often enough to fool."""
    model = fresh(head=HeadConfig(tied=True))
    with torch.no_grad():
        for factor in (3, 10, 30):
            found = of_head(ek.inspect(scaled_embedding(model, factor), [batch]))
            assert "OUT402" not in found


def scaled_embedding(model: Transformer, factor: float) -> Transformer:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.embedding.weight.mul_(factor)
    return model


def test_random_tokens_are_no_fault_of_the_head(trained: Transformer) -> None:
    ids = torch.randint(256, (16, 48), generator=torch.Generator().manual_seed(0))
    batch, told = {"input_ids": ids, "labels": ids}, DataInfo(source="tokens", kind="random")
    assert of_head(ek.inspect(scaled(trained, 2), [batch], data=told)) == {}
    given = ek.inspect(trained, [batch])
    assert of_head(given) == {} and {"OUT403"} >= {item.code for item in given.findings if item.code in HEADS}


Loss = Callable[[Tensor, Tensor], Tensor]


class Plain(nn.Module):
    """A model that returns logits, as most training scripts have it."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 256))
        self.last = last or nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.body(ids))


def exclusive(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def softmax_first(logits: Tensor, ids: Tensor) -> Tensor:
    return exclusive(logits.softmax(-1), ids)


def logarithms(logits: Tensor, ids: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(-1)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def one_of(ids: Tensor) -> Tensor:
    return F.one_hot(ids[:, 1:], 256).float()


def sigmoids(logits: Tensor, ids: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, :-1], one_of(ids))


def probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    return F.binary_cross_entropy(logits[:, :-1].sigmoid(), one_of(ids))


def several(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.BCEWithLogitsLoss()(logits[:, :-1], (one_of(ids) + one_of(ids.roll(3, 1))).clamp(max=1))


def ten(logits: Tensor, ids: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits[..., :10], F.one_hot(ids % 10, 10).float())


@pytest.mark.parametrize(
    ("model", "loss", "code"),
    [
        (Plain(), exclusive, None),
        (Plain(), logarithms, None),
        (Plain(), softmax_first, "OUT404"),
        (Plain(nn.Softmax(-1)), exclusive, "OUT404"),
        (Plain(nn.LogSoftmax(-1)), exclusive, None),
        (Plain(nn.Sigmoid()), exclusive, None),
        (Plain(), sigmoids, "OUT405"),
        (Plain(), probabilities, "OUT405"),
        (Plain(), several, None),
        (Plain(), ten, None),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_handed_to_the_loss(
    batch: dict[str, Tensor], model: Plain, loss: Loss, code: str | None, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and loss is probabilities:
        pytest.skip("torch has no such loss in bfloat16 on every device")
    found = of_head(ek.inspect(model.to(dtype), [batch["input_ids"]], loss=loss))
    assert found == ({} if code is None else {code: "warning"})


def test_our_own_head_of_sigmoids(batch: dict[str, Tensor]) -> None:
    diagnosis = ek.inspect(fresh(head=HeadConfig(kind="sigmoid")), [batch])
    finding = next(item for item in diagnosis.findings if item.code == "OUT405")
    assert finding.severity == "warning" and finding.change == ek.Change("head.kind", "softmax")


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5", "mamba"])
def test_public_inits_are_no_worse_than_guessing(family: str) -> None:
    model, batch = families.make(family, length=40)
    assert of_head(ek.inspect(model, list(islice([batch] * 4, 4)))) == {}
