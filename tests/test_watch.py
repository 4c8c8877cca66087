"""Watching changes nothing, misses nothing, and leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import families
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Adafactor
from watch_cases import hooks_on, loss_of, run_steps, small, values

import evenkeel as ek
from evenkeel.errors import RecordError, UsageError
from evenkeel.watching import SpikeDetector


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_bit_for_bit(training: bool, reentrant: bool | None) -> None:
    bare, ids = small(reentrant=reentrant)
    watched = copy.deepcopy(bare)
    keys = list(watched.state_dict())
    for model in (bare, watched):
        model.train(training)
    expected = run_steps(bare, ids, None)
    with ek.watch(watched, every=1) as watch:
        found = run_steps(watched, ids, watch)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert list(watched.state_dict()) == keys and watched.training is training
    assert hooks_on(watched) == 0 and not torch._C._is_torch_function_mode_enabled()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "mixtral", "bloom", "mamba"])
def test_public_models_run_bit_for_bit_the_same(family: str) -> None:
    model, batch = families.make(family)
    twin = copy.deepcopy(model)
    results = []
    for item, watched in ((model, False), (twin, True)):
        watch = ek.watch(item, every=1)
        torch.manual_seed(3)
        if watched:
            watch.begin_step()
        output = item(**batch)
        output.loss.backward()
        if watched:
            watch.end_step()
        gradients = [parameter.grad for parameter in item.parameters() if parameter.grad is not None]
        results.append([output.loss, output.logits, *gradients, torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointing_is_measured_once_and_its_gradients_are_seen() -> None:
    plain, ids = small()
    diagnoses = []
    for reentrant in (None, False, True):
        model, _ = small(reentrant=reentrant)
        model.eval()  # no dropout, so that all three compute the same
        model.load_state_dict(plain.state_dict())
        watch = ek.watch(model, every=1)
        run_steps(model, ids, watch, steps=1)
        diagnoses.append(watch.diagnose())
    for stat, phase in (
        ("entropy", "forward"),
        ("residual_rms", "forward"),
        ("gradient_rms", "backward"),
        ("slope_rms", "forward"),
    ):
        expected, *others = (values(item.readings, stat, phase=phase) for item in diagnoses)
        assert expected
        for found in others:
            assert found.keys() == expected.keys()
            for key in expected:
                np.testing.assert_allclose(found[key], expected[key], rtol=1e-5)


def test_an_unmeasured_step_runs_no_hook_and_no_mode() -> None:
    model, ids = small()
    watch = ek.watch(model, every=3)
    counts = []
    for _ in range(6):
        with watch.step():
            counts.append((hooks_on(model), torch._C._is_torch_function_mode_enabled()))
            loss_of(model, ids).backward()
    assert [item[1] for item in counts] == [True, False, False] * 2
    assert [item[0] > 0 for item in counts] == [True, False, False] * 2
    assert watch.record.steps() == (0, 3)


def test_an_exception_leaves_nothing_behind_and_the_next_step_works() -> None:
    model, ids = small()
    watch = ek.watch(model, every=1)

    def fail(*_: Any) -> None:
        raise KeyError("in the middle")

    handle = model.block(1).register_forward_pre_hook(fail)
    with pytest.raises(KeyError), watch.step():
        model(ids)
    handle.remove()
    assert hooks_on(model) == 0 and not torch._C._is_torch_function_mode_enabled()
    with watch.step():
        loss_of(model, ids).backward()
    assert watch.record.steps() == (1,)


def test_gradient_accumulation_equals_one_batch() -> None:
    model, _ = small()
    model.eval()
    ids = torch.randint(0, 50, (6, 8))
    readings = []
    for parts in (1, 3):
        watch = ek.watch(model, every=1)
        model.zero_grad()
        with watch.step():
            for part in ids.chunk(parts):
                (loss_of(model, part) / parts).backward()
        readings.append(watch.record.readings())
    whole, pieces = ({(item.site, item.stat, item.phase): item for item in found} for found in readings)
    assert whole.keys() == pieces.keys()
    for key, expected in whole.items():
        np.testing.assert_allclose(pieces[key].values, expected.values, rtol=2e-5, atol=1e-7, err_msg=str(key))


def test_gradients_are_read_before_clipping() -> None:
    model, ids = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = ek.watch(model, optimizer=optimizer, every=1)
    with watch.step():
        loss_of(model, ids).backward()
        expected = {
            name: item.grad.double().square().mean().sqrt().item()
            for name, item in model.named_parameters()
            if item.grad is not None
        }
        weights = {name: item.detach().clone() for name, item in model.named_parameters()}
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    readings = watch.record.readings()
    found = values(readings, "gradient_rms", "parameter")
    ratios = values(readings, "update_ratio", "parameter")
    assert len(found) == len(expected) == len(ratios)
    for name, parameter in model.named_parameters():
        key = (f"{name}:parameter.parameter", 0)
        np.testing.assert_allclose(found[key][0], expected[name], rtol=1e-5)
        moved = (parameter.detach() - weights[name]).norm() / weights[name].norm()
        np.testing.assert_allclose(ratios[key][0], moved.item(), rtol=1e-4, atol=1e-9)


def test_frozen_parameters_are_no_sites() -> None:
    model, ids = small()
    model.embed.requires_grad_(False)
    watch = ek.watch(model, every=1)
    with watch.step():
        loss_of(model, ids).backward()
    paths = {site.path for site in watch.record.sites() if site.kind == "parameter"}
    assert "head.weight" in paths and "embed.weight" not in paths


def test_nested_watches_and_two_models() -> None:
    first, ids = small(0)
    second, _ = small(1)
    outer, inner, other = ek.watch(first, every=1), ek.watch(first.layers[0], every=1), ek.watch(second, every=1)
    alone = ek.watch(first, every=1)
    for item in (first, second):
        item.eval()
    with alone.step():
        loss_of(first, ids).backward()
    first.zero_grad()
    with outer.step(), other.step(), inner.step():
        loss_of(first, ids).backward()
        loss_of(second, ids).backward()
    for found in (outer, other):
        assert {site.id for site in found.record.sites()} == {site.id for site in alone.record.sites()}
    expected, nested = (values(item.record.readings(), "entropy") for item in (alone, outer))
    assert expected == nested
    assert (
        values(inner.record.readings(), "entropy", ":attention")[(":attention.softmax", 0)]
        == expected[("layers.0:attention.softmax", 0)]
    )
    assert values(other.record.readings(), "entropy") != expected


def test_autocast_measures_what_the_op_would_compute() -> None:
    model, ids = small()
    model.eval()
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output)

    handle = model.block(0).qkv.register_forward_hook(keep)
    watch = ek.watch(model, every=1)
    with watch.step(), torch.autocast("cpu", torch.bfloat16):
        loss_of(model, ids).backward()
    handle.remove()
    assert seen[0].dtype == torch.bfloat16
    q, k, _ = seen[0].detach().double().unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    p = scores.softmax(-1)
    entropy = -torch.where(p > 0, p * p.log(), 0).sum(-1).mean((0, 2))
    found = values(watch.record.readings(), "entropy", "layers.0:attention")[("layers.0:attention.softmax", 0)]
    np.testing.assert_allclose(found, entropy.numpy(), rtol=1e-4)


def test_a_compiled_model_is_measured_and_not_recompiled() -> None:
    model, ids = small()
    model.eval()
    compiled = cast(nn.Module, torch.compile(model, backend="eager"))
    watch = ek.watch(compiled, every=3)
    torch._dynamo.utils.counters.clear()
    losses = []
    for _ in range(6):
        with watch.step():
            losses.append(loss_of(compiled, ids).item())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert watch.record.steps() == (0, 3)
    assert {site.path for site in watch.record.sites() if site.kind == "attention"} == {"layers.0", "layers.1"}
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_adapters_and_frozen_base_weights() -> None:
    peft = pytest.importorskip("peft")
    model, batch = families.make("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    watch = ek.watch(adapted, every=1)
    with watch.step():
        adapted(**batch).loss.backward()
    sites = watch.record.sites()
    kinds = {kind: sum(site.kind == kind for site in sites) for kind in ("attention", "activation", "gate", "head")}
    assert kinds == {"attention": 2, "activation": 2, "gate": 2, "head": 1}
    assert all("lora_" in site.path for site in sites if site.kind == "parameter")
    codes = {finding.code for finding in watch.diagnose().findings if finding.severity != "info"}
    assert not {code for code in codes if code.startswith("GRD")}


def test_a_jump_of_the_loss_is_kept_and_the_next_step_is_measured() -> None:
    model, ids = small()
    watch = ek.watch(model, every=1000)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        with watch.step():
            model(ids)
            noise = 0.01 * torch.randn((), generator=generator)
            watch.log(
                loss=(torch.tensor(9.0) if step == 30 else 3.0 + noise), gradient_norm=1.0, batch={"ids": ids + step}
            )
    assert [site.path for site in watch.record.sites() if site.kind == "run"] == [""]
    jumps = values(watch.record.readings(), "loss_jump")
    assert list(jumps) == [(":run.training", 30)]
    assert jumps[(":run.training", 30)][0] > 100
    entries = {entry.step: entry for entry in watch.record.log_entries()}
    watch.record.flush()
    entries = {entry.step: entry for entry in watch.record.log_entries()}
    assert len(entries) == 40 and len({entry.batch for entry in entries.values()}) == 40
    assert [step for step, entry in entries.items() if entry.measured] == [0, 31]
    assert entries[30].loss == 9.0 and entries[30].jump is not None


def test_spikes_are_told_from_noise_and_from_falling_losses() -> None:
    rng = np.random.default_rng(0)
    detector = SpikeDetector()
    falling = 3 * np.exp(-np.arange(2000) / 300) + 2
    assert all(detector.jump(loss) is None for loss in falling + 0.05 * rng.standard_normal(2000))
    assert detector.jump(2.6) is not None
    assert detector.jump(float("nan")) == float("inf")


def test_an_optimizer_that_chooses_its_own_rate_is_watched() -> None:
    model, ids = small()
    optimizer = Adafactor(model.parameters(), lr=None, relative_step=True)
    with ek.watch(model, optimizer=optimizer, every=1) as watch:
        with watch.step():
            loss_of(model, ids).backward()
            optimizer.step()
        stats = {item.stat for item in watch.diagnose().readings if item.phase == "update"}
    assert {"update_ratio", "in_optimizer"} <= stats and "learning_rate" not in stats


def test_a_wrapped_optimizer_is_seen_and_what_is_none_is_refused() -> None:
    model, ids = small()

    class Wrapped:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    wrapped: Any = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    with ek.watch(model, optimizer=wrapped, every=1) as watch:
        with watch.step():
            loss_of(model, ids).backward()
            wrapped.optimizer.step()
        assert "update_ratio" in {item.stat for item in watch.diagnose().readings}
    for wrong in (3, [3]):
        given: Any = wrong
        with pytest.raises(UsageError, match=r"torch\.optim\.Optimizer"):
            ek.watch(model, optimizer=given)


def test_a_record_is_continued_for_the_same_model_only(tmp_path: Path) -> None:
    model, ids = small()
    for _ in range(2):
        with ek.watch(model, every=2, record=tmp_path / "run.sqlite") as watch:
            for _ in range(3):
                with watch.step():
                    watch.log(loss=loss_of(model, ids))
    assert ek.Record.open(tmp_path / "run.sqlite").steps() == (0, 2, 4)
    other = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(RecordError, match="Small"):
        ek.watch(other, record=tmp_path / "run.sqlite")


@pytest.mark.parametrize(
    "wrong", [lambda watch: watch.end_step(), lambda watch: (watch.begin_step(), watch.begin_step())]
)
def test_steps_in_the_wrong_order_are_refused(wrong: Callable[[ek.Watch], Any]) -> None:
    model, _ = small()
    with ek.watch(model) as watch, pytest.raises(UsageError):
        wrong(watch)
