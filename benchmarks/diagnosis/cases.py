"""The labelled cases: which model, with which fault or none. The same list every time; nothing is run to make it.

An id says where a case stands: `held_out/qwen3/dead_relu/7` is the 8th case of that fault in that split. The splits
share neither a family nor a seed, so that bounds may be tuned on one and are tried on the other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from evenkeel.faults import FAULTS

from .bases import EVERY_FAMILY, STEPS, Base
from .odd import ODD
from .zoo import FAMILIES, Family, Size

Split = Literal["tune", "held_out"]

APPLICABLE = Path(__file__).with_name("applicable.json")
"""For every fault the families that have a place for it, as `benchmarks/faults.py --applicable` found by trying."""

SPLITS: tuple[Split, ...] = ("tune", "held_out")
HEALTHY = "healthy"
TUNED_ON = ("own-gpt2", "gpt2", "bloom", "qwen2", "olmo2", "t5")
"""The zoo's families of the split that bounds may be tuned on; of the odd ones it has every third."""

SICK = {"tune": 6, "held_out": 30}
"""Cases for each fault."""

TRAINING_STEPS = 80
SEEDS = {"tune": (11, 12), "held_out": (23, 24)}
"""Trained bases have the first, so that each serves many cases. What else a case draws is keyed by them as well.

A split that was looked at to mend a rule can no longer say how good the rules are: it gets new seeds (21 and 22 are
spent so).
"""

_SMALL_SIZES = (Size(2, 64), Size(4, 64))
_SIZES = (*_SMALL_SIZES, Size(4, 128))
_UNTRAINED_SIZES = (*_SIZES, Size(3, 64), Size(6, 64), Size(2, 256), Size(12, 64), Size(24, 64))
_DEEP_SIZES = (Size(4, 64), Size(6, 64), Size(12, 64), Size(4, 128))
_WIDE_HEADED_SIZES = (Size(2, 128), Size(4, 128), Size(2, 256))
_BFLOAT16 = 0.25
_FEW = 40
_OF_THE_ZOO, _WATCHED = 0.55, 0.12
_PEERS_EVERY = 10

NEEDS_TRAINING = frozenset({"overconfident"})
NEEDS_WIDE_HEADS = frozenset({"scores_unscaled", "scores_multiplied"})
_NEEDS_DEPTH = frozenset({"sigmoid_stack", "tanh_stack"})
ENOUGH_FAMILIES = 4


@dataclass(frozen=True)
class Case:
    """A model of a base, in a number format, with a fault or none; watched while it trains, or inspected.

    with_peers: whether other tools judge it too; they take more time than the diagnosis, and a part of the cases tells
    how good they are.
    """

    id: str
    split: Split
    base: Base
    dtype: Literal["float32", "bfloat16"]
    fault: str | None
    watched: bool
    seed: int
    with_peers: bool


def cases() -> tuple[Case, ...]:
    """Every case, sick ones first."""
    return tuple(case for split in SPLITS for case in _split(split))


def few_cases() -> tuple[Case, ...]:
    """80 of the cases, half of them sick, each of another fault; quick ones, which need no trained base."""
    quick = [case for case in cases() if case.base.steps == 0 and case.base.size in _SMALL_SIZES]
    quick.sort(key=lambda case: random.Random(case.id).random())
    sick = {case.fault: case for case in quick if case.fault is not None}
    healthy = {case.base.family: case for case in quick if case.fault is None}
    return (*list(sick.values())[:_FEW], *list(healthy.values())[:_FEW])


def families(split: Split, *, odd: bool) -> tuple[str, ...]:
    """The families of a split."""
    if odd:
        return tuple(name for index, name in enumerate(ODD) if (index % 3 == 0) == (split == "tune"))
    return tuple(name for name in FAMILIES if (name in TUNED_ON) == (split == "tune"))


@cache
def applicable() -> dict[str, list[str]]:
    """What APPLICABLE holds; a fault that is not in it has a place in every family of the zoo."""
    known = json.loads(APPLICABLE.read_text())
    return {fault: known.get(fault, list(FAMILIES)) for fault in FAULTS}


def _split(split: Split) -> Iterator[Case]:
    sick = [case for fault in FAULTS for case in _of_a_fault(split, fault)]
    yield from sick
    zoo = round(_OF_THE_ZOO * len(sick))
    yield from _many(split, HEALTHY, families(split, odd=False), range(zoo))
    yield from _many(split, HEALTHY, families(split, odd=True), range(zoo, len(sick)))


def able(split: Split, fault: str) -> tuple[str, ...]:
    """The families of a split that have a place for a fault: the zoo's, and where they are few the odd ones as well."""
    known = applicable()[fault]
    of_the_zoo = tuple(name for name in families(split, odd=False) if name in known)
    if len(of_the_zoo) >= ENOUGH_FAMILIES:
        return of_the_zoo
    return of_the_zoo + tuple(name for name in families(split, odd=True) if name in known)


def _of_a_fault(split: Split, fault: str) -> Iterator[Case]:
    names = able(split, fault)
    if not names:
        return iter(())
    start = random.Random(f"{split} {fault}").randrange(len(names))
    return _many(split, fault, (*names[start:], *names[:start]), range(SICK[split]))


def _many(split: Split, what: str, names: tuple[str, ...], numbers: range) -> Iterator[Case]:
    for number in numbers:
        yield _case(split, names[number % len(names)], what, number)


def _case(split: Split, name: str, what: str, number: int) -> Case:
    """One case; what its id leaves open is drawn from a stream of the id's own."""
    identity = f"{split}/{name}/{what}/{number}"
    draw = random.Random(f"{identity} {SEEDS[split]}")
    family = EVERY_FAMILY[name]
    fault = None if what == HEALTHY else what
    watched = (family.trains and draw.random() < _WATCHED) if fault is None else FAULTS[fault].train is not None
    steps = _steps(draw, family, what, watched)
    size = draw.choice(_sizes(family, what, steps, watched))
    seed = SEEDS[split][0] if steps else draw.choice(SEEDS[split])
    dtype = "bfloat16" if draw.random() < _BFLOAT16 and not watched else "float32"
    base, with_peers = Base(name, size, seed, steps), number % _PEERS_EVERY == 0
    return Case(identity, split, base, dtype, fault, watched, draw.randrange(2**31), with_peers)


def _steps(draw: random.Random, family: Family, what: str, watched: bool) -> int:
    if what in NEEDS_TRAINING:
        return STEPS[-1]
    if not family.trains or (watched and what != HEALTHY):
        return 0
    return draw.choice((0, STEPS[-1]) if family.name in ODD else (0, *STEPS, STEPS[-1]))


def _sizes(family: Family, what: str, steps: int, watched: bool) -> tuple[Size, ...]:
    """Sizes to choose from; few where many steps are taken for one case, or a base serves few cases."""
    if family.sizes:
        return family.sizes
    if what in NEEDS_WIDE_HEADS:
        return (_WIDE_HEADED_SIZES[1],) if steps else _WIDE_HEADED_SIZES
    if what in _NEEDS_DEPTH:
        return _DEEP_SIZES[:1] if steps else _DEEP_SIZES
    if steps and family.name in ODD:
        return _SMALL_SIZES[:1]
    if watched or steps == STEPS[0]:
        return _SMALL_SIZES
    return _SIZES if steps else _UNTRAINED_SIZES
