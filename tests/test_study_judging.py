"""From results of trials to arms' numbers and verdicts, on results made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evenkeel.errors import RecordError
from evenkeel.studies.comparison import ArmPlan, ArmSummary, Verdict
from evenkeel.studies.judging import check_pairing, judge, steps_to, summarise, tuned
from evenkeel.studies.points import TUNING_SEED, Point
from evenkeel.studies.results import Evaluation, TrialResult
from evenkeel.studies.study import Arm, Contrast, Study

RATES = (1e-3, 4e-3, 1.6e-2)
START = 5.5
BASE = [2.01, 2.05, 1.98, 2.03, 2.0]


def study(*names: str, contrasts: tuple[Contrast, ...] = (), seeds: int = 5, margin: float = 0.01) -> Study:
    """A study whose first arm is the baseline."""
    arms = tuple(Arm(name=name, choices={}) for name in names)
    return Study(
        arms=arms, baseline=names[0], contrasts=contrasts, model={}, tuning_trials=3, seeds=seeds, margin=margin
    )


def plans(of: Study) -> list[ArmPlan]:
    return [ArmPlan(arm=arm, config={}) for arm in of.arms]


def tuning(arm: str, losses: Sequence[float], rates: Sequence[float] = RATES) -> list[TrialResult]:
    """A tuning trial for each rate."""
    points = [Point(arm, "tuning", rate, TUNING_SEED) for rate in rates]
    return [TrialResult(point=point, loss=loss, start=START) for point, loss in zip(points, losses, strict=True)]


def paired(arm: str, losses: Sequence[float] | Mapping[int, float], rate: float = 4e-3) -> list[TrialResult]:
    """A trial for each seed, of 30 seconds."""
    by_seed = losses if isinstance(losses, Mapping) else dict(enumerate(losses))
    return [
        TrialResult(point=Point(arm, "paired", rate, seed), loss=loss, start=START, seconds=30.0)
        for seed, loss in by_seed.items()
    ]


def both(arm: str, losses: Sequence[float] | Mapping[int, float]) -> list[TrialResult]:
    """Tuning whose best is the middle rate, and the paired trials."""
    return tuning(arm, [2.5, 2.1, 3.0]) + paired(arm, losses)


def verdicts(of: Study, results: Sequence[TrialResult], **options) -> tuple[Verdict, ...]:
    return judge(of, summarise(of, plans(of), results), results, **options)


def summary(name: str, of: Study, results: Sequence[TrialResult]) -> ArmSummary:
    (found,) = [item for item in summarise(of, plans(of), results) if item.plan.arm.name == name]
    return found


@pytest.mark.parametrize(
    ("losses", "best", "at_edge"),
    [([2.5, 2.1, 3.0], 4e-3, False), ([2.0, 2.1, 3.0], 1e-3, True), ([2.5, 2.1, 2.0], 1.6e-2, True)],
)
def test_the_tuned_rate_has_the_lowest_loss_and_says_whether_it_is_an_end(
    losses: list[float], best: float, at_edge: bool
) -> None:
    found = tuned("relu", tuning("relu", losses)[::-1] + tuning("gelu", [1.0, 9.0, 9.0]) + paired("relu", [0.0], 1e-3))
    assert found == (best, at_edge, tuple(zip(RATES, losses, strict=True)))


def test_tuning_takes_the_mean_over_its_seeds_and_counts_divergence_and_nan() -> None:
    lucky = [replace(trial, point=replace(trial.point, seed=TUNING_SEED + 1)) for trial in tuning("a", [2.9, 2.2, 9.0])]
    trials = tuning("a", [2.0, 2.2, math.nan]) + lucky
    assert tuned("a", trials).learning_rate == 4e-3
    first, *others = tuning("a", [0.1, 2.1, math.nan])
    found = tuned("a", [replace(first, diverged=True), *others])
    assert found == (4e-3, False, ((1e-3, START), (4e-3, 2.1), (1.6e-2, math.inf)))


def test_rates_that_differ_in_a_last_bit_are_one_rate() -> None:
    moved = math.nextafter(4e-3, 1)
    trials = tuning("a", [2.5, 2.1, 3.0]) + tuning("a", [2.3], [moved])
    trials[-1] = replace(trials[-1], point=replace(trials[-1].point, seed=TUNING_SEED + 1))
    assert [loss for _, loss in tuned("a", trials).losses] == pytest.approx([2.5, 2.2, 3.0])
    of = study("a", "b")
    assert list(summary("a", of, trials + paired("a", BASE, moved)).losses.values()) == BASE


def test_an_arm_without_trials_has_numbers_that_are_nan() -> None:
    of = study("relu", "gelu")
    found = summary("gelu", of, both("relu", BASE))
    assert math.isnan(found.learning_rate) and math.isnan(found.mean) and math.isnan(found.deviation)
    assert math.isnan(found.sensitivity) and math.isnan(found.steps_to_target)
    assert (found.losses, found.tuned, found.diverged, found.at_edge) == ({}, (), 0, False)
    (verdict,) = verdicts(of, both("relu", BASE))
    assert (verdict.word, verdict.differences, verdict.p, verdict.more_pairs) == ("undecided", {}, 1.0, None)
    assert math.isnan(verdict.probability)


def test_the_learning_rate_is_nan_until_every_rate_was_tried() -> None:
    of = study("relu", "gelu")
    assert math.isnan(summary("relu", of, tuning("relu", [2.5, 2.1], RATES[:2])).learning_rate)
    assert summary("relu", of, tuning("relu", [2.5, 2.1, 3.0])).learning_rate == 4e-3


def test_a_summary_has_the_mean_and_deviation_of_its_seeds() -> None:
    found = summary("relu", study("relu", "gelu"), both("relu", {8: 2.0, 0: 2.01, 2: 1.98, 1: 2.05, 3: 2.03}))
    assert list(found.losses.items()) == list(zip((0, 1, 2, 3, 8), BASE, strict=True))
    assert found.mean == pytest.approx(numpy.mean(BASE))
    assert found.deviation == pytest.approx(numpy.std(BASE, ddof=1))


def test_paired_trials_at_another_rate_and_a_point_that_comes_twice_do_not_count() -> None:
    of = study("relu", "gelu")
    results = paired("relu", [9.0] * 5, 1e-3) + both("relu", BASE) + paired("relu", [8.0] * 5)
    assert list(summary("relu", of, results).losses.values()) == BASE
    assert len(summary("relu", of, results).tuned) == 3


def test_diverged_trials_count_with_their_start_and_a_loss_of_nan_as_infinite() -> None:
    of = study("relu", "gelu")
    results = both("relu", BASE) + both("gelu", [2.0, math.nan, 0.3, 2.0, 2.0])
    results = [replace(item, diverged=True) if item.loss == 0.3 else item for item in results]
    found = summary("gelu", of, results)
    assert found.diverged == 1
    assert found.losses == {0: 2.0, 1: math.inf, 2: START, 3: 2.0, 4: 2.0}
    assert found.mean == math.inf and math.isnan(found.deviation)
    (verdict,) = verdicts(of, results)
    assert verdict.differences[2] == pytest.approx(START - 1.98)
    assert (verdict.word, verdict.more_pairs) == ("undecided", None)
    assert verdict.probability == pytest.approx((1 + 0 + 0 + 1 + 0.5) / 5)
    json.dumps([verdict.to_dict(), found.to_dict()], allow_nan=False)


def test_sensitivity_is_over_the_rates_that_all_arms_try() -> None:
    of = study("relu", "gelu")
    assert summary("relu", of, tuning("relu", [2.5, 2.1, 9.0])).sensitivity == pytest.approx((0.4 + 0 + 3.4) / 3)
    grown = tuning("relu", [2.5, 2.1, 2.0, 1.9, 2.2], (*RATES, 3.2e-2, 6.4e-2))
    assert summary("relu", of, grown).sensitivity == pytest.approx((0.6 + 0.2 + 0.1) / 3)


def test_means_of_probes_are_over_the_trials_that_have_them() -> None:
    results = both("relu", BASE)
    results[3] = replace(results[3], copy_loss=1.0, health={"dead_share": 0.2}, tokens_per_second=100.0)
    results[4] = replace(results[4], copy_loss=2.0, health={"dead_share": 0.4, "entropy": 3.0}, findings=("ACT102",))
    results[5] = replace(results[5], tokens_per_second=300.0, findings=("ACT102", "ACT102", "GRD501"))
    found = summary("relu", study("relu", "gelu"), results)
    assert (found.copy_loss, found.tokens_per_second) == (1.5, 200.0)
    assert found.health == {"dead_share": pytest.approx(0.3), "entropy": 3.0}
    assert found.findings == {"ACT102": 2, "GRD501": 1}


def curve(seed: int, *losses: float, start: float = START) -> TrialResult:
    """A trial with an evaluation every 100 steps."""
    evaluations = tuple(Evaluation(step=100 * (index + 1), loss=loss) for index, loss in enumerate(losses))
    return TrialResult(point=Point("a", "paired", 4e-3, seed), loss=losses[-1], start=start, evaluations=evaluations)


@pytest.mark.parametrize(
    ("target", "steps"),
    [(3.0, 100), (2.5, 150), (2.0, 200), (1.95, 225), (4.25, 50), (6.0, 0), (5.5, 0), (1.7, math.nan)],
)
def test_steps_to_a_loss_are_linear_between_evaluations(target: float, steps: float) -> None:
    assert steps_to(target, [curve(0, 3.0, 2.0, 1.8)]) == pytest.approx(steps, nan_ok=True)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=8), st.floats(0, 9))
def test_the_curve_is_at_the_target_where_it_first_passes(losses: list[float], target: float) -> None:
    steps, values = [100 * index for index in range(len(losses) + 1)], [START, *losses]
    found = steps_to(target, [curve(0, *losses)])
    if math.isnan(found):
        assert min(values) > target
    else:
        assert numpy.interp(found, steps, values) <= target + 1e-6
        assert all(value > target for step, value in zip(steps, values, strict=True) if step < found - 1e-6)


def test_steps_to_a_loss_are_of_the_mean_curve_so_that_the_baseline_always_gets_to_its_own() -> None:
    trials = [curve(0, 3.0, 2.0), curve(1, 3.0, 2.2)]
    assert steps_to(2.1, trials) == pytest.approx(200)
    assert steps_to(2.55, trials) == pytest.approx(150)
    stopped = [curve(0, 3.0, 2.0), curve(1, 3.0, math.nan), curve(2, 3.0)]
    assert steps_to(3.0, stopped) == pytest.approx(100)
    assert math.isnan(steps_to(2.9, stopped))
    low = [replace(trial, start=3.1) for trial in stopped]  # 2, 3.1 and 3.1 at the last step, where two have stopped
    assert steps_to(2.9, low) == pytest.approx(100 + 100 * 0.1 / (3.0 - 8.2 / 3))
    assert math.isnan(steps_to(2.0, []))


def test_steps_to_a_loss_without_a_known_start_begin_with_the_first_evaluation() -> None:
    assert steps_to(3.5, [curve(0, 3.0, 2.0, start=math.nan)]) == 100
    assert steps_to(2.5, [curve(0, 3.0, 2.0, start=math.nan)]) == pytest.approx(150)


def test_the_target_is_the_studys_or_the_baselines_mean() -> None:
    results = both("relu", [2.0, 3.0]) + both("gelu", [1.0, 1.0])
    shape = (Evaluation(step=100, loss=4.0), Evaluation(step=200, loss=1.0))
    results = [replace(item, evaluations=shape) if item.point.arm == "gelu" else item for item in results]
    assert summary("gelu", study("relu", "gelu"), results).steps_to_target == pytest.approx(150)
    stated = replace(study("relu", "gelu"), target=3.25)
    assert summary("gelu", stated, results).steps_to_target == pytest.approx(125)


def test_a_verdict_is_over_paired_differences() -> None:
    better = [loss - 0.1 + wobble for loss, wobble in zip(BASE, [0.0, 0.01, -0.01, 0.005, -0.005], strict=True)]
    of = study("relu", "gelu", "tanh")
    results = both("relu", BASE) + both("gelu", better) + both("tanh", [loss + 0.5 for loss in better])
    gelu, tanh = verdicts(of, results, command=lambda seeds: f"--seeds {seeds}")
    oracle = stats.ttest_rel(better, BASE)
    assert (gelu.arm, gelu.against, gelu.word, tanh.word) == ("gelu", "relu", "better", "worse")
    assert gelu.differences == pytest.approx({seed: better[seed] - BASE[seed] for seed in range(5)})
    assert gelu.interval.high == pytest.approx(oracle.confidence_interval().high)
    assert gelu.adjusted == pytest.approx(oracle.pvalue)  # the larger of the two
    assert tanh.adjusted == pytest.approx(2 * tanh.p)
    assert (gelu.probability, tanh.probability, gelu.bootstrap) == (1.0, 0.0, None)
    assert (gelu.more_pairs, gelu.more_seconds, gelu.command) == (None, None, "")


def test_the_noise_that_seeds_share_does_not_hide_a_difference() -> None:
    base = [2.0, 3.0, 4.0, 5.0, 6.0]
    results = both("relu", base) + both("gelu", [2.101, 3.099, 4.102, 5.098, 6.1])
    assert verdicts(study("relu", "gelu"), results)[0].word == "worse"


def test_only_seeds_of_both_arms_are_pairs() -> None:
    results = both("relu", {0: 2.0, 1: 2.1, 3: 2.2}) + both("gelu", {1: 1.9, 2: 1.0, 3: 2.05})
    (verdict,) = verdicts(study("relu", "gelu"), results)
    assert verdict.differences == pytest.approx({1: -0.2, 3: -0.15})
    assert verdict.interval.mean == pytest.approx(-0.175)


def test_twenty_pairs_have_a_bootstrap_beside_the_t_interval() -> None:
    random = numpy.random.default_rng(0)
    base = random.normal(2, 0.05, 20)
    other = base + random.normal(0.02, 0.02, 20)
    of = study("relu", "gelu", seeds=20)
    (verdict,) = verdicts(of, both("relu", base.tolist()) + both("gelu", other.tolist()))
    assert verdict.bootstrap is not None
    assert verdict.bootstrap.low == pytest.approx(verdict.interval.low, abs=0.003)
    (verdict,) = verdicts(of, both("relu", base[:19].tolist()) + both("gelu", other.tolist()))
    assert verdict.bootstrap is None


def test_an_undecided_contrast_says_how_many_pairs_and_seconds_and_what_to_type() -> None:
    of = study("relu", "gelu", "tanh", contrasts=(Contrast("gelu", "relu"),), margin=1e-6)
    spread = math.sqrt(3 / 4)
    shifted = [
        2 + 0.5 + step for step in (spread, -spread, spread, -spread)
    ]  # half a deviation: 34 pairs by the tables
    results = both("relu", [2.0] * 4) + both("gelu", shifted)
    (verdict,) = verdicts(of, results, command=lambda seeds: f"evenkeel compare --resume --seeds {seeds}")
    assert (verdict.word, verdict.more_pairs) == ("undecided", 30)
    assert verdict.command == "evenkeel compare --resume --seeds 34"
    assert verdict.more_seconds == pytest.approx(30 * 3 * 30.0)  # of three arms, one of which has no trial yet
    timeless = [replace(item, seconds=math.nan) for item in results]
    assert verdicts(of, timeless)[0].more_seconds is None


def test_a_study_that_is_not_finished_is_never_told_to_have_fewer_seeds() -> None:
    of = study("relu", "gelu", seeds=50, margin=1e-6)
    spread = math.sqrt(3 / 4)
    results = both("relu", [2.0] * 4) + both("gelu", [2.5 + step for step in (spread, -spread, spread, -spread)])
    assert verdicts(of, results, command=str)[0].command == "50"


def test_holm_is_over_the_contrasts_of_the_study() -> None:
    shifted = [loss + 0.05 + step for loss, step in zip(BASE, [0.03, -0.03, 0.04, -0.04, 0.0], strict=True)]
    noise = [loss + step for loss, step in zip(BASE, [0.3, -0.3, 0.4, -0.4, 0.01], strict=True)]
    results = both("relu", BASE) + both("gelu", shifted) + both("tanh", noise)
    alone = study("relu", "gelu", "tanh", contrasts=(Contrast("gelu", "relu"),))
    assert verdicts(alone, results)[0].word == "worse"
    gelu, _ = verdicts(study("relu", "gelu", "tanh"), results)
    assert gelu.word == "undecided"
    assert gelu.adjusted == pytest.approx(2 * gelu.p)


def hashed(arm: str, seed: int, **changes: str) -> TrialResult:
    """A paired trial with hashes; arms share the embedding and differ in their feed-forward's shape."""
    own = {f"parameter up ({arm})": f"{arm}{seed}"}
    hashes = {"batches": f"b{seed}", "held_out": "h", "parameter embed (64, 8)": f"e{seed}", **own}
    names = {"embed": "parameter embed (64, 8)"}
    hashes |= {names.get(name, name): value for name, value in changes.items()}
    return TrialResult(point=Point(arm, "paired", 4e-3, seed), loss=2.0, hashes=hashes, worker=f"host-{arm}")


def test_pairs_that_share_data_and_first_weights_are_said_to() -> None:
    results = [hashed(arm, seed) for arm in ("relu", "gelu") for seed in (0, 1)]
    assert check_pairing(results) == (
        "verified by hash, in each of 2 seeds: the same batches, the same held-out tokens, the same first values in "
        "the 1 tensors that arms have in common",
    )
    assert check_pairing([]) == ()


@pytest.mark.parametrize(
    ("name", "shown"), [("batches", "batches"), ("held_out", "held_out"), ("embed", "parameter embed (64, 8)")]
)
@pytest.mark.parametrize("arm", ["relu", "gelu"])
def test_a_pair_that_differs_where_it_must_not_is_refused(name: str, shown: str, arm: str) -> None:
    results = [hashed("relu", 0), hashed("gelu", 0), hashed("relu", 1), hashed(arm, 1, **{name: "other"})]
    with pytest.raises(RecordError) as caught:
        check_pairing(results)
    message = str(caught.value)
    assert f"differ in their {shown}:" in message and "other in" in message and f"host-{arm}" in message
    assert "\n" not in message


def test_trials_without_hashes_are_said_not_to_be_verified() -> None:
    bare = [replace(hashed(arm, 0), hashes={}) for arm in ("relu", "gelu")]
    assert check_pairing(bare) == ("not verified by hash: the data of 2 of 2 trials, which carry no hashes of it",)
    some = check_pairing([hashed("relu", 0), hashed("gelu", 0), *(replace(item, hashes={}) for item in bare[:1])])
    assert len(some) == 2 and "1 of 3 trials" in some[1]
