"""The loop closed: a fault, the change that its finding names, training, and the same inspection again.

Each patient is compared with a healthy twin: the same weights, batches and recipe, without the fault. The improvement
is counted from the untrained twin's loss, on rows that no training sees.
"""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import evenkeel as ek
from evenkeel.architectures.offline import offline_and_quiet
from evenkeel.diagnosis import Diagnosis
from evenkeel.errors import NotApplicable, UsageError
from evenkeel.faults import FAULTS, Fault, Patient, Recipe, loss_of, run
from evenkeel.rules import RULES
from evenkeel.schema import Change, Finding

from .bases import EVERY_FAMILY, Base
from .cases import NEEDS_WIDE_HEADS
from .tables import Share, listed, table
from .zoo import Size

STEPS = 100
WITHIN = 0.9
"""The share of the healthy twin's improvement that a cured model has to reach."""

FAMILIES = ("own-gpt2", "llama", "gpt2", "opt", "gpt_neox")
SEEDS = (31,)

_SIZE, _WIDE_HEADED = Size(4, 64), Size(4, 128)
_MOST_CHANGES = 3
_EVALUATED = 4  # batches
_TRIED_ON = 10_000  # away from the seeds that batches of the training have


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of one cure.

    found: the codes of the fault that were there before. named: whether one of these findings names what cures it.
    changes: what was applied, in order. cleared: whether there were such codes and none is left after training. sick,
    cured: shares of the healthy twin's improvement. reason: why the model has no place for the fault. What was not
    found, or not applied, failed.
    """

    fault: str
    family: str
    seed: int
    found: tuple[str, ...] = ()
    named: bool = False
    changes: tuple[str, ...] = ()
    cleared: bool = False
    sick: float = float("nan")
    cured: float = float("nan")
    reason: str = ""

    @property
    def id(self) -> str:
        """What was tried on whom."""
        return f"{self.fault}/{self.family}/{self.seed}"

    @property
    def succeeded(self) -> bool:
        """Whether the finding is gone and the loss is back."""
        return self.cleared and self.cured >= WITHIN

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Attempt:
        return cls(**{**data, "found": tuple(data["found"]), "changes": tuple(data["changes"])})


def attempts() -> tuple[Attempt, ...]:
    """Every cure that is to be tried: each fault with a change, in each family, with each seed."""
    tried = [name for name, fault in FAULTS.items() if fault.remedy is not None or _named_elsewhere(fault)]
    return tuple(
        Attempt(fault=name, family=family, seed=seed) for name in tried for family in FAMILIES for seed in SEEDS
    )


def _named_elsewhere(fault: Fault) -> bool:
    """Whether the rules that find a fault without a remedy name a change, which is for other causes of the same."""
    return fault.remedy is None and any(RULES[code].change is not None for code in fault.codes)


def attempt(told: Attempt) -> Attempt:
    """Hurt a model, cure it, train both and the healthy twin, and compare."""
    fault, family, seed = FAULTS[told.fault], told.family, told.seed
    with offline_and_quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            size = _WIDE_HEADED if fault.name in NEEDS_WIDE_HEADS else _SIZE
            return _attempted(told, fault, Base(family, size, seed, 0))
        except NotApplicable as error:
            return replace(told, reason=str(error))


def _attempted(told: Attempt, fault: Fault, base: Base) -> Attempt:
    healthy = _patient(base, base.model())
    start, reached = _loss(healthy), _trained(healthy, base, lambda recipe: recipe)
    sick, cured = _hurt(fault, base), _hurt(fault, base)
    findings = _of_the_fault(fault, _diagnosed(sick, fault, base))
    told = replace(
        told,
        found=tuple(dict.fromkeys(item.code for item in findings)),
        named=fault.remedy is not None and any(item.change == fault.remedy for item in findings),
    )
    train = fault.train or (lambda recipe: recipe)
    recipe = train(base.recipe(STEPS))
    optimizer = recipe.optimizer(cured.model, recipe)  # the one that did the harm goes on behind the cure
    try:
        changes = _cure(cured, fault.remedy, findings)
    except UsageError as error:
        return replace(told, changes=(f"refused: {error}",))
    gained = start - reached
    return replace(
        told,
        changes=changes,
        sick=(start - _trained(sick, base, train)) / gained,
        cured=(start - _trained(cured, base, train, optimizer)) / gained,
        cleared=bool(findings) and not _of_the_fault(fault, _inspected(cured)),
    )


def _hurt(fault: Fault, base: Base) -> Patient:
    patient = _patient(base, base.model())
    if fault.inject is None:
        return patient
    return fault.inject(patient, torch.Generator().manual_seed(base.seed)).patient


def _cure(patient: Patient, remedy: Change | None, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Apply the remedy, or what the findings name, then whatever change the main findings that are left name."""
    applied: list[Change] = []
    wanted = _changes(findings) if remedy is None else [remedy]
    while len(applied) < _MOST_CHANGES:
        change = next((item for item in wanted if item not in applied), None)
        if change is None:
            break
        ek.swap(patient.model, change, batch=patient.batches[0])
        applied.append(change)
        left = _inspected(patient).findings
        wanted = _changes(item for item in left if not item.cause and item.severity != "info")
    return tuple(f"{change.axis}={change.value}" for change in applied)


def _changes(findings: Iterable[Finding]) -> list[Change]:
    return [item.change for item in findings if item.change is not None]


def _patient(base: Base, model: nn.Module) -> Patient:
    family = EVERY_FAMILY[base.family]
    batches = family.batches(rows=family.rows, length=family.length, seed=base.seed + _TRIED_ON)
    return Patient(model, tuple(islice(batches, family.count)))


def _trained(
    patient: Patient, base: Base, train: Callable[[Recipe], Recipe], optimizer: Optimizer | None = None
) -> float:
    run(train(base.recipe(STEPS)), patient, base.stream(), optimizer=optimizer)
    return _loss(patient)


def _loss(patient: Patient) -> float:
    model = patient.model.eval()
    with torch.no_grad():
        losses = [loss_of(replace(patient, model=model), batch).item() for batch in patient.batches[:_EVALUATED]]
    return sum(losses) / len(losses)


def _diagnosed(patient: Patient, fault: Fault, base: Base) -> Diagnosis:
    """An inspection; of a fault of the training, a watched run of a copy."""
    if fault.train is None:
        return _inspected(patient)
    patient = replace(patient, model=copy.deepcopy(patient.model))
    recipe = fault.train(base.recipe(STEPS))
    optimizer = recipe.optimizer(patient.model, recipe)
    with ek.watch(patient.model, optimizer=optimizer, every=5) as watch:
        run(recipe, patient, base.stream(), watch, optimizer)
        return watch.diagnose()


def _inspected(patient: Patient) -> Diagnosis:
    return ek.inspect(patient.model, patient.batches, loss=patient.loss)


def _of_the_fault(fault: Fault, diagnosis: Diagnosis) -> list[Finding]:
    return [item for item in diagnosis.findings if item.code in fault.codes]


def render(tried: Sequence[Attempt]) -> Iterator[str]:
    """The share of cures that succeeded, by fault; the faults that no change cures; every failure."""
    made = [item for item in tried if not item.reason]
    judged = [item for item in made if FAULTS[item.fault].remedy is not None]
    yield "The fault's change is applied, then whatever change a main finding that is left names; then come"
    yield f"{STEPS} steps of training. Cured: the fault's code is gone, and the loss has come down by at least"
    yield f"{WITHIN:.0%} of what it came down in the healthy twin. Loss: the median share of that."
    yield ""
    yield f"Cured: {Share.of(item.succeeded for item in judged)}."
    yield ""
    yield from _by_fault(judged)
    without = [f"`{fault.name}`" for fault in FAULTS.values() if fault.remedy is None and not _named_elsewhere(fault)]
    yield f"No change in code is known for {', '.join(without)}."
    yield ""
    yield "No remedy is known for these either; their findings name a change that cures other causes of the same, tried"
    yield "here all the same:"
    yield ""
    yield from _by_fault([item for item in made if item not in judged])
    yield from listed("Not cured", [(item.id, _told(item)) for item in judged if not item.succeeded])
    yield from listed("Not tried", [(item.id, item.reason) for item in tried if item.reason])


def _by_fault(tried: Sequence[Attempt]) -> Iterator[str]:
    header = ("fault", "changes", "cured", "named by a finding", "code gone", "loss, sick", "loss, cured")
    names = dict.fromkeys(item.fault for item in tried)
    yield from table(header, (_row(name, [item for item in tried if item.fault == name]) for name in names))


def _row(name: str, tried: Sequence[Attempt]) -> tuple[str, ...]:
    changes = dict.fromkeys(change for item in tried for change in item.changes)
    sick, cured = (_median([getattr(item, which) for item in tried]) for which in ("sick", "cured"))
    return (
        f"`{name}`",
        ", ".join(changes),
        str(Share.of(item.succeeded for item in tried)),
        str(Share.of(item.named for item in tried).count),
        str(Share.of(item.cleared for item in tried).count),
        sick,
        cured,
    )


def _median(shares: Sequence[float]) -> str:
    known = [share for share in shares if not math.isnan(share)]  # nothing was trained where a change was refused
    return f"{statistics.median(known):.0%}" if known else "–"


def _told(item: Attempt) -> str:
    gone = "the code is gone" if item.cleared else "the code is still there"
    return f"{gone}; loss {item.sick:.0%} sick, {item.cured:.0%} cured; {', '.join(item.changes)}"
