"""Measures the examples of the rules' pages: small models with each fault, beside healthy twins that lack only it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.data import standard_library_text
from evenkeel.faults import FAULTS, Batch, Fault, NotApplicable, Patient, Recipe, run
from evenkeel.nn import AttentionConfig, FeedForwardConfig, HeadConfig, NormConfig, PositionConfig
from evenkeel.report.rule_page import Measured, Number
from evenkeel.rules import RULES
from evenkeel.schema import DataInfo, Document, Finding, Phase
from evenkeel.training import adamw, byte_batches, train
from evenkeel.watching import watch

FILE = Path(__file__).parents[1] / "src" / "evenkeel" / "report" / "rule_examples.json"

_DEPTH, _WIDTH, _HEADS = 6, 64, 4
_CONTEXT, _ROWS = 64, 8
_STEPS, _EVERY = 100, 10
_DATA = DataInfo(source="Python's standard library", kind="text")


def _own(**parts: Any) -> nn.Module:
    attention = AttentionConfig(**{"heads": _HEADS} | parts.pop("attention", {}))
    config = ek.TransformerConfig(depth=_DEPTH, d_model=_WIDTH, context=_CONTEXT, attention=attention, **parts)
    return ek.Transformer(config, seed=0)


def _gpt2(activation: str = "gelu_tanh") -> nn.Module:
    return _own(
        position=PositionConfig(kind="learned"),
        attention={"bias": True, "output_bias": True},
        feedforward=FeedForwardConfig(activation=activation, gated=False, bias=True),
        norm=NormConfig(kind="layer", epsilon=1e-5, bias=True),
        head=HeadConfig(tied=True),
    )


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=4,
        num_attention_heads=_HEADS,
        num_key_value_heads=2,
        head_dim=_WIDTH // _HEADS,
        num_local_experts=4,
        max_position_embeddings=_CONTEXT,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return MixtralForCausalLM(config)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "LLaMA shape": _own,
    "GPT-2 shape": _gpt2,
    "GPT-2 shape with ReLU": partial(_gpt2, "relu"),
    "GPT-2 shape without gates, tanh in its feed-forwards": partial(_gpt2, "tanh"),
    "LLaMA shape with QK-norm": partial(_own, attention={"qk_norm": True}),
    "LLaMA shape, feed-forwards twice as wide as at parity": partial(_own, feedforward=FeedForwardConfig(d_ff=512)),
    "Mixtral of transformers": _mixtral,
}


@dataclass(frozen=True)
class Compared:
    """The diagnoses of a model with a fault and of its twin; fault is None where the model itself shows something."""

    fault: Fault | None
    model: str
    sick: Document
    healthy: Document

    def rank(self, code: str) -> tuple[int, int, int] | None:
        """How well it shows a rule, lowest best; None where the rule does not fire, or fires on both."""
        found = [item for item in self.sick.findings if item.code == code]
        if not found or (self.fault is not None and any(item.code == code for item in self.healthy.findings)):
            return None
        return self.least(code), int(bool(found[0].cause)), len(self.sick.findings)

    def least(self, code: str) -> int:
        """How near the fault is to the rule: 0 for its own, 1 for none, 2 for one that the rule may come with."""
        return 1 if self.fault is None else 0 if code in self.fault.codes else 2


def measure(codes: Iterable[str] = RULES) -> Iterator[tuple[str, Measured]]:
    """An example for each of these rules of which any fault gives one."""
    for code in codes:
        best: tuple[tuple[int, int, int], Compared] | None = None
        for compared in _comparisons(code):
            rank = compared.rank(code)
            if rank is not None and (best is None or rank < best[0]):
                best = rank, compared
            if best is not None and best[0][:2] <= (compared.least(code), 0):
                break  # what is still to come is no better
        if best is not None:
            yield code, _measured(code, best[1])


def _comparisons(code: str) -> Iterator[Compared]:
    """Of faults that are this rule's, of models as they are, and of faults that it may come with."""
    first, *others = MODELS
    for fault in FAULTS.values():
        if code in fault.codes:
            yield from _compared_in(fault, (first, *others))
    for model in others:
        yield Compared(None, _told(model), _twin(model), _twin(first))
    for fault in sorted(FAULTS.values(), key=lambda fault: fault.inject is None):
        if code in fault.may:
            yield from _compared_in(fault, (first, others[0]))


def _compared_in(fault: Fault, models: Iterable[str]) -> Iterator[Compared]:
    for model in models:
        if fault.inject is None and model != next(iter(MODELS)):
            return  # runs take long, and show the same in every model
        try:
            yield _compared(fault.name, model)
        except NotApplicable:
            continue


@cache
def _compared(name: str, model: str) -> Compared:
    fault = FAULTS[name]
    return _trained(fault, model) if fault.inject is None else _injected(fault, model)


@cache
def _base(name: str) -> nn.Module:
    """A model of a name after some steps of training."""
    torch.manual_seed(0)
    model = MODELS[name]()
    train(model, adamw(model, learning_rate=2e-3), _rows(0), steps=_STEPS)
    return model.eval()


@cache
def _text() -> str:
    return standard_library_text(1_000_000)


def _rows(seed: int) -> Iterator[Tensor]:
    return byte_batches(_text(), context=_CONTEXT, size=_ROWS, seed=seed)


def _batches(seed: int) -> Iterator[Batch]:
    return ({"input_ids": rows, "labels": rows.clone()} for rows in _rows(seed))


def _patient(name: str) -> Patient:
    stream = _batches(1)
    return Patient(copy.deepcopy(_base(name)), (next(stream), next(stream)))


@cache
def _twin(name: str) -> Document:
    return _inspected(_patient(name))


def _inspected(patient: Patient) -> Document:
    torch.manual_seed(0)
    return ek.inspect(patient.model, patient.batches, loss=patient.loss, data=_DATA)


def _told(name: str, trained: bool = True) -> str:
    blocks = 4 if "Mixtral" in name else _DEPTH
    return f"{name}, {blocks} blocks, width {_WIDTH}, {f'after {_STEPS}' if trained else f'over {_STEPS}'} steps"


def _injected(fault: Fault, name: str) -> Compared:
    assert fault.inject is not None
    injury = fault.inject(_patient(name), torch.Generator().manual_seed(0))
    return Compared(fault, _told(name), _inspected(injury.patient), _twin(name))


def _trained(fault: Fault, name: str) -> Compared:
    assert fault.train is not None
    recipe = Recipe(steps=_STEPS)
    return Compared(fault, _told(name, trained=False), _watched(fault.train(recipe), name), _healthy_run(name))


@cache
def _healthy_run(name: str) -> Document:
    return _watched(Recipe(steps=_STEPS), name)


def _watched(recipe: Recipe, name: str) -> Document:
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = recipe.optimizer(model, recipe)
    with watch(model, optimizer=optimizer, every=_EVERY) as watched:
        losses = run(recipe, Patient(model, ()), _batches(0), watched, optimizer)
        diagnosis = watched.diagnose()
    return replace(diagnosis, notes=(json.dumps(losses),))


def _measured(code: str, compared: Compared) -> Measured:
    finding = next(item for item in compared.sick.findings if item.code == code)
    fault = compared.fault
    return Measured(
        fault="" if fault is None else fault.name,
        story="as it is" if fault is None else fault.story,
        model=compared.model,
        severity=finding.severity,
        message=finding.message,
        place=_place(finding).rpartition(":")[0],
        numbers=tuple(_numbers(finding, compared)),
    )


def _place(finding: Finding) -> str:
    """The site that the message tells of, else the first."""
    told = (site for site in finding.sites if f"{site.rpartition(':')[0]}" in re.findall(r"[\w.]+\w", finding.message))
    return next(told, finding.sites[0])


def _numbers(finding: Finding, compared: Compared) -> Iterator[Number]:
    """What the rule needs and shows of that site, lowest and highest; of a run its loss, first and last."""
    needs = [(need.stat, need.phase) for need in RULES[finding.code].needs]
    shown = {item.stat for item in finding.evidence} - {stat for stat, _ in needs}
    at_place = (item for item in compared.sick.readings if item.site == _place(finding))
    needs += dict.fromkeys((item.stat, item.phase) for item in at_place if item.stat in shown)
    if not RULES[finding.code].needs:
        losses = [json.loads(document.notes[-1]) for document in (compared.sick, compared.healthy)]
        sick, healthy = ((each[0], each[-1]) for each in losses)
        yield Number(stat="loss, first and last step", phase="forward", sick=sick, healthy=healthy)
    for stat, phase in needs:
        sick, healthy = (
            _read(document, _place(finding), stat, phase) for document in (compared.sick, compared.healthy)
        )
        yield Number(stat=stat, phase=phase, sick=sick, healthy=healthy)


def _read(document: Document, site: str, stat: str, phase: Phase) -> tuple[float, ...]:
    """The newest values at a site, or at another of its path and kind where a fault has changed the op."""
    start = site.rpartition(".")[0]
    found = [item for item in document.readings if (item.stat, item.phase) == (stat, phase)]
    chosen = [item for item in found if item.site == site] or [
        item for item in found if item.site.rpartition(".")[0] == start
    ]
    values = max(chosen, key=lambda item: item.step).values if chosen else ()
    return (min(values), max(values)) if values else ()


def write(codes: Iterable[str] = RULES) -> None:
    """Measure these rules and keep the examples of the others; what is measured is written at once."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for code, example in measure(codes):
        known[code] = example.to_dict()
        kept = {name: known[name] for name in RULES if name in known}
        FILE.write_text(json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
