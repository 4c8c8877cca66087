"""One case, run: the model made, hurt, measured and judged, and what remains of it as data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

import torch

import evenkeel as ek
from evenkeel.architectures.offline import offline_and_quiet
from evenkeel.diagnosis import Diagnosis
from evenkeel.errors import NotApplicable
from evenkeel.faults import FAULTS, Injury, Patient, Recipe, run
from evenkeel.schema import DataInfo, Finding

from .bases import EVERY_FAMILY
from .cases import TRAINING_STEPS, Case
from .peers import Training, verdicts

_EVERY = 10
_BESIDE_STEPS = 8


@dataclass(frozen=True)
class Trial:
    """A case with its fault put in, and its diagnosis."""

    injury: Injury
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Told:
    """What is kept of a finding."""

    code: str
    severity: str
    cause: str
    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case.

    places: module paths where the fault was put. told: every finding. peers: what each peer said, None where it could
    not run; empty where none was asked. reason: why the fault could not be put into this model, where it could not.
    """

    id: str
    seconds: float
    told: tuple[Told, ...] = ()
    places: tuple[str, ...] = ()
    peers: Mapping[str, tuple[str, ...] | None]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        told = tuple(Told(**{**item, "sites": tuple(item["sites"])}) for item in data["told"])
        peers = {name: None if said is None else tuple(said) for name, said in data["peers"].items()}
        return cls(**{**data, "told": told, "places": tuple(data["places"]), "peers": peers})


def try_case(case: Case, *, with_peers: bool = True) -> Outcome:
    """Run a case and keep what counts."""
    start = time.perf_counter()
    try:
        trial = examine(case)
    except NotApplicable as error:
        return Outcome(id=case.id, seconds=time.perf_counter() - start, peers={}, reason=str(error))
    peers = verdicts(trial.diagnosis, lambda: _training(case)) if with_peers and case.with_peers else {}
    return Outcome(
        id=case.id,
        seconds=time.perf_counter() - start,
        told=tuple(map(_told, trial.diagnosis.findings)),
        places=trial.injury.places,
        peers=peers,
    )


def examine(case: Case) -> Trial:
    """Make the model of a case, put the fault in, and inspect it, or watch it while it trains.

    Raises NotApplicable where there is no place for the fault.
    """
    with _undisturbed(case):
        injury = _injured(case)
        diagnosis = _watched(case, injury.patient) if case.watched else _inspected(injury.patient)
        return Trial(injury, diagnosis)


@contextmanager
def _undisturbed(case: Case) -> Iterator[None]:
    """No network, no warnings, and random numbers of the case's own."""
    with offline_and_quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(case.seed)
        yield


def _injured(case: Case) -> Injury:
    family = EVERY_FAMILY[case.base.family]
    model = case.base.model().to(getattr(torch, case.dtype))
    batches = family.batches(rows=family.rows, length=family.length, seed=case.seed)
    patient = Patient(model, tuple(islice(batches, family.count)))
    inject = None if case.fault is None else FAULTS[case.fault].inject
    return Injury(patient) if inject is None else inject(patient, torch.Generator().manual_seed(case.seed))


def _inspected(patient: Patient) -> Diagnosis:
    return ek.inspect(patient.model, patient.batches, loss=patient.loss, data=_data(patient))


def _watched(case: Case, patient: Patient) -> Diagnosis:
    recipe = _recipe(case)
    optimizer = recipe.optimizer(patient.model, recipe)
    with ek.watch(patient.model, optimizer=optimizer, every=_EVERY) as watch:
        watch.record.set_data(_data(patient))
        run(recipe, patient, case.base.stream(), watch, optimizer)
        return watch.diagnose()


def _recipe(case: Case) -> Recipe:
    recipe = case.base.recipe(TRAINING_STEPS)
    train = None if case.fault is None else FAULTS[case.fault].train
    return recipe if train is None else train(recipe)


def _training(case: Case) -> Training:
    """The training that a watched case is; a few steps on its batches where it is inspected."""
    with _undisturbed(case):
        patient = _injured(case).patient
    if case.watched:
        return Training(patient, _recipe(case), case.base.stream())
    return Training(patient, case.base.recipe(_BESIDE_STEPS), cycle(patient.batches))


def _data(patient: Patient) -> DataInfo:
    ids = [batch["input_ids"] for batch in patient.batches if "input_ids" in batch]
    if not ids:
        return DataInfo(source="made-up pictures", kind="given")
    return DataInfo(source="Python's standard library", kind="text", tokens=sum(item.numel() for item in ids))


def _told(finding: Finding) -> Told:
    return Told(finding.code, finding.severity, finding.cause, finding.sites)
