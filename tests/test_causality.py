"""Whether inspect finds a model that sees the future, names the block, and asks only models that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis
from evenkeel.schema import Finding

Batch = dict[str, Tensor]


def leaks(diagnosis: Diagnosis) -> dict[str, float]:
    return {item.site.rpartition(":")[0]: item.values[0] for item in diagnosis.readings if item.stat == "future_leak"}


def future(diagnosis: Diagnosis) -> Finding | None:
    return next((finding for finding in diagnosis.findings if finding.code == "OUT406"), None)


def tokens(batch: int = 4, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(3, 100, (batch, length), generator=torch.Generator().manual_seed(seed))


def blocks(model: nn.Module) -> nn.ModuleList:
    return next(item for item in model.modules() if isinstance(item, nn.ModuleList))


def unmask(block: nn.Module) -> None:
    """Every attention mask that the block is given hides nothing."""

    def forget(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def bare(item: Any) -> Any:
            return torch.zeros_like(item) if isinstance(item, Tensor) and item.dim() == 4 else item

        return tuple(map(bare, given)), {name: bare(item) for name, item in named.items()}

    block.register_forward_pre_hook(forget, with_kwargs=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_without_its_mask_is_named(family: str, dtype: torch.dtype) -> None:
    model, _ = families.make(family, attention="eager")
    model = model.to(dtype)
    batch = {"input_ids": (ids := tokens()), "labels": ids}
    healthy = ek.inspect(model, [batch])
    assert max(leaks(healthy).values()) <= 1e-3 and future(healthy) is None
    unmask(blocks(model)[1])
    found = future(sick := ek.inspect(model, [batch]))
    path = next(name for name, module in model.named_modules() if module is blocks(model)[1])
    assert found is not None and found.severity == "error" and found.sites[0] == f"{path}:residual.block"
    assert path in found.message and sorted(leaks(sick).values())[0] == 0


class Mixer(nn.Module):
    """Causal attention by hand, with what a test does to its scores."""

    def __init__(self, hide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16)}) for _ in "ab")
        self.head = nn.Linear(16, 100)
        self.hide = hide

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            inputs, output = block.children()
            q, k, v = inputs(x).chunk(3, -1)
            x = x + F.gelu(output(torch.softmax(self.hide(q @ k.mT), -1) @ v))
        return self.head(x)


def hidden(scores: Tensor, ahead: int) -> Tensor:
    length = scores.shape[-1]
    return scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(ahead), -torch.inf)


def next_tokens(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, 100), ids[:, 1:].reshape(-1))


@pytest.mark.parametrize(("ahead", "sees"), [(0, False), (1, True)])
def test_a_mask_that_is_off_by_one(ahead: int, sees: bool) -> None:
    torch.manual_seed(0)
    diagnosis = ek.inspect(Mixer(lambda scores: hidden(scores, ahead)), [tokens()], loss=next_tokens)
    assert (future(diagnosis) is not None) == sees
    assert leaks(diagnosis)["head"] > 0.01 if sees else leaks(diagnosis)["head"] == 0


def test_noise_in_an_untouched_sequence_is_no_leak() -> None:
    """Rounding that depends on the whole batch, as experts' or dynamic quantisation's does, moves both sequences."""

    class Coarse(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            step = input.abs().mean() / 50  # depends on every token of the batch
            return super().forward((input / step).round() * step)

    torch.manual_seed(0)
    model = Mixer(lambda scores: hidden(scores, 0))
    model.head = Coarse(16, 100)
    diagnosis = ek.inspect(model, [tokens()], loss=next_tokens)
    noise = next(item.values[0] for item in diagnosis.readings if item.stat == "probe_noise" and "head" in item.site)
    assert leaks(diagnosis)["head"] > 1e-3 and noise > 1e-3 and future(diagnosis) is None


@pytest.mark.parametrize("targets", ["its own", "others", "of one token"])
def test_a_model_that_may_see_everything_is_not_asked(targets: str) -> None:
    ids = torch.full((4, 24), 7) if targets == "of one token" else tokens()
    wanted = {"its own": ids, "others": tokens(seed=1), "of one token": ids}[targets]
    model = Mixer(lambda scores: scores)

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(logits.reshape(-1, 100), wanted[: len(logits)].reshape(-1))

    diagnosis = ek.inspect(model, [ids], loss=loss)
    assert not leaks(diagnosis) and future(diagnosis) is None


def test_a_prefix_that_is_seen_whole_and_not_judged_is_no_leak() -> None:
    ids, prefix = tokens(), 8

    def hide(scores: Tensor) -> Tensor:
        shown = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        shown[:, :prefix] = True
        return scores.masked_fill(~shown, -torch.inf)

    def loss(logits: Tensor, given: Tensor) -> Tensor:
        return next_tokens(logits[:, prefix - 1 :], given[:, prefix - 1 :])

    def ignoring(logits: Tensor, given: Tensor) -> Tensor:
        targets = given.clone()
        targets[:, : prefix + 1] = -100
        return F.cross_entropy(logits[:, :-1].reshape(-1, 100), targets[:, 1:].reshape(-1))

    assert not leaks(ek.inspect(Mixer(hide), [ids], loss=loss))  # rows that cannot be told apart are not asked
    asked = ek.inspect(Mixer(hide), [ids], loss=ignoring)
    assert leaks(asked)["head"] == 0 and future(asked) is None


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_masked_and_encoded_inputs_are_not_asked(family: str) -> None:
    model, batch = families.make(family, length=24)
    assert not leaks(ek.inspect(model, [batch]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("judged", [True, False])
def test_padding_on_the_left_is_no_leak(attention: str, judged: bool) -> None:
    """What a padded position says is nobody's business, whether its loss is counted or not."""
    model, _ = families.make("llama", attention=attention)
    ids = tokens()
    seen = torch.ones_like(ids)
    seen[::2, :6] = 0
    labels = ids if judged else torch.where(seen.bool(), ids, -100)
    diagnosis = ek.inspect(model, [{"input_ids": ids, "labels": labels, "attention_mask": seen}])
    assert leaks(diagnosis) and future(diagnosis) is None
    assert not [finding for finding in diagnosis.findings if finding.code == "ATT306"]


def test_the_model_is_left_as_it_was_and_a_single_sequence_will_do() -> None:
    model, _ = families.make("llama")
    model.train()
    ids, state, weights = tokens(batch=1), torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    diagnosis = ek.inspect(model, [{"input_ids": ids, "labels": ids}])
    assert leaks(diagnosis) and torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weights[name], item) for name, item in model.state_dict().items())
    assert torch.equal(ids, tokens(batch=1))


def test_a_model_that_runs_on_its_own_batch_size_only_is_told() -> None:
    class Rigid(Mixer):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids.view(4, 24))

    diagnosis = ek.inspect(Rigid(lambda scores: hidden(scores, 0)), [tokens()], loss=next_tokens)
    assert not leaks(diagnosis) and any("could not be asked" in note for note in diagnosis.notes)
