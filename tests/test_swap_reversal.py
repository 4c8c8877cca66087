"""A swapped model is itself again afterwards, whatever happened in between."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from swap_cases import ByHand, ByHandGate, OneCall, assert_close, batch, hugging_face, own, result, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

import evenkeel as ek
from evenkeel import Change
from evenkeel.errors import UsageError
from evenkeel.nn import Cache

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
