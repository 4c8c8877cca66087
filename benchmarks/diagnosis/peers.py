"""What other tools say of the same models: two that run beside a training, and two by their published thresholds."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from evenkeel.diagnosis import Diagnosis
from evenkeel.faults import Batch, Patient, Recipe, run
from evenkeel.schema import Reading

Verdict = tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """A patient as it was measured, and how it is trained; a fresh one each time."""

    patient: Patient
    recipe: Recipe
    stream: Iterator[Batch]


class Beside(Protocol):
    """A tool at work beside a training."""

    def stepped(self, loss: float) -> None:
        """The optimizer has made a step; the gradients are still there."""
        ...

    def verdict(self) -> Verdict:
        """What it found at warning or above, when the training has ended."""
        ...


class Torchmortem:
    """torchmortem's Autopsy, used as its page shows."""

    def __init__(self, patient: Patient, optimizer: Optimizer) -> None:
        from torchmortem import Autopsy

        self._autopsy = Autopsy(patient.model, optimizer=optimizer)
        self._autopsy.attach()

    def stepped(self, loss: float) -> None:
        self._autopsy.step(loss=loss)

    def verdict(self) -> Verdict:
        from torchmortem import Severity

        self._autopsy.detach()
        report: Any = self._autopsy.get_report()
        return _once(item.category for item in report.findings if item.severity >= Severity.WARNING)


class TorchAudit:
    """torch-audit's Auditor: it patches the model's forward, and audits the parameters after every step."""

    def __init__(self, patient: Patient, optimizer: Optimizer) -> None:
        from torch_audit import audit_step, autopatch

        choices: dict[str, Any] = {"every_n_steps": 1, "suppress_internal_errors": True}
        self._auditor = autopatch(patient.model, optimizer=optimizer, patch_optimizer=False, **choices)
        self._audit = audit_step(self._auditor)(lambda: None)

    def stepped(self, loss: float) -> None:
        self._audit()

    def verdict(self) -> Verdict:
        from torch_audit import Severity

        self._auditor.unpatch()
        found = self._auditor.finish().findings
        return _once(item.rule_id for item in found if item.severity >= Severity.WARN)


BESIDE: dict[str, Callable[[Patient, Optimizer], Beside]] = {
    "torchmortem 0.1.1": Torchmortem,
    "torch-audit 0.3.0": TorchAudit,
}


def beside_training(make: Callable[[Patient, Optimizer], Beside], training: Training) -> Verdict | None:
    """What a tool says of a training; None where it is not installed or stops the training."""
    patient = training.patient
    optimizer = training.recipe.optimizer(patient.model, training.recipe)
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            tool = make(patient, optimizer)
            losses = [math.nan]
            optimizer.register_step_post_hook(lambda *_: tool.stepped(losses[-1]))
            run(_noting(training.recipe, losses), patient, training.stream, optimizer=optimizer)
            return tool.verdict()
    except Exception:
        return None
    finally:
        logging.disable(logging.NOTSET)


def _noting(recipe: Recipe, losses: list[float]) -> Recipe:
    """The recipe, with each step's loss noted before it is differentiated."""

    def objective(loss: Tensor, step: int, itself: Recipe) -> Tensor:
        losses.append(loss.item())
        return recipe.objective(loss, step, itself)

    return replace(recipe, objective=objective)


def sagemaker_debugger(diagnosis: Diagnosis) -> Verdict:
    """SageMaker Debugger's built-in rules at their default thresholds, on our readings of every measured step."""
    relu, sigmoid, tanh = (_sites(diagnosis, op) for op in ("relu", "sigmoid", "tanh"))
    dead = _over(diagnosis, "dead_channel_share", 0.5)
    rules = {
        "VanishingGradient": any(item.values[0] < 1e-7 for item in _of(diagnosis, "gradient_rms", ":parameter")),
        "ExplodingTensor": bool(_over(diagnosis, "nonfinite", 0)),
        "DeadRelu": bool(dead & relu),
        "SaturatedActivation": bool(
            dead & (sigmoid & _over(diagnosis, "input_absmax", 17) | tanh & _over(diagnosis, "input_absmax", 9.5))
        ),
        "WeightUpdateRatio": any(not 1e-8 <= item.values[0] <= 10 for item in _of(diagnosis, "update_ratio")),
    }
    return tuple(name for name, broken in rules.items() if broken)


def autotrainer(diagnosis: Diagnosis) -> Verdict:
    """AUTOTRAINER's gradient and ReLU symptoms at its default thresholds, on our readings of every measured step."""
    gradients = _of(diagnosis, "gradient_rms", ":parameter")
    last_step = [item.values[0] for item in gradients if item.step == gradients[-1].step]
    relu = _sites(diagnosis, "relu")
    rules = {
        "gradient vanish": bool(last_step) and last_step[0] < 1e-4 and last_step[0] < 1e-3 * last_step[-1],
        "gradient explode": any(not item.values[0] <= 70 for item in gradients),
        "dying ReLU": bool(relu & _over(diagnosis, "zero_gradient_share", 0.7)),
    }
    return tuple(name for name, broken in rules.items() if broken)


RESTATED: dict[str, Callable[[Diagnosis], Verdict]] = {
    "SageMaker Debugger's thresholds": sagemaker_debugger,
    "AUTOTRAINER's thresholds": autotrainer,
}

PEERS = (*BESIDE, *RESTATED)


def verdicts(diagnosis: Diagnosis, again: Callable[[], Training]) -> dict[str, Verdict | None]:
    """What every peer says, None where it cannot judge. again: makes the patient anew and says how to train it."""
    return {name: judge(diagnosis) for name, judge in RESTATED.items()} | {
        name: beside_training(make, again()) for name, make in BESIDE.items()
    }


def _of(diagnosis: Diagnosis, stat: str, kind: str = "") -> list[Reading]:
    return [item for item in diagnosis.readings if item.stat == stat and item.values and kind in item.site]


def _over(diagnosis: Diagnosis, stat: str, bound: float) -> set[str]:
    """The sites at which a stat was above a bound in some step."""
    return {item.site for item in _of(diagnosis, stat) if any(value > bound for value in item.values)}


def _sites(diagnosis: Diagnosis, op: str) -> set[str]:
    return {site.id for site in diagnosis.sites if site.kind == "activation" and site.op == op}


def _once(names: Iterable[str]) -> Verdict:
    return tuple(sorted(set(names)))
