"""Hand-made comparisons: a finished one, a partial one, one with a bootstrap, one with a user's own objective."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evenkeel.studies.comparison import ArmPlan, ArmSummary, Comparison, Interval, Verdict, VerdictWord
from evenkeel.studies.points import TUNING_SEED, Point
from evenkeel.studies.results import Evaluation, TrialResult
from evenkeel.studies.study import Arm, Contrast, Study

START = 5.545
HOSTILE = '<b x="1">&\x1b[31m_a%$#{~^}\\[/x]\u202e'

Case = Callable[[], Comparison]

_STUDENT = {5: 2.776, 25: 2.064}  # the 97.5% point with one degree of freedom less
_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
_VERSIONS = {"evenkeel": "0.1.0", "torch": "2.13.0", "python": "3.11.4"}


def finished() -> Comparison:
    """Four arms, five pairs; swiglu is better, gelu ties, sigmoid is undecided since one trial diverged."""
    losses = {"relu": 1.9974, "gelu": 1.9921, "swiglu": 1.9598, "sigmoid": 2.0862}
    return _comparison(
        _study(tuple(losses)),
        {name: _around(loss, 0.0041, 5, name) for name, loss in losses.items()},
        {"gelu": "tie", "swiglu": "better", "sigmoid": "undecided"},
        diverged={("sigmoid", 3)},
        notes=("tokens per second were measured while other work ran",),
    )


def partial() -> Comparison:
    """The same study after twelve tuning trials: no pair has run."""
    whole = finished()
    tuned = tuple(item for item in whole.results if item.point.role == "tuning")[:12]
    arms = [
        replace(
            arm,
            losses={},
            tuned=tuple((item.point.learning_rate, item.loss) for item in tuned if item.point.arm == arm.plan.arm.name),
            diverged=0,
            health={},
            findings={},
            **dict.fromkeys(("mean", "deviation", "copy_loss", "steps_to_target", "tokens_per_second"), math.nan),
        )
        for arm in whole.arms
    ]
    arms[2:] = [replace(arm, learning_rate=math.nan, at_edge=False, sensitivity=math.nan) for arm in arms[2:]]
    nothing = Interval(math.nan, -math.inf, math.inf)
    verdicts = [
        replace(
            item,
            word="undecided",
            bootstrap=None,
            command="",
            differences={},
            interval=nothing,
            more_pairs=None,
            more_seconds=None,
            p=1.0,
            adjusted=1.0,
            probability=math.nan,
        )
        for item in whole.verdicts
    ]
    return replace(
        whole, arms=tuple(arms), verdicts=tuple(verdicts), results=tuple(tuned), wanted=28, target=math.nan, finished=""
    )


def with_bootstrap() -> Comparison:
    """Three arms, 25 pairs, contrasts that are not against the baseline: one worse, one a tie."""
    losses = {"relu": 1.9974, "geglu": 1.9632, "swiglu": 1.9631}
    study = _study(tuple(losses), seeds=25, contrasts=(("geglu", "relu"), ("relu", "swiglu"), ("geglu", "swiglu")))
    drawn = {name: _around(loss, 0.0047, 25, name) for name, loss in losses.items()}
    words: dict[str, VerdictWord] = {"geglu": "better", "relu": "worse", "geglu − swiglu": "tie"}
    return _comparison(study, drawn, words)


def own_objective() -> Comparison:
    """Two arms of a user's own objective: no config, no steps, no evaluations, losses of another size."""
    study = _study(("small", "large"), objective="mine.py:train", model={}, margin=5.0)
    drawn = {"small": (1412.0, 1390.5, 1431.2, 1402.3, 1399.9), "large": (1391.1, 1379.2, 1420.4, 1388.8, 1371.6)}
    made = _comparison(study, drawn, {"large": "undecided"})
    arms = tuple(
        replace(
            arm,
            plan=ArmPlan(arm=arm.plan.arm, config={}),
            health={},
            findings={},
            **dict.fromkeys(("copy_loss", "steps_to_target", "tokens_per_second"), math.nan),
        )
        for arm in made.arms
    )
    results = tuple(
        replace(item, evaluations=(), health={}, hashes={}, start=math.nan, copy_loss=math.nan) for item in made.results
    )
    return replace(made, arms=arms, results=results, steps=0, tokens=0, data={})


def hostile() -> Comparison:
    """The finished study with a name that is long and full of markup."""
    return renamed(finished(), "swiglu", HOSTILE)


def short_and_hostile() -> Comparison:
    """The finished study with a name that clears a terminal, and is short enough to be shown in tables."""
    return renamed(finished(), "gelu", "g\x1b[2J<i>")


CASES: tuple[Case, ...] = (finished, partial, with_bootstrap, own_objective)


def renamed(comparison: Comparison, old: str, new: str) -> Comparison:
    """The same comparison with an arm called otherwise."""

    def name(text: str) -> str:
        return new if text == old else text

    study = comparison.study
    arms = tuple(replace(arm, name=name(arm.name)) for arm in study.arms)
    contrasts = tuple(replace(item, arm=name(item.arm), against=name(item.against)) for item in study.contrasts)
    return replace(
        comparison,
        study=replace(study, arms=arms, baseline=name(study.baseline), contrasts=contrasts),
        arms=tuple(
            replace(item, plan=replace(item.plan, arm=arm)) for item, arm in zip(comparison.arms, arms, strict=True)
        ),
        verdicts=tuple(replace(item, arm=name(item.arm), against=name(item.against)) for item in comparison.verdicts),
        results=tuple(
            replace(item, point=replace(item.point, arm=name(item.point.arm))) for item in comparison.results
        ),
    )


def _study(names: Sequence[str], contrasts: Sequence[tuple[str, str]] = (), **fields: Any) -> Study:
    return Study(
        **{
            "arms": tuple(Arm(name=name, choices=_choices(name)) for name in names),
            "baseline": names[0],
            "contrasts": tuple(Contrast(*item) for item in contrasts),
            "model": {"depth": 4, "d_model": 128, "context": 128},
            "steps": 400,
            **fields,
        }
    )


def _choices(name: str) -> dict[str, Any]:
    gated = name.endswith("glu")
    return {"feedforward.activation": {"swiglu": "silu", "geglu": "gelu"}.get(name, name), "feedforward.gated": gated}


def _around(loss: float, deviation: float, seeds: int, name: str) -> tuple[float, ...]:
    """Losses of pairs: one part of the noise is the seed's and the same in every arm, the other is the arm's."""
    shared, own = random.Random("seeds"), random.Random(name)
    return tuple(loss + shared.gauss(0, deviation) + own.gauss(0, deviation / 2) for _ in range(seeds))


def _comparison(
    study: Study,
    losses: Mapping[str, Sequence[float]],
    words: Mapping[str, VerdictWord],
    *,
    diverged: set[tuple[str, int]] | None = None,
    notes: tuple[str, ...] = (),
) -> Comparison:
    results = []
    for arm in study.names:
        mean = statistics.mean(losses[arm])
        results += [_result(arm, "tuning", rate, TUNING_SEED, loss) for rate, loss in _bowl(mean, _best(arm))]
        for seed, loss in enumerate(losses[arm]):
            results.append(_result(arm, "paired", _best(arm), seed, loss, diverged=(arm, seed) in (diverged or ())))
    arms = tuple(_summary(arm, results) for arm in study.arms)
    counted = {arm.plan.arm.name: arm.losses for arm in arms}
    return Comparison(
        study=study,
        founded=study,
        arms=arms,
        verdicts=tuple(
            _verdict(counted, item.arm, item.against, words.get(f"{item.arm} − {item.against}") or words[item.arm])
            for item in study.contrasts
        ),
        results=tuple(results),
        steps=400,
        tokens=819_200,
        wanted=0,
        target=arms[0].mean,
        data={"source": "Python's standard library", "bytes": 5_120_331, "sha256": "4be1" * 16},
        versions=_VERSIONS,
        device="cpu, 2 threads",
        begun="2026-03-01T10:00:00Z",
        finished="2026-03-01T10:09:12Z",
        notes=notes,
    )


def _best(arm: str) -> float:
    """The learning rate at which an arm is best: sigmoid's is at the edge."""
    return _RATES[-1] if arm == "sigmoid" else 0.004


def _bowl(loss: float, best: float) -> list[tuple[float, float]]:
    return [(rate, loss + 0.03 * (math.log2(rate / best) + 0.2) ** 2) for rate in _RATES]


def _result(arm: str, role: Any, rate: float, seed: int, loss: float, *, diverged: bool = False) -> TrialResult:
    last = 7.25 if diverged else loss
    path = [last + (START - last) * math.exp(-step / 60) for step in range(0, 401, 20)]
    return TrialResult(
        point=Point(arm, role, rate, seed),
        loss=last,
        start=START,
        diverged=diverged,
        evaluations=tuple(Evaluation(step=20 * index, loss=value) for index, value in enumerate(path)),
        copy_loss=loss / 2,
        health={"small_gradient_share": 0.04 + (arm == "sigmoid") * 0.71, "entropy_relative": 0.62, "max_logit": 11.25},
        findings=("ACT101",) if arm == "sigmoid" else (),
        hashes={"batches": f"{seed:064x}", "held_out": "ab" * 32, "parameter embedding.weight": f"{seed + 1:064x}"},
        seconds=9.75 + seed / 8,
        tokens_per_second=84_020.0 - 900 * len(arm),
        worker="host-1",
        finished=f"2026-03-01T10:0{seed % 10}:30Z",
    )


def _summary(arm: Arm, results: Sequence[TrialResult]) -> ArmSummary:
    own = [item for item in results if item.point.arm == arm.name]
    paired = [item for item in own if item.point.role == "paired"]
    losses = {item.point.seed: item.counted for item in paired}
    tuned = tuple((item.point.learning_rate, item.counted) for item in own if item.point.role == "tuning")
    config = {
        "depth": 4,
        "d_model": 128,
        "context": 128,
        "vocabulary": 256,
        "attention": {"heads": 4},
        "feedforward": {"activation": arm.choices["feedforward.activation"], "gated": arm.choices["feedforward.gated"]},
    }
    larger = 171 * len(arm.name)
    return ArmSummary(
        plan=ArmPlan(
            arm=arm,
            config=config,
            parameters=713_000 + larger,
            flops=4_512_000 + 12 * larger,
            difference=(larger - 684) / 713_684,
        ),
        learning_rate=_best(arm.name),
        at_edge=arm.name == "sigmoid",
        tuned=tuned,
        losses=losses,
        mean=statistics.mean(losses.values()),
        deviation=statistics.stdev(losses.values()),
        diverged=sum(item.diverged for item in paired),
        sensitivity=statistics.mean(loss for _, loss in tuned) - min(loss for _, loss in tuned),
        copy_loss=statistics.mean(item.copy_loss for item in paired),
        steps_to_target=math.nan if arm.name == "sigmoid" else 340.0 - 10 * len(arm.name),
        tokens_per_second=paired[0].tokens_per_second,
        health=paired[0].health,
        findings={"ACT101": len(paired)} if arm.name == "sigmoid" else {},
    )


def _verdict(losses: Mapping[str, Mapping[int, float]], arm: str, against: str, word: VerdictWord) -> Verdict:
    differences = {seed: loss - losses[against][seed] for seed, loss in losses[arm].items()}
    values = list(differences.values())
    mean = statistics.mean(values)
    half = _STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return Verdict(
        arm=arm,
        against=against,
        word=word,
        differences=differences,
        interval=Interval(mean, mean - half, mean + half),
        bootstrap=Interval(mean, mean - 0.9 * half, mean + 0.95 * half) if len(values) >= 20 else None,
        p=0.0123,
        adjusted=0.0246,
        probability=sum(value < 0 for value in values) / len(values),
        more_pairs=12 if word == "undecided" else None,
        more_seconds=552.0 if word == "undecided" else None,
        command="evenkeel compare feedforward=relu,gelu,swiglu,sigmoid --storage sqlite:///study.sqlite --seeds 17"
        if word == "undecided"
        else "",
    )
