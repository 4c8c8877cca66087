"""Faults: where they sit and nowhere else, the same for the same draws, found by the codes that they name."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fault_cases import HUGGING_FACE, PATIENTS, changed, patient, rows, states, stream, trained
from torch import Tensor

import evenkeel as ek
from evenkeel.errors import NotApplicable
from evenkeel.facts import FACTS
from evenkeel.faults import FAULTS, Injury, Patient, Recipe, run
from evenkeel.faults._places import Anatomy
from evenkeel.rules import RULES
from evenkeel.surgery import AXES, swap
from evenkeel.surgery.activating import is_below
from evenkeel.training import adamw, byte_batches, train

INJECTED = [name for name, fault in FAULTS.items() if fault.inject is not None and fault.train is None]
TRAINED = [name for name, fault in FAULTS.items() if fault.train is not None]
LEARNED = ("overconfident",)
"""Faults of models that have learned something."""

CURED = [name for name in INJECTED if FAULTS[name].remedy is not None]

OURS = ("ours", "ours, QK-norm, packed", "ours as GPT-2")
FEW = (*OURS, "gpt2", "llama")
ONLY = {"qk_norm_gain": "qwen3", "router_collapsed": "mixtral"}
"""Faults for which none of the few Hugging Face models has a place, and one that has."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def injured(name: str, healthy: Patient, seed: int = 0) -> Injury:
    inject = FAULTS[name].inject
    assert inject is not None
    return inject(healthy, generator(seed))


def applies(name: str, where: str) -> Injury | None:
    healthy = trained() if where == "trained" else patient(where)
    before = states(healthy.model)
    try:
        return injured(name, healthy)
    except NotApplicable as error:
        assert str(error).strip() and "\n" not in str(error)
        assert not changed(before, states(healthy.model)), f"{name} on {where}: {error}, and yet it did something"
        return None


def cases() -> list[tuple[str, str]]:
    found = []
    for name in INJECTED:
        if name in LEARNED:
            found.append((name, "trained"))
            continue
        found += [(name, where) for where in (*FEW, *([ONLY[name]] if name in ONLY else []))]
    return found


@pytest.mark.parametrize(("name", "where"), cases())
def test_a_fault_is_where_it_says_and_is_found_there(name: str, where: str) -> None:
    healthy = trained() if where == "trained" else patient(where)
    before = states(healthy.model)
    try:
        injury = injured(name, healthy)
    except NotApplicable:
        assert not changed(before, states(healthy.model))
        return
    moved = changed(before, states(healthy.model))
    if injury.places:
        assert all(any(is_below(path, place) for place in injury.places) for path in moved)
        assert all(any(is_below(path, place) for path in moved) for place in injury.places)
    else:
        assert moved or injury.patient.batches is not healthy.batches

    diagnosis = ek.inspect(injury.patient.model, injury.patient.batches, loss=injury.patient.loss)
    codes = {finding.code for finding in diagnosis.findings}
    assert codes & set(FAULTS[name].codes), f"{name} on {where} shows {sorted(codes)}"


@pytest.mark.parametrize("name", INJECTED)
def test_every_fault_applies_to_one_of_ours_and_one_of_hugging_face(name: str) -> None:
    if name in LEARNED:
        assert applies(name, "trained") is not None
        return
    assert name == "router_collapsed" or any(applies(name, where) is not None for where in OURS)
    assert any(applies(name, where) is not None for where in HUGGING_FACE)


@pytest.mark.parametrize("name", INJECTED)
def test_the_same_draws_do_the_same(name: str) -> None:
    wheres = ["trained"] if name in LEARNED else [*OURS, *ONLY.values()]
    where = next(where for where in wheres if applies(name, where) is not None)
    first, second = (injured(name, trained() if where == "trained" else patient(where), seed=3) for _ in range(2))
    assert first.places == second.places
    both = zip(first.patient.model.parameters(), second.patient.model.parameters(), strict=True)
    assert all(torch.equal(one, two) or one.isnan().any() for one, two in both)
    for one, two in zip(first.patient.batches, second.patient.batches, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    injured(name, trained() if where == "trained" else patient(where))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FAULTS)
def test_an_entry_is_complete(name: str) -> None:
    fault = FAULTS[name]
    assert fault.name == name
    assert fault.story.endswith(".") and "\n" not in fault.story and len(fault.story) <= 120
    assert fault.source and fault.codes and (fault.inject or fault.train)
    assert not set(fault.codes) & set(fault.may)
    unknown = [code for code in (*fault.codes, *fault.may) if code not in RULES]
    assert not unknown
    if fault.remedy is not None:
        assert fault.remedy.axis in AXES


@pytest.mark.parametrize("name", [name for name in INJECTED if name not in LEARNED])
def test_some_of_these_models_has_a_place_for_it(name: str) -> None:
    where = (*FEW, *([ONLY[name]] if name in ONLY else []))
    assert any(applies(name, model) is not None for model in where)


@pytest.mark.parametrize("name", CURED)
def test_a_finding_names_the_remedy_of_its_fault(name: str) -> None:
    fault = FAULTS[name]
    for injury in filter(None, (applies(name, where) for where in (*OURS, "gpt2"))):
        found = ek.inspect(injury.patient.model, injury.patient.batches).findings
        assert fault.remedy in [finding.change for finding in found if finding.code in fault.codes]


@pytest.mark.parametrize("name", CURED)
def test_a_remedy_clears_its_fault(name: str) -> None:
    fault = FAULTS[name]
    remedy = fault.remedy
    assert remedy is not None
    for where in (*OURS, "gpt2"):
        injury = applies(name, where)
        if injury is None:
            continue
        swap(injury.patient.model, remedy, batch=injury.patient.batches[0])
        diagnosis = ek.inspect(injury.patient.model, injury.patient.batches)
        left = {finding.code for finding in diagnosis.findings if finding.severity != "info"}
        assert not left & set(fault.codes), f"{where}: {left}"
        return
    pytest.fail("it applies to none")


class TestHonesty:
    @pytest.mark.parametrize(
        ("name", "where", "reason"),
        [
            ("sigmoid_stack", "llama", "gate"),
            ("gate_closed", "gpt2", "no gates"),
            ("qk_norm_gain", "gpt2", "no norm"),
            ("qk_inflated", "qwen3", "pass a norm"),
            ("qk_inflated", "gemma2", "softcap"),
            ("sees_future", "bert", "both directions"),
            ("router_collapsed", "ours", "no router"),
            ("overconfident", "ours", "not trained"),
            ("stream_growing", "bert", "too few"),
            ("scores_unscaled", "t5", "channels"),
            ("attention_residual_removed", "falcon", "its block's stream or not"),
        ],
    )
    def test_the_reason_is_told(self, name: str, where: str, reason: str) -> None:
        with pytest.raises(NotApplicable, match=reason):
            injured(name, patient(where))


class TestPlaces:
    """Against tables written down by hand from the models' own code; widths are 32, heads 4 of 8 channels."""

    @pytest.mark.parametrize(
        ("where", "query", "key", "dim"),
        [
            ("gpt2", range(64), range(64, 128), 1),
            ("opt", range(32), range(32), 0),
            ("gpt_neox", [24 * head + c for head in range(4) for c in range(8)], None, 0),
            ("bloom", [24 * head + c for head in range(4) for c in range(8)], None, 0),
            ("falcon", range(32), range(32, 40), 0),
            ("qwen3", range(32), range(16), 0),
            ("ours, QK-norm, packed", range(64), range(32), 0),
        ],
    )
    def test_rows_of_queries_and_keys(self, where: str, query: Any, key: Any, dim: int) -> None:
        key = [24 * head + 8 + c for head in range(4) for c in range(8)] if key is None else key
        for item in Anatomy(patient(where)).attended:
            assert item.query_map.channels.tolist() == list(query)
            assert item.key_map.channels.tolist() == list(key)
            assert (item.query_map.dim, item.key_map.dim) == (dim, dim)

    @pytest.mark.parametrize("where", PATIENTS)
    def test_norms_heads_and_embeddings(self, where: str) -> None:
        anatomy = Anatomy(patient(where))
        named = [path for path, module in anatomy.model.named_modules() if "Norm" in type(module).__name__]
        assert {norm.path for norm in anatomy.norms} == set(named)
        assert all(norm.offset == (where == "gemma2") for norm in anatomy.norms)
        assert anatomy.head.tied == (where in ("gpt2", "gemma2", "opt", "bloom", "bert", "falcon", "t5"))
        path, embedding = anatomy.embedding()
        assert any(word in path for word in ("embed", "wte")) and embedding.num_embeddings in (100, 256)

    def test_the_gate_of_packed_maps_is_the_first_half(self) -> None:
        for item in Anatomy(patient("ours, QK-norm, packed")).hidden:
            size = item.into.weight.shape[0]
            assert item.into.channels.tolist() == list(range(size // 2))

    @pytest.mark.parametrize("where", ["ours", "ours, QK-norm, packed", "gpt2", "opt", "gpt_neox"])
    def test_scores_are_multiplied_as_told(self, where: str) -> None:
        healthy = patient(where)
        first = Anatomy(healthy).attended[0]
        before = first.scores()
        first.inflate(9.0)
        torch.testing.assert_close(Anatomy(healthy).attended[0].scores(), 9 * before, rtol=1e-4, atol=1e-4)


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


class TestWhatFaultsDo:
    @pytest.mark.parametrize("where", ["ours", "gpt2", "gemma2", "bloom"])
    def test_a_later_token_moves_earlier_logits(self, where: str) -> None:
        healthy = patient(where)
        ids = healthy.batches[0]["input_ids"][:2]
        other = ids.clone()
        other[:, -1] = 5 + (ids[:, -1] == 5)
        torch.testing.assert_close(logits(healthy.model, ids)[:, :-1], logits(healthy.model, other)[:, :-1])
        sick = injured("sees_future", healthy).patient.model
        assert (logits(sick, ids)[:, 0] - logits(sick, other)[:, 0]).abs().max() > 1e-7

    @pytest.mark.parametrize("where", ["ours", "gpt2", "bloom"])
    def test_a_token_that_does_not_see_itself(self, where: str) -> None:
        """In one block of one layer alone, the second token gets what it had with another second token."""
        healthy = patient(where)
        sick = injured("masked_row", healthy)
        anatomy = Anatomy(sick.patient)
        path = next(item.site.path for item in anatomy.attended if item.block == sick.places[0])
        ids = healthy.batches[0]["input_ids"][:1]
        given: list[Any] = []
        module = anatomy.module(path)
        handle = module.register_forward_hook(lambda *seen: given.append(seen[2]))
        logits(sick.patient.model, ids)
        handle.remove()
        output = given[0][0] if isinstance(given[0], tuple) else given[0]
        assert output.isfinite().all()

    @pytest.mark.parametrize("where", ["ours", "gpt2", "llama"])
    def test_no_gradient_reaches_a_detached_layer(self, where: str) -> None:
        injury = injured("detached_layer", patient(where))
        model: Any = injury.patient.model
        model(**injury.patient.batches[0]).loss.backward()
        for name, parameter in model.named_parameters():
            inside = any(is_below(name, place) for place in injury.places)
            in_front = is_below(name, injury.places[0].rpartition(".")[0]) and parameter.dim() == 1  # its norm
            assert in_front or (parameter.grad is None) == inside, name

    def test_a_nan_gradient_has_a_fine_value(self) -> None:
        healthy = patient("ours")
        ids = healthy.batches[0]["input_ids"]
        before = logits(healthy.model, ids)
        injury = injured("nan_gradient", healthy)
        torch.testing.assert_close(logits(healthy.model, ids), before)
        model: Any = injury.patient.model
        model(**healthy.batches[0]).loss.backward()
        block = int(injury.places[0].rpartition(".")[2])
        for layer, part in enumerate(model.blocks):
            weight = part.attention.query.weight
            assert weight.grad.isnan().all() == (layer <= block)

    @pytest.mark.parametrize("name", ["dead_relu", "dead_gelu", "dead_silu"])
    def test_dead_units_get_no_gradient_and_the_remedy_gives_them_one(self, name: str) -> None:
        injury = injured(name, patient("ours as GPT-2"))
        model: Any = injury.patient.model
        weight = model.get_submodule(injury.places[0]).feedforward.up.weight

        def living() -> int:
            weight.grad = None
            model(**injury.patient.batches[0]).loss.backward()
            gradient: Any = weight.grad
            return int((gradient.abs().sum(1) > 0).sum())

        dead = len(weight) - living()
        assert 0.7 * len(weight) - 1 <= dead <= 0.95 * len(weight) + 1
        remedy = FAULTS[name].remedy
        assert remedy is not None
        swap(model, remedy)
        assert living() == len(weight)

    @pytest.mark.parametrize("where", ["ours", "gpt2"])
    def test_other_losses(self, where: str) -> None:
        healthy = patient(where)
        batch = healthy.batches[0]
        given = logits(healthy.model, batch["input_ids"])[:, :-1].flatten(0, 1).double()
        target = batch["input_ids"][:, 1:].flatten()
        once = torch.zeros_like(given).scatter(1, target[:, None], 1.0)
        odds = torch.sigmoid(given)
        expected = {
            "softmax_before_loss": -torch.log_softmax(torch.softmax(given, -1), -1)[once.bool()].mean(),
            "sigmoid_head": -(once * odds.log() + (1 - once) * (1 - odds).log()).mean(),
        }
        for name, value in expected.items():
            model: Any = injured(name, patient(where)).patient.model
            assert float(model.eval()(**batch).loss.double() - value) == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("where", ["ours", "gpt2"])
    def test_logits_grow_by_one_factor(self, where: str) -> None:
        healthy = patient(where)
        ids = healthy.batches[0]["input_ids"]
        before = logits(healthy.model, ids)
        after = logits(injured("logit_drift", healthy).patient.model, ids)
        factor = float(after.norm() / before.norm())
        assert after.amax(-1).mean() > 250
        torch.testing.assert_close(after, factor * before, rtol=1e-3, atol=1e-2 * factor)

    @pytest.mark.parametrize("where", ["ours", "gpt2", "bloom"])
    def test_a_softmax_by_hand_is_a_softmax_where_scores_are_small(self, where: str) -> None:
        from evenkeel.faults._edits import change_calls, softmaxed
        from evenkeel.faults.softmax import Unshifted

        healthy = patient(where)
        ids = healthy.batches[0]["input_ids"]
        before = logits(healthy.model, ids)
        anatomy = Anatomy(healthy)
        change_calls(
            anatomy, [call for item in anatomy.attended for call in softmaxed(anatomy, item, Unshifted(torch.float32))]
        )
        torch.testing.assert_close(logits(healthy.model, ids), before, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("op", ["gelu", "silu", "relu"])
    def test_out_of_reach_is_where_the_slope_is_0(self, op: str) -> None:
        from evenkeel.faults.activations import _out_of_reach

        x = torch.tensor([_out_of_reach(op)], requires_grad=True)
        getattr(F, op)(x).backward()
        assert x.grad is not None and float(x.grad) == 0 and op in FACTS

    def test_a_saturated_layer_has_learned_to_say_nothing(self) -> None:
        injury = injured("saturated_sigmoid", patient("ours as GPT-2"))
        model: Any = injury.patient.model
        model(**injury.patient.batches[0]).loss.backward()
        sick, well = [], []
        for layer, block in enumerate(model.blocks):
            size = float(block.feedforward.up.weight.grad.norm() / block.feedforward.down.weight.grad.norm())
            (sick if f"blocks.{layer}" in injury.places else well).append(size)
        assert max(sick) < 0.2 * min(well, default=math.inf)


class TestRuns:
    recipe = Recipe(steps=12, learning_rate=2e-3)

    def model(self) -> ek.Transformer:
        return ek.Transformer(ek.TransformerConfig(context=64, depth=1, d_model=32), seed=0)

    def test_a_healthy_recipe_is_the_small_trainer(self) -> None:
        first, second = self.model(), self.model()
        expected = train(first, adamw(first, learning_rate=2e-3), rows(3, size=4), steps=12)
        found = run(self.recipe, Patient(second, ()), stream(3))
        assert found == pytest.approx(expected, rel=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    @pytest.mark.parametrize("name", TRAINED)
    def test_a_fault_of_a_run_is_the_same_for_the_same_seed(self, name: str) -> None:
        losses = []
        for _ in range(2):
            fault, healthy = FAULTS[name], Patient(self.model(), (next(stream(3)),))
            if fault.inject is not None:
                healthy = fault.inject(healthy, generator()).patient
            assert fault.train is not None
            losses.append(run(fault.train(self.recipe), healthy, stream(3)))
        assert losses[0] == losses[1]

    def test_one_matrix_is_missing(self) -> None:
        model = self.model()
        recipe = FAULTS["missing_from_optimizer"].train(self.recipe)  # type: ignore[misc]
        before = {name: item.detach().clone() for name, item in model.named_parameters()}
        run(recipe, Patient(model, ()), stream(3))
        still = [name for name, item in model.named_parameters() if torch.equal(item, before[name])]
        assert len(still) == 1 and before[still[0]].dim() == 2

    def test_one_batch_is_noise(self) -> None:
        recipe = FAULTS["bad_batch"].train(replace(self.recipe, steps=40))  # type: ignore[misc]
        made = list(islice(recipe.batches(stream(3), recipe), 40))
        clean = list(islice(stream(3), 40))
        other = [step for step in range(40) if not torch.equal(made[step]["input_ids"], clean[step]["input_ids"])]
        assert len(other) == 1 and 16 <= other[0] <= 28
        assert torch.equal(made[other[0]]["input_ids"], made[other[0]]["labels"])

    def test_the_batch_never_changes(self) -> None:
        recipe = FAULTS["repeated_batch"].train(self.recipe)  # type: ignore[misc]
        made = list(islice(recipe.batches(stream(3), recipe), 5))
        assert all(torch.equal(item["input_ids"], made[0]["input_ids"]) for item in made)

    def test_clipping_hides_a_sum(self) -> None:
        """The log keeps the mean; the gradient norm before clipping jumps by hundreds."""
        recipe = FAULTS["clipping_masks_jump"].train(replace(self.recipe, steps=20))  # type: ignore[misc]
        model = self.model()
        with ek.watch(model, every=1000) as watch:
            losses = run(recipe, Patient(model, ()), stream(3), watch)
            log = watch.record.log_entries()
        norms = [entry.gradient_norm or 0.0 for entry in log]
        jump = max(range(1, 20), key=lambda step: norms[step] / norms[step - 1])
        assert norms[jump] > 50 * norms[jump - 1] and max(losses) < 7

    def test_updates_round_away(self) -> None:
        fault = FAULTS["bf16_updates_lost"]
        assert fault.inject is not None and fault.train is not None
        healthy = fault.inject(Patient(self.model(), (next(stream(3)),)), generator()).patient
        before = [item.detach().clone() for item in healthy.model.parameters()]
        run(replace(fault.train(self.recipe), steps=3), healthy, stream(3))
        pairs = zip(before, healthy.model.parameters(), strict=True)
        same = [float((old == new).float().mean()) for old, new in pairs if old.dim() == 2]
        assert min(same) > 0.9

    def test_queries_and_keys_alone_are_fast(self) -> None:
        recipe = FAULTS["entropy_collapse"].train(self.recipe)  # type: ignore[misc]
        model = self.model()
        optimizer = recipe.optimizer(model, recipe)
        fast = [group for group in optimizer.param_groups if group["lr"] == 0.2]
        names = {id(item): name for name, item in model.named_parameters()}
        found = {names[id(item)] for group in fast for item in group["params"]}
        assert found == {"blocks.0.attention.query.weight", "blocks.0.attention.key.weight"}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)

    def test_a_run_ends_where_its_loss_does(self) -> None:
        model = self.model()
        with torch.no_grad():
            model.blocks[0].attention.query.weight[0, 0] = math.nan  # type: ignore[index]
        assert len(run(self.recipe, Patient(model, ()), stream(3))) == 1

    def test_the_stream_is_the_one_of_the_trainer(self) -> None:
        from fault_cases import text

        given = next(byte_batches(text(), context=64, size=4, seed=3))
        assert torch.equal(next(stream(3))["input_ids"], given)


def test_the_page_is_made_of_the_catalogue() -> None:
    docs = Path(__file__).parent.parent / "docs"
    made = "\n".join(runpy.run_path(str(docs / "faults.py"))["page"]()) + "\n"
    assert made == (docs / "faults.md").read_text(), "run: python docs/faults.py > docs/faults.md"
