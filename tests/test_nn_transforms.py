"""A transformer under what torch does to modules: compilers, copies, dtypes, replicas, checkpoints, fake tensors."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from nn_cases import SMALL, VARIANTS, stirred, token_rows
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from evenkeel.nn import Transformer, TransformerConfig
from evenkeel.nn.attention import Surroundings

SOME = ["rotary", "alibi", "relative window", "learned", "many", "sigmoid attention", "sigmoid head", "post-norm"]
IDS = token_rows(2, 10)


def model_of(config: TransformerConfig) -> Transformer:
    return stirred(Transformer(config))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


def test_it_compiles_in_one_graph() -> None:
    model = model_of(replace(VARIANTS["many"], depth=1))
    loss = model(IDS, IDS).loss
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    again = compiled(IDS, IDS).loss
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    for own, other in zip(gradients(model, again).values(), gradients(model, loss).values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", SOME)
def test_copies_are_the_same_model_and_apart(name: str) -> None:
    model = model_of(VARIANTS[name])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = model(IDS).logits
    fresh = Transformer(VARIANTS[name], seed=9)
    fresh.load_state_dict(model.state_dict())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False), fresh]
    for other in copies:
        assert other.config == model.config
        assert torch.equal(other(IDS).logits, expected)
        assert torch.equal(other.generate(IDS[:, :3], max_new_tokens=4), model.generate(IDS[:, :3], max_new_tokens=4))
        other.embedding.weight.data.zero_()
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("name", SOME)
def test_it_runs_in_its_weights_dtype(name: str) -> None:
    exact = model_of(VARIANTS[name]).double()
    expected = exact(IDS).logits.detach()
    for dtype, tolerance in ((torch.float64, 0.0), (torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        model = model_of(VARIANTS[name]).to(dtype)
        logits = model(IDS).logits
        assert logits.dtype == dtype
        bound = tolerance * float(expected.abs().max())
        torch.testing.assert_close(logits.double(), expected, rtol=0, atol=bound)
        loss = model(IDS, IDS).loss
        torch.testing.assert_close(loss.double(), exact(IDS, IDS).loss, rtol=max(tolerance, 1e-12), atol=0)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(model, loss).values())


@pytest.mark.parametrize("name", SOME)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = model_of(VARIANTS[name])
    slopes = gradients(model, model(IDS, IDS).loss)
    assert all(bool(gradient.abs().sum() > 0) for gradient in slopes.values()), slopes


@pytest.mark.parametrize("name", SOME)
def test_replicas_run_at_once(name: str) -> None:
    models: list[Any] = [stirred(Transformer(VARIANTS[name]), seed=seed).double() for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def called(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *given: Tensor) -> Any:
        return torch.func.functional_call(skeleton, (parameters, buffers), given)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return called(parameters, buffers, IDS, IDS).loss

    def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return called(parameters, buffers, IDS).logits

    logits = torch.func.vmap(logits_of)(parameters, buffers)
    differentiated: Any = torch.func.grad_and_value(loss)
    slopes, losses = torch.func.vmap(differentiated)(parameters, buffers)
    for place, model in enumerate(models):
        torch.testing.assert_close(logits[place], model(IDS).logits, rtol=1e-9, atol=1e-9)
        alone = model(IDS, IDS).loss
        torch.testing.assert_close(losses[place], alone, rtol=1e-9, atol=1e-9)
        for own, gradient in gradients(model, alone).items():
            torch.testing.assert_close(slopes[own][place], gradient, rtol=1e-7, atol=1e-9)


class Checkpointed(nn.Module):
    """A block that is computed again on the way back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, surroundings: Surroundings) -> Any:
        return checkpoint(self.block, x, surroundings, use_reentrant=False)


@pytest.mark.parametrize("name", SOME)
def test_blocks_may_be_checkpointed(name: str) -> None:
    model = model_of(VARIANTS[name])
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    loss = model(IDS, IDS, attention_mask=mask).loss
    expected = gradients(model, loss)
    model.blocks = nn.ModuleList(Checkpointed(block) for block in model.blocks)
    again = model(IDS, IDS, attention_mask=mask).loss
    torch.testing.assert_close(again, loss)
    for own, gradient in gradients(model, again).items():
        torch.testing.assert_close(gradient, expected[own.replace(".block.", ".")])


@pytest.mark.parametrize("name", SOME)
def test_without_data_there_are_shapes(name: str) -> None:
    with FakeTensorMode():
        model = Transformer(VARIANTS[name])
        ids = torch.zeros(2, 10, dtype=torch.long)
        logits, loss = model(ids).logits, model(ids, ids).loss
    assert logits.shape == (2, 10, 61) and loss.shape == ()
    with torch.device("meta"):
        model = Transformer(VARIANTS[name])
        logits = model(torch.zeros(2, 10, dtype=torch.long)).logits
    assert logits.is_meta and logits.shape == (2, 10, 61)


def test_it_is_exported() -> None:
    model = model_of(SMALL)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids).logits

    exported = torch.export.export(Logits(), (IDS,), strict=False)
    torch.testing.assert_close(exported.module()(IDS), model(IDS).logits, rtol=1e-4, atol=1e-4)
