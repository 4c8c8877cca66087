"""Faults: what goes wrong with transformers, each a way to do it to a healthy one, with the codes that must tell it."""

from __future__ import annotations

from ..catalogue import Catalogue
from ..errors import NotApplicable
from . import activations, gates, heads, masks, runs, scores, softmax, stream, weights
from ._fault import Batch, Fault, Injury, Patient, Recipe, loss_of, run

__all__ = [
    "FAULTS",
    "Batch",
    "Fault",
    "Injury",
    "NotApplicable",
    "Patient",
    "Recipe",
    "loss_of",
    "run",
]

FAULTS: Catalogue[Fault] = Catalogue("fault", entry_point_group="evenkeel.faults")

for _group in (activations, scores, masks, softmax, stream, gates, weights, heads, runs):
    for _fault in _group.FAULTS:
        FAULTS.add(_fault.name, _fault)
