"""What swap refuses, before anything is changed; and the way from a finding to a model that no longer has it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenkeel as ek
from evenkeel import Change
from evenkeel.errors import UsageError
from evenkeel.nn import AttentionConfig, FeedForwardConfig, NormConfig
from evenkeel.rules import RULES
from evenkeel.surgery import AXES


def state(model: nn.Module) -> list[Any]:
    return [(name, id(module), sorted(module.__dict__), module.training) for name, module in model.named_modules()]


def own(**choices: Any) -> ek.Transformer:
    return ek.Transformer(ek.TransformerConfig(vocabulary=256, context=64, depth=3, d_model=64, **choices), seed=0)


REFUSED = [
    (
        Change("attention.scal", "sqrt"),
        r"no axis of a change is called 'attention.scal'; did you mean 'attention.scale'",
    ),
    (Change("attention.scale", "sqr"), "did you mean 'sqrt'"),
    (Change("attention.scale", "linear"), "give 'sqrt', 'dim', 'none'"),
    (Change("attention.scale", 0), "finite number above 0"),
    (Change("attention.scale", True), "finite number above 0"),
    (Change("attention.scale", float("nan")), "finite number above 0"),
    (Change("attention.temperature", -1.0), "finite number above 0"),
    (Change("attention.temperature", 1.0), "nothing to change.*temperature of 1 already"),
    (Change("attention.softcap", 0), "or None for no softcap"),
    (Change("attention.softcap", None), "nothing to change"),
    (Change("attention.qk_norm", False), "trained weights"),
    (Change("attention.scale", "sqrt"), "nothing to change"),
    (Change("feedforward.activation", "gellu"), "did you mean 'gelu'"),
    (Change("feedforward.activation", 3), "give a name: identity, "),
    (Change("feedforward.activation", "silu"), "nothing to change"),
    (Change("feedforward.kernel", "fuse"), "did you mean 'fused'"),
    (Change("feedforward.gated", False), "the other form has other matrices"),
    (Change("feedforward.residual", True), "nothing to change: every branch .* has a residual connection already"),
    (Change("attention.residual", 1), "give True"),
    (Change("depth", 4), "cannot be swapped in a live model"),
    (Change("position.kind", "alibi"), "cannot be swapped in a live model: .*PositionConfig.kind="),
    (Change("embedding.scale", "sqrt"), "cannot be swapped in a live model: .*EmbeddingConfig.scale="),
    (Change("head.z_loss", -1), "not negative"),
    (Change("head.z_loss", 0), "nothing to change"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=str)
def test_what_cannot_be_meant_is_refused_and_nothing_changes(change: Change, words: str) -> None:
    model, _ = families.make("llama")
    before = state(model)
    with pytest.raises(UsageError, match=words):
        ek.swap(model, change)
    assert state(model) == before


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_norm_that_is_there_is_not_put_in_twice(attention: str) -> None:
    qwen, _ = families.make("qwen3", attention=attention)
    with pytest.raises(UsageError, match="has a norm of queries and keys already"):
        ek.swap(qwen, Change("attention.qk_norm", True))
    model, _ = families.make("llama", attention=attention)
    with ek.swap(model, Change("attention.qk_norm", True)), pytest.raises(UsageError, match="already"):
        ek.swap(model, Change("attention.qk_norm", True))


def test_a_model_that_does_not_take_the_made_up_input_asks_for_one() -> None:
    class Stubborn(ek.Transformer):
        def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no")

    model = Stubborn(ek.TransformerConfig(depth=1, d_model=16))
    with pytest.raises(UsageError, match=r"did not take the made-up input of input_ids.*RuntimeError: no.*give batch="):
        ek.swap(model, Change("attention.scale", "none"))


def test_a_change_is_a_change() -> None:
    model: Any = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="give one, as Change"):
        ek.swap(model, "gelu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="give batch="):
        ek.swap(model, Change("attention.scale", "none"))


def test_one_place_that_cannot_be_changed_refuses_all() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Two(), Two()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.heads = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x).unsqueeze(1)
            return self.heads(x, x, x)[0] + F.scaled_dot_product_attention(y, y, y).squeeze(1)

    model, x = Mixed().eval(), torch.randn(2, 5, 8)
    before, expected = state(model), model(x)
    with pytest.raises(UsageError, match=r"blocks.0.heads:attention.softmax cannot be changed.*softcap cannot be put"):
        ek.swap(model, Change("attention.softcap", 0.1), batch=x)
    assert state(model) == before
    assert torch.equal(model(x), expected)
    fused = ["blocks.0:attention.softmax", "blocks.1:attention.softmax"]
    with ek.swap(model, Change("attention.softcap", 0.1), batch=x, sites=fused) as swapped:
        assert swapped.sites == tuple(fused)
        assert not torch.equal(model(x), expected)


def test_sites_are_ids_or_paths() -> None:
    model, batch = families.make("llama")
    model.eval()
    with ek.swap(model, Change("attention.scale", "none"), sites="model.layers.1") as swapped:
        assert swapped.sites == ("model.layers.1.self_attn:attention.softmax",)
        diagnosis = ek.inspect(model, [batch], backward=False)
    assert {site.id for site in diagnosis.sites if site.kind == "attention"} >= set(swapped.sites)
    with pytest.raises(UsageError, match=r"no site 'model.layers.7'; did you mean 'model.layers.1'"):
        ek.swap(model, Change("attention.scale", "none"), sites=["model.layers.7"])
    with pytest.raises(UsageError, match=r"no attention in lm_head; there are model.layers.0.self_attn:"):
        ek.swap(model, Change("attention.scale", "none"), sites=["lm_head"])
    with pytest.raises(UsageError, match="sites is empty"):
        ek.swap(model, Change("attention.scale", "none"), sites=[])


def test_activations_outside_of_the_feed_forwards_stay_unless_they_are_named() -> None:
    model, _ = families.make("bert")
    with ek.swap(model, Change("feedforward.activation", "relu")) as swapped:
        assert swapped.sites == tuple(
            f"bert.encoder.layer.{layer}.intermediate.intermediate_act_fn:activation.gelu" for layer in (0, 1)
        )
    head = "cls.predictions.transform.transform_act_fn:activation.gelu"
    with ek.swap(model, Change("feedforward.activation", "relu"), sites=[head]) as swapped:
        assert swapped.sites == (head,)
    mamba, _ = families.make("mamba")
    with pytest.raises(UsageError, match=r"no activation in its feed-forwards; there are backbone.layers.0.mixer:"):
        ek.swap(mamba, Change("feedforward.activation", "relu"))


def test_what_runs_compiled_is_swapped_before_it_is_compiled() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    change = Change("feedforward.activation", "silu")
    with pytest.raises(UsageError, match="swap the model first, then compile it"):
        ek.swap(torch.compile(model, backend="eager"), change, batch=x)  # pyright: ignore
    scripted: Any = torch.jit.trace(nn.ReLU(), x)
    with pytest.raises(UsageError, match="TorchScript"):
        ek.swap(nn.Sequential(scripted), change, batch=x)
    model.compile(backend="eager")
    with pytest.raises(UsageError, match="swap the model first, then compile it"):
        ek.swap(model, change, batch=x)


class InNumpy(torch.autograd.Function):
    """A kernel that no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().clip(0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class InTorch(torch.autograd.Function):
    """A function of torch's with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (InNumpy, "cannot be changed: a fused kernel hides its tensors"),
        (InTorch, "calls relu in an autograd.Function, whose own backward pass would not know"),
    ],
)
def test_a_kernel_with_a_backward_pass_of_its_own_is_named(kernel: Any, words: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(kernel.apply(self.first(x)))

    with pytest.raises(UsageError, match=words):
        ek.swap(Model(), Change("feedforward.activation", "silu"), batch=torch.randn(2, 4))


def test_scores_that_are_a_sum_of_products_have_no_one_scale() -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x)
            return torch.softmax(y @ y.mT / 8**0.5 + y @ x.mT, -1) @ y

    with pytest.raises(UsageError, match="a sum of 2 products"):
        ek.swap(Relative(), Change("attention.scale", "none"), batch=torch.randn(2, 5, 8))


# --- from a finding to a swap ----------------------------------------------------------------------------------------


def test_every_change_that_a_rule_names_is_applied_or_refused_with_a_reason() -> None:
    attention = AttentionConfig(scale="none", residual=False)
    sick = own(attention=attention, feedforward=FeedForwardConfig(activation="sigmoid", gated=False, residual=False))
    refused = {"norm.placement", "head.kind"}
    changes = {rule.change for rule in RULES.values() if rule.change is not None}
    assert {change.axis for change in changes} > refused
    for change in changes:
        if change.axis not in refused:
            with ek.swap(sick, change) as swapped:
                assert swapped.sites
            continue
        before = state(sick)
        with pytest.raises(UsageError, match=rf"{change.axis} cannot be swapped in a live model: .*; build one with"):
            ek.swap(sick, change)
        assert state(sick) == before


def test_every_axis_of_the_configs_is_known() -> None:
    data = ek.TransformerConfig().to_dict()
    parts = {name for name in data if isinstance(data[name], dict)}
    assert len(parts) == 6
    assert {f"{part}.{name}" for part in parts for name in data[part]} < set(AXES)
    with pytest.raises(UsageError, match=r"attention.window cannot.*build one with AttentionConfig\(window=\.\.\.\)"):
        ek.swap(own(), Change("attention.window", 4))


def test_a_model_under_a_swap_is_not_saved_without_it(tmp_path: Path) -> None:
    model, change = own(), Change("feedforward.activation", "gelu")
    ids = tokens()["input_ids"]
    with ek.swap(model, change):
        for save in (model.save, model.save_directory):
            with pytest.raises(UsageError, match=r"blocks\.0\.feedforward has another forward .*config.changed"):
                save(tmp_path / "kept")
        swapped = model(ids).logits
    kept = ek.Transformer(model.config.changed(change))
    kept.load_state_dict(model.state_dict())
    assert not (tmp_path / "kept").exists() and torch.equal(kept(ids).logits, swapped)
    model.save(tmp_path / "kept")


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (8, 48), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def sick_own() -> nn.Module:
    return own(attention=AttentionConfig(heads=2, scale="none"))


def sick_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        **families.CONFIGS["gpt2"], activation_function="sigmoid", bos_token_id=1, eos_token_id=2, use_cache=False
    )
    return GPT2LMHeadModel(config)


def sick_deep() -> nn.Module:
    feedforward = FeedForwardConfig(activation="sigmoid", gated=False, residual=False)
    config = ek.TransformerConfig(depth=6, d_model=64, context=64, feedforward=feedforward)
    return ek.Transformer(replace(config, norm=NormConfig(placement="none")), seed=0)


@pytest.mark.parametrize(("make", "code"), [(sick_own, "ATT304"), (sick_gpt2, "ACT103"), (sick_deep, "GRD501")])
def test_a_sick_model_is_inspected_swapped_and_inspected_again(make: Any, code: str) -> None:
    model = make()
    finding = {item.code: item for item in ek.inspect(model, [tokens()]).findings}[code]
    healthy = copy.deepcopy(model)
    assert finding.change is not None
    with ek.swap(model, finding.change, sites=finding.sites):
        assert code not in {item.code for item in ek.inspect(model, [tokens()]).findings}
    assert code in {item.code for item in ek.inspect(model, [tokens()]).findings}
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), healthy.parameters(), strict=True))


def test_inspecting_sees_the_model_as_it_is_swapped() -> None:
    model, batch = families.make("llama")
    scale, cap = Change("attention.scale", "none"), Change("attention.softcap", 0.01)
    plain = spread(model, batch)
    with ek.swap(model, scale):
        wide = spread(model, batch)
        with ek.swap(model, cap):
            bounded = spread(model, batch)
        with ek.swap(model, Change("feedforward.activation", "relu")):
            ops = {site.op for site in ek.inspect(model, [batch], backward=False).sites if site.kind == "activation"}
    assert wide == pytest.approx(8**0.5 * plain, rel=1e-3)
    assert bounded <= 0.01 < wide
    assert ops == {"relu"}


def spread(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """The largest score of the first layer, as inspect reads it."""
    readings = ek.inspect(model, [batch], backward=False).readings
    return next(max(map(abs, item.values)) for item in readings if item.stat == "max_logit")


def test_a_repr_says_what_was_done() -> None:
    model, _ = families.make("llama")
    swapped = ek.swap(model, Change("feedforward.activation", "gelu"), sites="model.layers.0")
    assert repr(swapped) == (
        "<swapped feedforward.activation = 'gelu' (was silu) at 1 site: model.layers.0.mlp.act_fn:activation.silu>"
    )
    assert "gelu, was silu" in repr(model)
    swapped.restore()
    assert "restored" in repr(swapped)


def test_its_page_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "swap.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```\n(<swapped.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert capsys.readouterr().out == shown
    listed = set(re.findall(r"`([a-z]+\.[a-z_]+)`", page.partition("| axis |")[2].partition("\n\n")[0]))
    for name, axis in AXES.items():
        try:
            axis.check(_SOME.get(name, True))
        except UsageError as error:
            assert name not in listed and "cannot be swapped in a live model" in str(error)
        else:
            assert name in listed


_SOME = {
    "attention.scale": "dim",
    "attention.temperature": 2,
    "attention.softcap": 5,
    "feedforward.activation": "gelu",
    "feedforward.kernel": "fused",
    "head.z_loss": 1e-4,
}
