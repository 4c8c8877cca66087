"""RUN8xx of optimizer steps: too large, too small, or not taken at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..schema import Evidence, Site
from ._examples import GUESSING, NEW_HEAD, Place, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._training import is_fresh, rates, settled

_FEWEST = 4  # linear maps


def _ratios(measurements: Measurements, site: Site) -> list[tuple[int, float]]:
    return [(step, values[0]) for step, values in measurements.history(site, "update_ratio", "update")]


def _planned(measurements: Measurements, site: Site) -> float:
    """By how much the learning rate of the first measured step is still to grow."""
    first, planned = rates(measurements, site)[:1], measurements.value(site, "planned_learning_rate", "update")
    return planned / first[0] if first and first[0] > 0 and planned > 0 else math.nan


def _judge_large(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    if len(sites) < _FEWEST:
        return
    steps = sorted({step for site in sites for step, _ in _ratios(measurements, site)})
    first = {site: dict(_ratios(measurements, site)).get(0, math.nan) for site in sites}
    full = {site: ratio * _planned(measurements, site) for site, ratio in first.items()}
    if (case := _too_large(full, bounds["first"], 0, " at the learning rate's planned peak")) is not None:
        yield case
    for step in steps:
        if step > 0:  # Adam's very first step moves every weight by the learning rate, later ones by a part of it
            ratios = {site: dict(_ratios(measurements, site)).get(step, math.nan) for site in sites}
            if (case := _too_large(ratios, bounds["later"], step, "")) is not None:
                yield case


def _too_large(ratios: dict[Site, float], bound: float, step: int, where: str) -> Case | None:
    known = sorted((site for site in ratios if not math.isnan(ratios[site])), key=lambda site: ratios[site])
    if len(known) < _FEWEST or not ratios[known[len(known) // 4]] > bound:
        return None
    ratio = ratios[known[len(known) // 4]]
    return Case(
        severity="warning",
        sites=tuple(site for site in known if ratios[site] > bound),
        evidence=(Evidence(stat="update_ratio", value=ratio, bound=bound, unit="1"),),
        message=f"step {step}{where} changes three quarters of the {len(known)} linear maps by at least {ratio:.2g} "
        f"of their own size (bound {bound:.2g})",
        excess=ratio / bound,
    )


def _judge_small(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    judged = [site for site in sites if settled(measurements, site, fewest=3)]
    if len(judged) < _FEWEST:
        return
    largest = {site: max(ratio for _, ratio in _ratios(measurements, site)) for site in judged}
    ordered = sorted(judged, key=lambda site: largest[site])
    ratio = largest[ordered[3 * len(ordered) // 4]]
    fresh = is_fresh(measurements)
    bound = bounds["fresh"] if fresh else bounds["any"]
    if ratio < bound:
        at_this_rate = "for ever" if ratio == 0 else f"{1 / ratio:.1g} steps"
        yield Case(
            severity="warning",
            sites=tuple(site for site in ordered if largest[site] < bound),
            evidence=(Evidence(stat="update_ratio", value=ratio, bound=bound, unit="1"),),
            message=f"no measured step changed three quarters of the {len(ordered)} linear maps by more than "
            f"{ratio:.2g} of their own size (bound {bound:.2g}"
            + (" for a model that still guesses" if fresh else "")
            + f"): to move by as much as they are takes {at_this_rate}",
            excess=bound / ratio if ratio > 0 else math.inf,
        )


def _judge_missing(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    missing = [site for site in sites if measurements.value(site, "in_optimizer", "update") == 0]
    moved = [site for site in missing if any(ratio > 0 for _, ratio in _ratios(measurements, site))]
    if not missing or moved:
        return
    yield Case(
        severity="error" if len(missing) == len(sites) else "warning",
        sites=tuple(missing),
        evidence=(Evidence(stat="in_optimizer", value=0.0, bound=1.0, unit="1"),),
        message=f"{_listed(missing)}, {len(missing)} of {len(sites)} trainable parameters, "
        f"{'is' if len(missing) == 1 else 'are'} in no optimizer and did not change in any measured step",
        excess=len(missing) / len(sites),
    )


def _listed(sites: Sequence[Site]) -> str:
    shown = ", ".join(site.path for site in sites[:3])
    return shown if len(sites) <= 3 else f"{shown} and {len(sites) - 3} more"


_UPDATED = (
    Need(kind="parameter", stat="gain"),
    Need(kind="parameter", stat="update_ratio", phase="update"),
    Need(kind="parameter", stat="learning_rate", phase="update"),
)


def _steps(
    *ratios: float, rate: float = 1e-3, planned: float | None = None, maps: int = 4, unevenness: float = 1.0
) -> list[Place]:
    """Linear maps with these update ratios at steps 0, 10, 20, ..."""
    return [
        at(
            f"layers.{place}.mlp.up.weight:parameter.parameter",
            step=10 * step,
            gain=0.6,
            unevenness=unevenness,
            update={
                "update_ratio": ratio,
                "learning_rate": rate,
                "planned_learning_rate": rate if planned is None else planned,
            },
        )
        for place in range(maps)
        for step, ratio in enumerate(ratios)
    ]


def _member(path: str, *, held: bool, ratio: float) -> Place:
    return at(
        f"{path}:parameter.parameter", weight_rms=0.1, update={"in_optimizer": float(held), "update_ratio": ratio}
    )


RUN804 = Rule(
    code="RUN804",
    name="steps too large",
    needs=_UPDATED,
    measures="the rms of an optimizer step's update over the weight's own, of every trained linear map at every "
    "measured step; the first step's as it would be at the peak that the learning rate's schedule has set down",
    severities=("warning",),
    severity="warning",
    bounds={"first": 0.3, "later": 0.1},
    bound="three quarters of at least 4 maps above 0.1. Updates of neighbouring steps point the same way, so at 0.1 a "
    "map is another one after ten steps, within the 20 steps that Adam with beta2 = 0.95 averages over. Adam's very "
    "first step moves each weight by the whole learning rate and later ones by a third of it or less, so the first "
    "step's bound is 0.3, at the planned peak. Measured on small models with weights of deviation 0.02: 0.15 in the "
    "first step and at most 0.07 later for AdamW at 3e-3, which trains well; 0.5 and 0.16 at 1e-2, which ends worse; "
    "2 and 0.3 at 3e-2. Maps that start at zero are few, or LoRA's, beside which there is another; neither is a "
    "quarter too few.",
    explains=(
        "ATT301",
        "ATT303",
        "ATT304",
        "ACT101",
        "ACT102",
        "OUT401",
        "OUT403",
        "RUN801",
        "RUN802",
        "RUN803",
        "NUM609",
        "NUM602",
        "NUM605",
        "NUM607",
        "OUT402",
        "GLU201",
        "GLU202",
        "GRD501",
        "GRD502",
        "NUM601",
        "ATT302",
    ),
    why="Steps of that size undo each other: what a map has learned is overwritten before it can be used, logits grow, "
    "units die, and the loss rises or stays high.",
    advice=(
        "Lower the learning rate, by 3 at first: the ratio goes with it.",
        "Warm up over the first 5 to 10% of the steps, and check that the schedule is stepped once a step.",
        "Clip gradients; under Adam that helps against single steps only.",
    ),
    try_command="evenkeel rules RUN804",
    source="Kingma and Ba 2015, section 2.1 (Adam's step size); You et al. 2020, LAMB (steps relative to weights); "
    "bounds measured here",
    firing=(
        example("AdamW at 3e-2, seen in the first step of a warm-up", *_steps(0.2, rate=3e-3, planned=3e-2)),
        example("AdamW at 1e-2 at its peak", *_steps(0.03, 0.16, 0.1, rate=1e-2)),
    ),
    silent=(
        example("AdamW at 3e-3", *_steps(0.015, 0.073, 0.063, 0.024, rate=3e-4, planned=3e-3)),
        example(
            "LoRA, where B starts at zero",
            *_steps(0.01, 0.008, 0.007, maps=4),
            *(
                at(
                    f"layers.{place}.attn.lora_B.weight:parameter.parameter",
                    step=10 * step,
                    gain=0.0,
                    update={"update_ratio": ratio, "learning_rate": 1e-3, "planned_learning_rate": 1e-3},
                )
                for place in range(4)
                for step, ratio in enumerate((math.inf, 0.3, 0.1))
            ),
        ),
    ),
    judge=_judge_large,
)

RUN805 = Rule(
    code="RUN805",
    name="steps too small",
    needs=_UPDATED,
    measures="the rms of an optimizer step's update over the weight's own, of every trained linear map: the largest of "
    "all measured steps",
    severities=("warning",),
    severity="warning",
    bounds={"any": 1e-6, "fresh": 1e-4},
    bound="three quarters of at least 4 maps below 1e-6, over at least 3 measured steps and once the learning rate no "
    "longer rises: even if all steps point the same way, a map then needs a million of them to change by as much as "
    "it is. Gentle fine-tuning (Adam at 5e-7) has about 5e-6. A fresh model, whose loss is that of guessing and whose "
    "maps are as even as draws (a trained body under a new head has uneven ones), has to build its maps: there the "
    "bound is 1e-4, ten thousand steps; AdamW at 1e-4 has 1e-3 and more.",
    why="The run costs what a run costs, and the model stays where it is.",
    advice=(
        "Raise the learning rate: to 1e-3 for Adam on a small model, 3e-4 on a large one.",
        "Check the schedule (steps counted in other units, a factor applied twice) and the gradients' scale: a loss "
        "divided by the accumulation steps twice, a clip of 1e-3 under SGD.",
    ),
    try_command="evenkeel rules RUN805",
    source="bound derived here",
    firing=(
        example("Adam at 1e-8", *_steps(1e-7, 1e-7, 1e-7, rate=1e-8)),
        example("Adam at 1e-6 on a fresh model", *_steps(5e-5, 3e-5, 2e-5, rate=1e-6), GUESSING),
    ),
    silent=(
        example("fine-tuning at 5e-7", *_steps(2e-5, 6e-6, 5e-6, rate=5e-7)),
        example("Adam at 1e-6 on a trained body with a new head", *_steps(5e-5, 3e-5, 2e-5, unevenness=8.0), NEW_HEAD),
        example("the first steps of a warm-up", *_steps(1e-6, 2e-6, 3e-6, rate=1e-7, planned=1e-3), GUESSING),
        example("the end of a schedule", *_steps(1e-3, 1e-4, 0.0)),
    ),
    judge=_judge_small,
)

RUN806 = Rule(
    code="RUN806",
    name="parameter missing from the optimizer",
    needs=(
        Need(kind="parameter", stat="in_optimizer", phase="update"),
        Need(kind="parameter", stat="update_ratio", phase="update"),
    ),
    measures="which trainable parameters no optimizer of the run holds, and whether they changed all the same",
    severities=("error", "warning"),
    severity="warning; error where none of the model's parameters is held",
    bound="none. Where weights change although no optimizer holds them, it steps copies of them (float32 masters), and "
    "nothing is missing. Frozen parameters are not trainable.",
    explains=("RUN805",),
    why="The parameter gets gradients and keeps its initial value: part of the model stays random, and nothing shows "
    "it but a loss that is somewhat worse.",
    advice=(
        "Make the optimizer from model.parameters() after the last change to the model (resized embeddings, new heads, "
        "adapters).",
        "With parameter groups, check that they cover named_parameters(); with several optimizers, give all of them to "
        "the watch.",
        "Freeze what is not to be trained: parameter.requires_grad_(False).",
    ),
    try_command="evenkeel rules RUN806",
    source="torch.optim's documentation: an optimizer steps the parameters that it was given",
    firing=(
        example(
            "a head that was made after the optimizer",
            _member("layers.0.up.weight", held=True, ratio=1e-3),
            _member("head.weight", held=False, ratio=0.0),
        ),
    ),
    silent=(
        example("all held", *(_member(f"layers.{place}.up.weight", held=True, ratio=1e-3) for place in range(2))),
        example(
            "float32 masters, which the optimizer holds",
            *(_member(f"layers.{place}.up.weight", held=False, ratio=1e-3) for place in range(2)),
        ),
    ),
    judge=_judge_missing,
)
