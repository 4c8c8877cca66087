"""Which families have a place for which fault, found by putting each into a small model of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice

import torch

from evenkeel.architectures.offline import offline_and_quiet
from evenkeel.errors import EvenkeelError
from evenkeel.faults import FAULTS, Patient

from .bases import EVERY_FAMILY, Base
from .cases import APPLICABLE, ENOUGH_FAMILIES, NEEDS_TRAINING, SPLITS, families
from .odd import ODD
from .zoo import FAMILIES, Size

_SIZE = Size(4, 128)  # heads of 32 channels
_ROWS, _LENGTH = 2, 32


def write_applicable() -> None:
    """Try every fault on every family of the zoo, on the odd ones where the zoo has few, and write what was found."""
    found = {}
    for name, fault in FAULTS.items():
        if fault.inject is None or name in NEEDS_TRAINING:
            continue
        found[name] = list(_able(name))
        print(f"{name}: {len(found[name])} families", file=sys.stderr)
    APPLICABLE.write_text(json.dumps(found, indent=1) + "\n")


def _able(fault: str) -> Iterator[str]:
    of_the_zoo = {name for name in FAMILIES if has_place(fault, name)}
    yield from (name for name in FAMILIES if name in of_the_zoo)
    for split in SPLITS:
        if len(of_the_zoo.intersection(families(split, odd=False))) < ENOUGH_FAMILIES:
            odd = set(families(split, odd=True))
            yield from (name for name in ODD if name in odd and has_place(fault, name))


def has_place(fault: str, family: str) -> bool:
    """Whether the fault can be put into an untrained model of the family."""
    made = EVERY_FAMILY[family]
    inject = FAULTS[fault].inject
    if inject is None:
        return True
    size = made.sizes[0] if made.sizes else _SIZE
    with offline_and_quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batches = made.batches(rows=_ROWS, length=_LENGTH, seed=0)
        patient = Patient(Base(family, size, 0, 0).model(), tuple(islice(batches, 1)))
        try:
            inject(patient, torch.Generator().manual_seed(0))
        except EvenkeelError:
            return False
    return True
