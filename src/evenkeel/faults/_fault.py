"""What a fault is, whom it is done to, what it leaves, and how a patient is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..schema import Change
from ..training import adamw, learning_rate_share
from ..watching import Watch

Batch = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Patient:
    """A model with what it is run on.

    batches: keyword arguments for the model, labels among them where it takes any. loss: `loss(output, batch)`, by
    default `output.loss`, as in `evenkeel.inspect`.
    """

    model: nn.Module
    batches: tuple[Batch, ...]
    loss: Loss | None = None


@dataclass(frozen=True)
class Injury:
    """A patient with a fault, and the module paths where the fault sits; none where it is in the whole model."""

    patient: Patient
    places: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a patient is trained.

    learning_rate: the peak, reached after the share `warmup` of the steps, from where it falls along a cosine. clip:
    the largest gradient norm, None for any. optimizer: made of the model and this recipe. batches: what becomes of the
    stream of batches. objective: what becomes of a step's loss before it is differentiated; the log keeps the loss
    itself. seed: of whatever a fault draws.
    """

    learning_rate: float = 2e-3
    warmup: float = 0.1
    clip: float | None = 1.0
    steps: int = 200
    seed: int = 0
    optimizer: Callable[[nn.Module, Recipe], Optimizer] = lambda model, recipe: adamw(
        model, learning_rate=recipe.learning_rate
    )
    batches: Callable[[Iterator[Batch], Recipe], Iterator[Batch]] = lambda stream, recipe: stream
    objective: Callable[[Tensor, int, Recipe], Tensor] = lambda loss, step, recipe: loss


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way in which a model, or its training, goes wrong.

    story: what somebody did, in one line. codes: the fault counts as found when a finding of one of these is there.
    may: codes of its consequences, which may come with it. inject: does it to a patient, with draws of a generator, in
    place; raises NotApplicable where the patient has no such place. train: does it to a recipe. remedy: the change that
    clears it with `swap`, or in the config and with new training; None where no code does.
    """

    name: str
    story: str
    source: str
    codes: tuple[str, ...]
    may: tuple[str, ...] = ()
    inject: Callable[[Patient, Any], Injury] | None = None
    train: Callable[[Recipe], Recipe] | None = None
    remedy: Change | None = None


def run(
    recipe: Recipe,
    patient: Patient,
    stream: Iterator[Batch],
    watch: Watch | None = None,
    optimizer: Optimizer | None = None,
) -> list[float]:
    """Train a patient on a stream of batches; each step's loss. It ends early where the loss is not finite any more.

    watch: measures its due steps. optimizer: by default the recipe's own; give it where the watch is to see its
    updates, made by `recipe.optimizer(model, recipe)`.
    """
    model = patient.model.train()
    optimizer = recipe.optimizer(model, recipe) if optimizer is None else optimizer
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, recipe.steps, recipe.warmup))
    losses: list[float] = []
    for step, batch in enumerate(islice(recipe.batches(stream, recipe), recipe.steps)):
        if watch is not None:
            watch.begin_step()
        loss = loss_of(patient, batch)
        recipe.objective(loss, step, recipe).backward()
        largest = math.inf if recipe.clip is None else recipe.clip
        norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if watch is not None:
            watch.log(loss=loss, gradient_norm=norm, batch=batch)
            watch.end_step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    return losses


def loss_of(patient: Patient, batch: Batch) -> Tensor:
    """The loss of a patient on a batch."""
    output: Any = patient.model(**batch)
    return output.loss if patient.loss is None else patient.loss(output, batch)
