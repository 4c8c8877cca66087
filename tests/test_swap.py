"""A swapped model computes what a model built with that choice computes, and is itself again afterwards."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

import evenkeel as ek
from evenkeel import Change
from evenkeel.errors import ModelError, UsageError
from evenkeel.nn import AttentionConfig, Cache, FeedForwardConfig, HeadConfig, NormConfig

Result = tuple[Tensor, list[Tensor]]


def hugging_face(family: str, attention: str, **choices: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**families.CONFIGS[family], **choices})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    torch.manual_seed(1)
    for parameter in model.parameters():  # wide enough that scores, caps and activations matter
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(length: int = 9) -> dict[str, Any]:
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def result(model: nn.Module, given: Any = None) -> Result:
    """Loss and logits where there are any, and all gradients."""
    given = given or batch()
    model.zero_grad()
    output = model(**given)
    output.loss.backward()
    parts = [output.loss.reshape(1), *([] if output.logits is None else [output.logits.flatten()])]
    return torch.cat(parts).detach(), [item.grad.clone() for item in model.parameters() if item.grad is not None]


def assert_close(found: Result, expected: Result) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=2e-5, atol=2e-5)
    assert len(found[1]) == len(expected[1])
    largest = max(float(item.abs().max()) for item in expected[1])
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5 * largest)


def differs(first: Result, second: Result) -> bool:
    return not torch.allclose(first[0], second[0], rtol=1e-3, atol=1e-3)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that a swap could leave behind: the modules themselves and what they hold."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return [
        (
            name,
            id(module),
            module.training,
            sorted(module.__dict__),
            [id(child) for child in module._modules.values()],
            [len(getattr(module, item)) for item in hooks],
        )
        for name, module in model.named_modules()
    ]


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


def own(**choices: Any) -> Any:
    config = ek.TransformerConfig(vocabulary=90, context=16, depth=2, d_model=32, **choices)
    return ek.Transformer(config, seed=3)


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


# --- by hand ---------------------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """A function between two maps, called as a model's own code would."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


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


class OneCall(nn.Module):
    """Attention through torch's fused call: grouped heads, and a mask or causality."""

    def __init__(self, dropout: float = 0.0, masked: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.dropout, self.masked = dropout, masked

    def heads(self, x: Tensor) -> list[Tensor]:
        return [layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)]

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[None] > 0 if self.masked else None
        dropout = self.dropout if self.training else 0.0
        options: dict[str, Any] = {
            "attn_mask": mask,
            "is_causal": mask is None,
            "enable_gqa": True,
            "dropout_p": dropout,
        }
        query, key, value = self.heads(x)
        return F.scaled_dot_product_attention(query, key, value, **options)

    def by_definition(self, x: Tensor, scale: float, softcap: float | None, normed: bool) -> Tensor:
        query, key, value = (item.double() for item in self.heads(x))
        if normed:
            query, key = (item / (item.square().mean(-1, keepdim=True) + 1e-6).sqrt() for item in (query, key))
        key, value = (item.repeat_interleave(2, 1) for item in (key, value))
        scores = scale * query @ key.mT
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        size = x.shape[1]
        hidden = (torch.arange(size) == 0).expand(size, size) if self.masked else torch.ones(size, size).triu(1).bool()
        return torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ value


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


# --- as it was -------------------------------------------------------------------------------------------------------

ATTENDING = sorted(families.CONFIGS.keys() - {"mamba", "rwkv"})


@pytest.mark.parametrize("family", ATTENDING)
def test_every_family_attends_and_activates_as_it_is_told_and_is_then_itself_again(family: str) -> None:
    model, given = families.make(family)
    model.eval()
    names, before, expected = list(model.state_dict()), snapshot(model), model(**given).logits
    for change, least in ((Change("attention.temperature", 0.01), 2), (Change("feedforward.activation", "tanh"), 2)):
        with torch.no_grad(), ek.swap(model, change) as swapped:
            assert len(swapped.sites) >= least
            assert not torch.allclose(model(**given).logits, expected, rtol=1e-4, atol=1e-6)
            assert list(model.state_dict()) == names
        assert snapshot(model) == before
    assert torch.equal(model(**given).logits, expected)


EVERY = [
    Change("attention.scale", "none"),
    Change("attention.temperature", 3.0),
    Change("attention.softcap", 0.05),
    Change("attention.qk_norm", True),
    Change("feedforward.activation", "gelu"),
    Change("feedforward.kernel", "fused"),
    Change("head.z_loss", 0.1),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("change", EVERY, ids=str)
def test_afterwards_everything_is_as_it_was(change: Change, attention: str) -> None:
    model = hugging_face("llama", attention).train()
    names, before, expected = list(model.state_dict()), snapshot(model), result(model)
    with ek.swap(model, change):
        assert list(model.state_dict()) == names
        assert not torch.equal(result(model)[0], expected[0]) or change.axis == "feedforward.kernel"
        assert model.training
    assert snapshot(model) == before
    found = result(model)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[1], expected[1], strict=True))


def test_finding_the_places_draws_no_random_number_and_leaves_no_gradient() -> None:
    model, x = ByHand(lambda x: F.relu(x + torch.rand_like(x))), torch.randn(2, 6)
    state = torch.get_rng_state()
    with ek.swap(model, Change("feedforward.activation", "silu"), batch=x):
        assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_exception_inside_takes_the_change_back_and_goes_on() -> None:
    model = hugging_face("llama", "sdpa")
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), ek.swap(model, Change("attention.scale", "none")):
        with pytest.raises(IndexError):  # inside a changed forward
            model(torch.tensor([[10_000]]))
        model.model.layers[0].self_attn.q_proj.register_forward_hook(_interrupt)
        try:
            model(**batch())
        finally:
            model.model.layers[0].self_attn.q_proj._forward_hooks.clear()
    assert snapshot(model) == before
    assert torch.overrides._get_current_function_mode_stack() == []


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_swaps_stack_and_come_off_in_reverse_order() -> None:
    model = hugging_face("llama", "eager")
    before, expected = snapshot(model), result(model)
    built = hugging_face("llama", "eager", hidden_act="gelu")
    for layer in built.model.layers:
        layer.self_attn.scaling = 1 / 16
    first = ek.swap(model, Change("attention.scale", "dim"))
    second = ek.swap(model, Change("feedforward.activation", "gelu"))
    third = ek.swap(model, Change("attention.temperature", 2.0))
    fourth = ek.swap(model, Change("feedforward.kernel", "fused"))
    assert_close(result(model), result(built))
    with pytest.raises(
        UsageError, match=r"lies under swap of feedforward.kernel to 'fused'; restore\(\) that one first"
    ):
        first.restore()
    assert_close(result(model), result(built))
    for swapped in (fourth, third, second, first):
        assert swapped.active
        swapped.restore()
        assert not swapped.active
        swapped.restore()  # nothing more to do
    assert snapshot(model) == before
    assert torch.equal(result(model)[0], expected[0])


def test_what_somebody_else_put_on_top_is_not_thrown_away() -> None:
    model = hugging_face("llama", "sdpa")
    swapped = ek.swap(model, Change("attention.scale", "none"))
    layer = model.model.layers[0].self_attn
    ours = layer.forward
    layer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(UsageError, match="replaced since"):
        swapped.restore()
    layer.forward = ours
    swapped.restore()
    assert "forward" not in layer.__dict__


def test_a_forward_of_somebody_elses_stays_beneath() -> None:
    model = hugging_face("llama", "sdpa")
    layer, called = model.model.layers[0].self_attn, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return type(layer).forward(layer, *args, **kwargs)

    layer.forward = theirs
    with ek.swap(model, Change("attention.scale", "none")):
        called.clear()
        model(**batch())
        assert called == [1]
    assert layer.__dict__["forward"] is theirs


@pytest.mark.parametrize("change", EVERY, ids=str)
def test_copies_have_the_change_for_good(change: Change) -> None:
    model = hugging_face("llama", "eager")
    with ek.swap(model, change):
        expected = result(model)
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for copied in copies:
        assert torch.equal(result(copied)[0], expected[0])
        with torch.no_grad():
            copied.model.layers[0].self_attn.q_proj.weight.zero_()  # the copy's own weights are in use
        assert not torch.equal(result(copied)[0], expected[0])


def test_modes_set_inside_hold_afterwards() -> None:
    model = hugging_face("llama", "sdpa").eval()
    with ek.swap(model, Change("feedforward.activation", "gelu")):
        model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("change", EVERY, ids=str)
def test_under_checkpointing_and_autocast(change: Change) -> None:
    model = hugging_face("llama", "sdpa").train()
    model.config.use_cache = False
    with ek.swap(model, change):
        expected = result(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(result(model)[0][0], expected[0][0], rtol=0.05, atol=0.05)
        for layer in model.model.layers:
            _checkpointed(layer)
        assert_close(result(model), expected)


def _checkpointed(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("change", EVERY[:-1], ids=str)
def test_generating_with_a_cache_writes_what_it_writes_without(change: Change, attention: str) -> None:
    model = hugging_face("llama", attention)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = batch()["input_ids"][:, :4]
    with ek.swap(model, change):
        cached = model.generate(ids, use_cache=True, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    plain = model.generate(ids, use_cache=True, **options)
    assert torch.equal(plain, cached) == (change.axis == "feedforward.kernel")


def test_our_own_model_reads_on_with_a_cache() -> None:
    model, ids = own(), batch()["input_ids"]
    cache = Cache(model.config, batch=2, capacity=16, dtype=torch.float32, device=torch.device("cpu"))
    with ek.swap(model, Change("attention.scale", "none")), torch.no_grad():
        whole = model(ids).logits
        parts = [model(part, cache=cache).logits for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_swapped_model_compiles_whole() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(OneCall(), nn.Flatten(1, 2), ByHandGate()), torch.randn(2, 5, 16)
    with (
        ek.swap(model, Change("attention.scale", 3), batch=x),
        ek.swap(model, Change("feedforward.activation", "tanh"), batch=x),
        ek.swap(model, Change("feedforward.kernel", "fused"), batch=x),
    ):
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
        torch.compiler.reset()


def test_evenkeels_own_functions_change_under_a_compiler() -> None:
    model, ids = own(), batch()["input_ids"]
    plain = model(ids).logits
    with ek.swap(model, Change("attention.scale", "none")):
        expected = model(ids).logits
        torch.testing.assert_close(torch.compile(model, backend="eager")(ids).logits, expected)
        torch.compiler.reset()
    assert not torch.allclose(plain, expected, atol=1e-3)


class ByHandGate(nn.Module):
    """A gate whose activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


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
