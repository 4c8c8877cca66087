"""From the results of trials to what a study shows: the numbers of each arm, the verdict of each contrast.

Every trial counts: one that diverged by its loss at the start, one whose loss is no number by an infinite one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import RecordError
from .comparison import ArmPlan, ArmSummary, Comparison, Verdict
from .founding import Founding
from .points import Point, Role
from .results import TrialResult
from .schedule import agenda, best_of
from .statistics import (
    FEWEST_RESAMPLED,
    bootstrap_interval,
    decide,
    learning_rate_sensitivity,
    more_pairs,
    probability_of_better,
    student_interval,
)
from .study import Study

BY_HASH = ("batches", "held_out")
"""What every trial of a seed has in common, beside first tensors of the same name and shape."""


class Tuning(NamedTuple):
    """What an arm's tuning trials came to so far.

    learning_rate: of the lowest loss; NaN where nothing was tried. at_edge: whether it is the lowest or highest rate
    that was tried. losses: (learning rate, mean loss counted over its seeds), by rate.
    """

    learning_rate: float
    at_edge: bool
    losses: tuple[tuple[float, float], ...]


def tuned(arm: str, results: Iterable[TrialResult]) -> Tuning:
    """The learning rate that suits an arm best; of equal losses the lowest rate's."""
    trials = _trials(arm, "tuning", results)
    by_rate: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.point.learning_rate):
        by_rate[f"{trial.point.learning_rate:.6g}"].append(trial)  # as in Point.key: machines may differ in a last bit
    losses = tuple(
        (group[0].point.learning_rate, _mean(trial.counted_or_worst for trial in group)) for group in by_rate.values()
    )
    if not losses:
        return Tuning(math.nan, False, ())
    best = best_of(losses)
    return Tuning(best, best in (losses[0][0], losses[-1][0]), losses)


def compared(
    founding: Founding,
    study: Study,
    results: Sequence[TrialResult],
    *,
    device: str,
    versions: Mapping[str, str],
    jobs: int = 1,
    command: Callable[[int], str] = lambda seeds: "",
) -> Comparison:
    """All that the results of a study show. study: as it is now; a pair beyond its seeds does not count.

    device, versions: what a trial would be run with now, for results that do not say with what they were. jobs:
    processes that further trials would have. Raises RecordError where trials of a seed do not share what they
    should.
    """
    every, results = results, [item for item in results if item.point.seed < study.seeds or item.point.role == "tuning"]
    arms = summarise(study, founding.plans, results)
    left = agenda(study, results).remaining
    return Comparison(
        study=study,
        founded=founding.study,
        arms=arms,
        verdicts=judge(study, arms, results, command, jobs),
        results=tuple(results),
        steps=founding.steps,
        tokens=founding.tokens,
        wanted=left,
        target=_target(study, next(item.mean for item in arms if item.plan.arm.name == study.baseline)),
        data={"source": founding.source, "digest": founding.digest},
        versions=_versions(results) or versions,
        device=", ".join(sorted({item.device for item in results if item.device})) or device,
        begun=founding.begun,
        finished="" if left else max(item.finished for item in results),
        notes=(
            *check_pairing(results),
            *_left_out(study, len(every) - len(results)),
            *_changed(founding.study, study),
            *_mixed(results),
        ),
    )


def _versions(results: Iterable[TrialResult]) -> dict[str, str]:
    """Of each tool with which trials were run, all versions."""
    found: dict[str, dict[str, None]] = {}
    for tool, number in (pair.split(" ", 1) for item in results for pair in item.versions.split(", ") if " " in pair):
        found.setdefault(tool, {})[number] = None
    return {tool: " and ".join(numbers) for tool, numbers in found.items()}


def _left_out(study: Study, trials: int) -> Iterator[str]:
    if trials:
        yield (
            f"{trials} finished trials of pairs beyond the {study.seeds} asked for are left out: pairs dropped "
            "after a look make false words more frequent"
        )


def _changed(begun: Study, study: Study) -> Iterator[str]:
    """What was changed after the study began, and so perhaps after a look: 5% was not stated for that."""
    if study.seeds > begun.seeds:
        yield (
            f"the study began with {begun.seeds} pairs and has {study.seeds} now: pairs that are added after a look "
            "raise the share of false better and worse, of one contrast from 5% to about 10% (docs/benchmarks.md)"
        )
    for name in ("contrasts", "margin"):
        if getattr(study, name) != getattr(begun, name):
            yield f"the study began with other {name}: the error rates hold for what is stated before the first trial"


def _mixed(results: Sequence[TrialResult]) -> Iterator[str]:
    for what in ("device", "versions"):
        found = sorted({getattr(item, what) for item in results} - {""})
        if len(found) > 1:
            yield f"trials were run on several {what}: {'; '.join(found)}"


def summarise(study: Study, plans: Sequence[ArmPlan], results: Sequence[TrialResult]) -> tuple[ArmSummary, ...]:
    """The numbers of each arm, in the order of the plans; those that no trial gave yet are NaN or empty.

    The baseline is among the plans. Paired trials count at the learning rate that the arm's tuning chose. Means of what
    a watch or a probe gave are over the trials that have it.
    """
    tunings = {plan.arm.name: tuned(plan.arm.name, results) for plan in plans}
    paired = {name: _paired(name, tuning, results) for name, tuning in tunings.items()}
    target = _target(study, _mean(trial.counted_or_worst for trial in paired[study.baseline].values()))
    return tuple(
        _summary(study, plan, tunings[plan.arm.name], paired[plan.arm.name], results, target) for plan in plans
    )


def judge(
    study: Study,
    summaries: Sequence[ArmSummary],
    results: Sequence[TrialResult],
    command: Callable[[int], str] = lambda seeds: "",
    jobs: int = 1,
) -> tuple[Verdict, ...]:
    """The verdict of each contrast, over the seeds that both of its arms have.

    command: what to type for a study of so many pairs; more pairs are more trials of every arm.
    """
    losses = {summary.plan.arm.name: summary.losses for summary in summaries}
    pairs = [_differences(losses[contrast.arm], losses[contrast.against]) for contrast in study.contrasts]
    values = [tuple(differences.values()) for differences in pairs]
    decisions, more = decide(values, study.margin), more_pairs(values, study.margin)
    seconds = _seconds_of_a_pair(study, results) / jobs
    return tuple(
        Verdict(
            arm=contrast.arm,
            against=contrast.against,
            word=decision.word,
            differences=differences,
            interval=student_interval(value),
            bootstrap=bootstrap_interval(value) if len(value) >= FEWEST_RESAMPLED else None,
            p=decision.p,
            adjusted=decision.adjusted,
            probability=probability_of_better(value),
            more_pairs=extra,
            more_seconds=None if extra is None or math.isnan(seconds) else extra * seconds,
            command="" if extra is None else command(max(study.seeds, len(value) + extra)),
        )
        for contrast, differences, value, decision, extra in zip(
            study.contrasts, pairs, values, decisions, more, strict=True
        )
    )


def check_pairing(results: Sequence[TrialResult]) -> tuple[str, ...]:
    """What was verified by hash, in a line each: the trials of a seed share all that does not tell their arms apart.

    Raises RecordError for two trials of one seed whose hashes of one name differ: it is no fair comparison.
    """
    seeds: dict[int, list[TrialResult]] = defaultdict(list)
    for result in results:
        seeds[result.point.seed].append(result)
    shared: set[str] = set()
    for trials in seeds.values():
        shared |= _shared(trials)
    bare = sum(any(name not in result.hashes for name in BY_HASH) for result in results)
    notes = []
    if shared:
        tensors = len(shared - set(BY_HASH))
        notes.append(
            f"verified by hash, in each of {len(seeds)} seeds: the same batches, the same held-out tokens, the same "
            f"first values in the {tensors} tensors that arms have in common"
        )
    if bare:
        notes.append(f"not verified by hash: the data of {bare} of {len(results)} trials, which carry no hashes of it")
    return tuple(notes)


def _shared(trials: Sequence[TrialResult]) -> set[str]:
    """The names whose hash trials of more than one arm have; all trials belong to one seed."""
    first: dict[str, TrialResult] = {}
    shared = set()
    for trial in trials:
        for name, value in trial.hashes.items():
            other = first.setdefault(name, trial)
            if other.hashes[name] != value:
                raise RecordError(_mismatch(name, other, trial))
            if other.point.arm != trial.point.arm:
                shared.add(name)
    return shared


def _mismatch(name: str, one: TrialResult, other: TrialResult) -> str:
    sides = [
        f"{trial.hashes[name][:8]} in {trial.point.key!r} ({trial.worker or 'no worker'})" for trial in (one, other)
    ]
    return (
        f"trials of one seed differ in their {name}: {sides[0]}, {sides[1]}; that is no fair comparison, so give every "
        "worker the same data, evenkeel and torch, and a new --storage"
    )


def _summary(
    study: Study,
    plan: ArmPlan,
    tuning: Tuning,
    paired: Mapping[int, TrialResult],
    results: Iterable[TrialResult],
    target: float,
) -> ArmSummary:
    trials = list(paired.values())
    losses = {seed: trial.counted_or_worst for seed, trial in paired.items()}
    return ArmSummary(
        plan=plan,
        learning_rate=tuning.learning_rate if len(tuning.losses) >= study.tuning_trials else math.nan,
        at_edge=tuning.at_edge,
        tuned=tuning.losses,
        losses=losses,
        mean=_mean(losses.values()),
        deviation=_deviation(list(losses.values())),
        diverged=sum(trial.diverged for trial in trials),
        sensitivity=_sensitivity(study, tuning, _trials(plan.arm.name, "tuning", results)),
        copy_loss=_mean_known(trial.copy_loss for trial in trials),
        steps_to_target=steps_to(target, trials),
        tokens_per_second=_mean_known(trial.tokens_per_second for trial in trials),
        health={
            stat: _mean_known(trial.health.get(stat, math.nan) for trial in trials)
            for stat in dict.fromkeys(stat for trial in trials for stat in trial.health)
        },
        findings=dict(sorted(Counter(code for trial in trials for code in set(trial.findings)).items())),
    )


def steps_to(target: float, trials: Sequence[TrialResult]) -> float:
    """The step at which the mean held-out loss of trials first is the target or below, linear between evaluations.

    A trial counts by its loss at the start wherever it has no finite evaluation. NaN where the mean never gets there.
    """
    curves = [{0: trial.start} | {item.step: item.loss for item in trial.evaluations} for trial in trials]
    before, above = 0.0, math.nan
    for step in sorted({step for curve in curves for step in curve}):
        held_out = (curve.get(step, math.nan) for curve in curves)
        loss = _mean(value if math.isfinite(value) else curve[0] for value, curve in zip(held_out, curves, strict=True))
        if loss <= target:
            return float(step) if math.isnan(above) else before + (step - before) * (above - target) / (above - loss)
        before, above = step, loss
    return math.nan


def _sensitivity(study: Study, tuning: Tuning, trials: Iterable[TrialResult]) -> float:
    """Over the rates that every arm tries, so that arms whose range grew compare with the others; NaN until all are."""
    low, high = study.learning_rates
    losses = [loss for rate, loss in tuning.losses if low * (1 - 1e-6) <= rate <= high * (1 + 1e-6)]
    if len(losses) < study.tuning_trials:
        return math.nan
    best = min((loss for _, loss in tuning.losses), default=math.nan)
    return learning_rate_sensitivity(losses, _mean_known(trial.start for trial in trials), best)


def _trials(arm: str, role: Role, results: Iterable[TrialResult]) -> list[TrialResult]:
    """An arm's trials of a role, each point once."""
    by_key: dict[str, TrialResult] = {}
    for result in results:
        if result.point.arm == arm and result.point.role == role:
            by_key.setdefault(result.point.key, result)
    return list(by_key.values())


def _target(study: Study, baseline: float) -> float:
    """The loss to which steps are counted: the one that the study states, else the baseline's mean."""
    return baseline if study.target is None else study.target


def _paired(arm: str, tuning: Tuning, results: Iterable[TrialResult]) -> dict[int, TrialResult]:
    """An arm's paired trials at its tuned learning rate, by seed."""
    trials = {trial.point.key: trial for trial in _trials(arm, "paired", results)}
    seeds = sorted({trial.point.seed for trial in trials.values()})
    keys = {seed: Point(arm, "paired", tuning.learning_rate, seed).key for seed in seeds}
    return {seed: trials[key] for seed, key in keys.items() if key in trials}


def _differences(losses: Mapping[int, float], against: Mapping[int, float]) -> dict[int, float]:
    """loss − loss against, of the seeds that both have; NaN where both are infinite."""
    return {seed: losses[seed] - against[seed] for seed in sorted(losses.keys() & against.keys())}


def _seconds_of_a_pair(study: Study, results: Sequence[TrialResult]) -> float:
    """How long one more seed of every arm takes; an arm that has no trial yet takes the mean of the others."""
    means = [_mean_known(trial.seconds for trial in _trials(name, "paired", results)) for name in study.names]
    return len(means) * _mean_known(means)


def _mean(values: Iterable[float]) -> float:
    """The mean, NaN of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _mean_known(values: Iterable[float]) -> float:
    """The mean of those that are not NaN."""
    return _mean(value for value in values if not math.isnan(value))


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, NaN of fewer than two and where one is infinite."""
    mean = _mean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return math.nan
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
