"""Faults of a training run: its steps, its optimizer, its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..errors import NotApplicable
from ..schema import Change
from ..surgery.samples import made_up
from ..training import adamw
from ._draws import between
from ._fault import Batch, Fault, Injury, Patient, Recipe
from ._places import Anatomy

_BLOWN_UP = tuple(
    "RUN802 ATT301 ATT302 ATT303 ATT304 ACT101 ACT102 GLU201 GLU202 GRD501 GRD502 OUT401 OUT402 "
    "OUT403 NUM601 NUM602 NUM605 NUM607 NUM609".split()
)
"""What a model may show whose weights were thrown far off."""

_PERTURBED = (0.4, 0.7)  # the share of a run behind which something happens to it: it has learned, and can go on


def _draws(recipe: Recipe) -> torch.Generator:
    return torch.Generator().manual_seed(recipe.seed)


def _moment(recipe: Recipe) -> int:
    """The step at which something happens to a run."""
    return round(recipe.steps * between(*_PERTURBED, _draws(recipe)))


def _faster(low: float, high: float, recipe: Recipe) -> Recipe:
    return replace(recipe, learning_rate=recipe.learning_rate * between(low, high, _draws(recipe)))


def _too_high(recipe: Recipe) -> Recipe:
    return _faster(200, 600, recipe)


def _no_warmup(recipe: Recipe) -> Recipe:
    return replace(_faster(20, 40, recipe), warmup=0.0, clip=None, optimizer=_default_adamw)


def _too_large(recipe: Recipe) -> Recipe:
    return _faster(30, 80, recipe)


def _too_small(recipe: Recipe) -> Recipe:
    return _faster(1e-5, 1e-4, recipe)


def _default_adamw(model: nn.Module, recipe: Recipe) -> Optimizer:
    """torch's own, whose β₂ of 0.999 has seen few gradients while the first steps are taken."""
    return AdamW(model.parameters(), lr=recipe.learning_rate)


def _collapsing(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=_fast_queries)


def _fast_queries(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The usual optimizer, with queries and keys at a hundred times its rate."""
    anatomy = Anatomy(Patient(model, (made_up(model),)))
    if any(item.query_norm is not None for item in anatomy.attended):
        raise NotApplicable("queries and keys are normalised, so their maps' size does not reach the scores")
    if any(item.form.softcap is not None for item in anatomy.attended):
        raise NotApplicable("a softcap bounds its scores")
    fast = {id(made.module.weight) for item in anatomy.attended for made in (item.query_map, item.key_map)}
    optimizer = adamw(model, learning_rate=recipe.learning_rate)
    for group in list(optimizer.param_groups):
        chosen = [item for item in group["params"] if id(item) in fast]
        group["params"] = [item for item in group["params"] if id(item) not in fast]
        if chosen:
            rate = 100 * recipe.learning_rate
            optimizer.add_param_group({**group, "params": chosen, "lr": rate})
    return optimizer


def _without_one(recipe: Recipe) -> Recipe:
    return replace(recipe, optimizer=_all_but_one)


def _all_but_one(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The usual optimizer without one matrix of the model."""
    optimizer = adamw(model, learning_rate=recipe.learning_rate)
    matrices = [item for item in model.parameters() if item.requires_grad and item.dim() == 2]
    left_out = matrices[int(torch.randint(len(matrices), (), generator=_draws(recipe)))]
    for group in optimizer.param_groups:
        group["params"] = [item for item in group["params"] if item is not left_out]
    return optimizer


def _in_bfloat16(patient: Patient, generator: torch.Generator) -> Injury:
    patient.model.to(torch.bfloat16)
    return Injury(patient)


def _in_small_steps(recipe: Recipe) -> Recipe:
    return replace(recipe, learning_rate=1e-5)


def _with_a_bad_batch(recipe: Recipe) -> Recipe:
    return replace(recipe, batches=_one_of_noise)


def _one_of_noise(stream: Iterator[Batch], recipe: Recipe) -> Iterator[Batch]:
    """The stream with one batch in which every token is drawn at random."""
    moment, generator = _moment(recipe), _draws(recipe)
    for step, batch in enumerate(stream):
        yield _of_noise(batch, generator) if step == moment else batch


def _of_noise(batch: Batch, generator: torch.Generator) -> Batch:
    ids = batch["input_ids"]
    noise = torch.randint(int(ids.max()) + 1, ids.shape, generator=generator).to(ids.device)
    given = {**batch, "input_ids": noise}
    if "labels" in batch:
        same = batch["labels"].shape == ids.shape
        given["labels"] = torch.where(batch["labels"] < 0, batch["labels"], noise) if same else batch["labels"]
    return given


def _repeated(recipe: Recipe) -> Recipe:
    return replace(recipe, batches=_first_again)


def _first_again(stream: Iterator[Batch], recipe: Recipe) -> Iterator[Batch]:
    first = next(stream)
    while True:
        yield first


def _clipped(recipe: Recipe) -> Recipe:
    return replace(recipe, objective=_summed, clip=1.0 if recipe.clip is None else recipe.clip)


def _summed(loss: Tensor, step: int, recipe: Recipe) -> Tensor:
    """From one step on the sum of a loss where its mean belongs: as if of a few hundred sequences."""
    return loss * between(100, 1000, _draws(recipe)) if step >= _moment(recipe) else loss


FAULTS = (
    Fault(
        name="learning_rate_too_high",
        story="The learning rate is hundreds of times too high, and the loss rises above where it began.",
        source="Wortsman et al. 2023, Small-scale Proxies for Large-scale Transformer Training Instabilities",
        codes=("RUN801", "RUN803", "RUN804"),
        may=_BLOWN_UP,
        train=_too_high,
    ),
    Fault(
        name="no_warmup",
        story="The run starts at once with large steps and an Adam that has seen few gradients.",
        source="Gilmer et al. 2022, A Loss Curvature Perspective on Training Instability; Goyal et al. 2017",
        codes=("RUN801", "RUN803", "RUN804"),
        may=_BLOWN_UP,
        train=_no_warmup,
    ),
    Fault(
        name="entropy_collapse",
        story="Queries and keys are trained at a hundred times the rate of the rest, until attention is one-hot.",
        source="Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
        codes=("ATT301", "ATT303"),
        may=("RUN801", "RUN802", "RUN803", "RUN804", "ATT304", "GRD501", "GRD502", "OUT402", "OUT403", "NUM609"),
        train=_collapsing,
        remedy=Change("attention.qk_norm", True),
    ),
    Fault(
        name="steps_too_large",
        story="The learning rate is dozens of times too high: a step moves weights by a large part of their size.",
        source="a ratio of about 1e-3 is usual: Karpathy 2019; You et al. 2017, LARS",
        codes=("RUN804",),
        may=("RUN801", "RUN803", *_BLOWN_UP),
        train=_too_large,
    ),
    Fault(
        name="steps_too_small",
        story="The learning rate is tens of thousands of times too small, and nothing is learned.",
        source="a ratio of about 1e-3 is usual: Karpathy 2019; You et al. 2017, LARS",
        codes=("RUN805",),
        train=_too_small,
    ),
    Fault(
        name="bf16_updates_lost",
        story="Weights are kept in bfloat16 and the steps are smaller than half its spacing, so they round away.",
        source="bfloat16 keeps 8 bits: an update below 2^-9 of a weight is lost; Zamirai et al. 2020",
        codes=("NUM610",),
        may=("RUN805",),
        inject=_in_bfloat16,
        train=_in_small_steps,
    ),
    Fault(
        name="missing_from_optimizer",
        story="One trainable matrix was never given to the optimizer.",
        source="an optimizer made before a layer was added or replaced",
        codes=("RUN806",),
        train=_without_one,
    ),
    Fault(
        name="bad_batch",
        story="One batch in the middle of the run is noise.",
        source="Chowdhery et al. 2022, PaLM, section 5.1: spikes go away when some batches are skipped",
        codes=("RUN801",),
        may=("RUN802",),
        train=_with_a_bad_batch,
    ),
    Fault(
        name="repeated_batch",
        story="The loader hands out the same batch at every step.",
        source="an iterator made anew in the loop: next(iter(loader))",
        codes=("RUN807",),
        may=("OUT402", "RUN805"),
        train=_repeated,
    ),
    Fault(
        name="clipping_masks_jump",
        story="From one step on the loss is a sum and no mean; clipping hides gradients hundreds of times too large.",
        source="clipping to a norm of 1 leaves a direction and no size; Pascanu, Mikolov and Bengio 2013",
        codes=("RUN802",),
        train=_clipped,
    ),
)
