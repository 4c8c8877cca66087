"""What a patient does with its batches: the values it makes, the loss it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotApplicable
from ..surgery.places import as_found
from ._fault import Patient, loss_of


def outputs_of(patient: Patient, module: nn.Module) -> Tensor:
    """What a module gives for all of a patient's batches: (tokens, channels), in float32."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, given, output: found.append(_rows(output)))
    try:
        with as_found(patient.model):
            for batch in patient.batches:
                patient.model(**batch)
    finally:
        handle.remove()
    if not found:
        raise NotApplicable(f"the patient's batches never reach its {type(module).__name__}")
    return torch.cat(found)


def _rows(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else value[0]
    return tensor.detach().float().flatten(0, -2)


def loss_now(patient: Patient) -> float:
    """The mean loss of a patient over its batches."""
    with as_found(patient.model):
        losses = [float(loss_of(patient, batch)) for batch in patient.batches]
    return sum(losses) / len(losses)
