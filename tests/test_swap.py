"""A swapped model computes what a model built with that choice computes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
from swap_cases import assert_close, batch, differs, hugging_face, own, result
from torch import Tensor, nn

import evenkeel as ek
from evenkeel import Change
from evenkeel.errors import ModelError, UsageError
from evenkeel.nn import AttentionConfig, FeedForwardConfig, HeadConfig, NormConfig

BUILT = [
    ("llama", "sdpa", Change("feedforward.activation", "gelu"), {"hidden_act": "gelu"}),
    ("gpt2", "sdpa", Change("feedforward.activation", "relu"), {"activation_function": "relu"}),
    ("gpt_neox", "eager", Change("feedforward.activation", "silu"), {"hidden_act": "silu"}),
    ("phi3", "sdpa", Change("feedforward.activation", "gelu_tanh"), {"hidden_act": "gelu_pytorch_tanh"}),
    ("mixtral", "sdpa", Change("feedforward.activation", "tanh"), {"hidden_act": "tanh"}),
    ("gpt2", "sdpa", Change("attention.scale", "none"), {"scale_attn_weights": False}),
    ("gpt2", "eager", Change("attention.scale", "none"), {"scale_attn_weights": False}),
    ("gemma2", "eager", Change("attention.scale", 0.5), {"query_pre_attn_scalar": 4}),
    ("gemma2", "eager", Change("attention.scale", "dim"), {"query_pre_attn_scalar": 64}),
    ("gemma2", "eager", Change("attention.softcap", 2.0), {"attn_logit_softcapping": 2.0}),
    ("gemma2", "eager", Change("attention.softcap", None), {"attn_logit_softcapping": None}),
]


@pytest.mark.parametrize(("family", "attention", "change", "choices"), BUILT, ids=str)
def test_a_swapped_model_is_one_built_with_that_choice(
    family: str, attention: str, change: Change, choices: dict[str, Any]
) -> None:
    model, built = hugging_face(family, attention), hugging_face(family, attention, **choices)
    before = result(model)
    with ek.swap(model, change) as swapped:
        found = result(model)
    assert_close(found, result(built))
    assert differs(found, before)
    assert len(swapped.sites) == 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_qk_norm_is_qwen3s_with_weights_of_one(attention: str) -> None:
    sizes = families.CONFIGS["qwen3"]
    model = hugging_face("llama", attention, head_dim=sizes["head_dim"], rms_norm_eps=1e-6)
    qwen = hugging_face("qwen3", attention, rms_norm_eps=1e-6)
    lacking = qwen.load_state_dict(model.state_dict(), strict=False)
    assert {name.rsplit(".", 2)[1] for name in lacking.missing_keys} == {"q_norm", "k_norm"}
    for name, parameter in qwen.named_parameters():
        if name in lacking.missing_keys:
            nn.init.ones_(parameter).requires_grad_(False)
    before = result(model)
    with ek.swap(model, Change("attention.qk_norm", True)):
        found = result(model)
    expected = result(qwen)
    assert_close(found, expected)
    assert differs(found, before)


SCALING = [("llama", "sdpa", "self_attn"), ("llama", "eager", "self_attn"), ("opt", "sdpa", "self_attn")]
SCALING += [("opt", "eager", "self_attn"), ("falcon", "sdpa", ""), ("bloom", "eager", "self_attention")]


@pytest.mark.parametrize(("family", "attention", "name"), SCALING, ids=str)
def test_scale_and_temperature_are_what_the_model_calls_its_scale(family: str, attention: str, name: str) -> None:
    model = hugging_face(family, attention)
    before = result(model)
    with ek.swap(model, Change("attention.temperature", 2.0)):
        halved = result(model)
    with ek.swap(model, Change("attention.scale", 0.5 / math.sqrt(8))):
        assert_close(result(model), halved)
    attribute = {"falcon": "inv_norm_factor", "bloom": "inv_norm_factor"}.get(family, "scaling")
    layers = [module for module in model.modules() if hasattr(module, attribute)]
    if family == "falcon":  # its fused attention takes no scale; a query twice as short is the same
        with torch.no_grad():
            for module in model.modules():
                if hasattr(module, "query_key_value"):
                    module.query_key_value.weight[: 4 * 8] *= 0.5
        torch.testing.assert_close(halved[0], result(model)[0], rtol=2e-5, atol=2e-5)
    else:
        assert len(layers) == 2
        for layer in layers:
            setattr(layer, attribute, getattr(layer, attribute) / 2)
        assert_close(halved, result(model))
    assert differs(halved, before)


OWN: list[tuple[Change, dict[str, Any]]] = [
    (Change("attention.scale", "none"), {"attention": AttentionConfig(scale="none")}),
    (Change("attention.scale", "dim"), {"attention": AttentionConfig(scale="dim")}),
    (Change("attention.softcap", 0.5), {"attention": AttentionConfig(softcap=0.5)}),
    (Change("attention.qk_norm", True), {"attention": AttentionConfig(qk_norm=True)}),
    (Change("feedforward.activation", "relu2"), {"feedforward": FeedForwardConfig(activation="relu2")}),
    (Change("head.z_loss", 0.1), {"head": HeadConfig(z_loss=0.1)}),
]
DIFFERENT: list[dict[str, Any]] = [
    {},
    {"attention": AttentionConfig(window=4, output_gate=True), "feedforward": FeedForwardConfig(packed=True)},
    {"attention": AttentionConfig(key_heads=2, sinks=True), "feedforward": FeedForwardConfig(gated=False)},
]


@pytest.mark.parametrize("others", DIFFERENT, ids=["plain", "packed", "sinks"])
@pytest.mark.parametrize(("change", "choices"), OWN, ids=str)
def test_our_own_model_is_the_one_of_another_config(
    change: Change, choices: dict[str, Any], others: dict[str, Any]
) -> None:
    part, name = change.axis.split(".")
    both = {
        **others,
        **choices,
        part: replace(others[part], **{name: change.value}) if part in others else choices[part],
    }
    model, built = own(**others), own(**both)
    given = {"input_ids": batch()["input_ids"], "labels": batch()["input_ids"]}
    for name, parameter in built.named_parameters():
        if "query_norm" in name or "key_norm" in name:  # of weights of one, which the swap has none of
            parameter.requires_grad_(False)
    before = result(model, given)
    with ek.swap(model, change):
        assert_close(result(model, given), result(built, given))
        torch.testing.assert_close(model(given["input_ids"]).logits, built(given["input_ids"]).logits)
        assert not torch.equal(result(model, given)[0], before[0])
    after = result(model, given)
    assert torch.equal(after[0], before[0])


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "none"])
@pytest.mark.parametrize(("part", "config"), [("attention", AttentionConfig), ("feedforward", FeedForwardConfig)])
@pytest.mark.parametrize("value", [True, False])
def test_a_residual_connection_comes_and_goes(part: str, config: Any, placement: Any, value: bool) -> None:
    norm = NormConfig(placement=placement)
    model = own(norm=norm, **{part: config(residual=not value)})
    built = own(norm=norm, **{part: config(residual=value)})
    given = {"input_ids": batch()["input_ids"], "labels": batch()["input_ids"]}
    before = result(model, given)
    with ek.swap(model, Change(f"{part}.residual", value)):
        found = result(model, given)
        assert_close(found, result(built, given))
    assert differs(found, before)
    assert torch.equal(result(model, given)[0], before[0])


def test_a_branch_that_runs_by_itself_has_no_stream_to_add() -> None:
    model, x = own(feedforward=FeedForwardConfig(residual=False)), torch.randn(1, 3, 32)
    with ek.swap(model, Change("feedforward.residual", True)):
        model(batch()["input_ids"])
        with pytest.raises(ModelError, match="without the norm in front of it"):
            model.blocks[0].feedforward(x)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("phi", "may be its block's stream"),  # attention and feed-forward side by side
        ("bloom", "together with others"),  # the stream is handed to the branch, which adds it
        ("opt", "does not call it as one module"),  # a block that calls the maps itself
    ],
)
def test_a_branch_that_is_no_module_of_its_block_is_refused(family: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ek.swap(hugging_face(family, "eager"), Change("feedforward.residual", False))


def test_gpt2_without_residual_connections_is_its_parts_in_a_row() -> None:
    model = hugging_face("gpt2", "eager")
    ids, hidden = batch()["input_ids"], []
    for layer in model.transformer.h:
        layer.register_forward_hook(lambda module, args, output: hidden.append((args[0], output)))
    with (
        torch.no_grad(),
        ek.swap(model, Change("attention.residual", False)),
        ek.swap(model, Change("feedforward.residual", False)),
    ):
        hidden.clear()
        model(ids, use_cache=False)
    for layer, (x, output) in zip(model.transformer.h, hidden, strict=True):
        size = x.shape[1]
        mask = torch.full((size, size), -torch.inf).triu(1)[None, None]
        x = layer.mlp(layer.ln_2(layer.attn(layer.ln_1(x), attention_mask=mask)[0]))
        torch.testing.assert_close(output[0] if isinstance(output, tuple) else output, x)


def test_z_loss_is_the_weighted_mean_square_of_log_z() -> None:
    model, given = hugging_face("llama", "sdpa"), batch()
    plain = model(**given)
    kept = given["labels"][:, 1:] != -100
    log_z = plain.logits[:, :-1].double().logsumexp(-1)[kept]
    with ek.swap(model, Change("head.z_loss", 1e-2)):
        found = model(**given)
        assert model(given["input_ids"]).loss is None  # no labels, no loss: nothing to change
    torch.testing.assert_close(found.loss.double(), plain.loss.double() + 1e-2 * log_z.square().mean())
    assert torch.equal(found.logits, plain.logits)


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("phi3", "eager"), ("mixtral", "sdpa")])
def test_the_fused_kernel_changes_no_number_and_saves_memory(family: str, attention: str) -> None:
    model = hugging_face(family, attention)
    expected, most = result(model), saved(model)
    with ek.swap(model, Change("feedforward.kernel", "fused")):
        assert_close(result(model), expected)
        assert saved(model) < most
        diagnosis = ek.inspect(model, [batch()], backward=False)
    gates = [site for site in diagnosis.sites if site.kind == "gate"]
    assert gates and all(site.status == "measured" for site in gates)


def saved(model: nn.Module) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda item: kept.setdefault(item.data_ptr(), item), lambda x: x):
        model(**batch())
    return sum(item.untyped_storage().nbytes() for item in kept.values())
