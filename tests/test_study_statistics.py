"""The statistics of paired differences, against scipy.stats, closed forms and published tables."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import intervals
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evenkeel import studies
from evenkeel.errors import UsageError
from evenkeel.studies.statistics import (
    bootstrap_interval,
    decide,
    holm,
    learning_rate_sensitivity,
    more_pairs,
    p_of_margin,
    p_of_no_difference,
    probability_of_better,
    student_interval,
)

MARGIN = 0.01
SAMPLES = [
    [0.3, 0.1],
    [-0.012, -0.019, -0.004, -0.02, -0.011],
    [0.001, -0.002, 0.0005, 0.003, -0.001, 0.002, 0.0],
    [5.0, -4.0, 1e-3],
]
NUMBERS = st.lists(st.integers(-1000, 1000).map(lambda number: number / 1024), min_size=2, max_size=12)
FAMILIES = st.lists(NUMBERS, min_size=1, max_size=5)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def alternating(mean: float, spread: float, pairs: int) -> list[float]:
    """Differences with exactly this mean and sample standard deviation; pairs: an even number."""
    step = spread * math.sqrt((pairs - 1) / pairs)
    return [mean + (step if index % 2 else -step) for index in range(pairs)]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_and_p_are_those_of_scipys_paired_t_test(sample: list[float], confidence: float) -> None:
    against = [1.7 + index / 8 for index in range(len(sample))]
    oracle = stats.ttest_rel(numpy.add(sample, against), against)
    ends = oracle.confidence_interval(confidence)
    ours = student_interval(sample, confidence)
    assert (ours.low, ours.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert (ours.mean, ours.confidence) == (pytest.approx(numpy.mean(sample)), confidence)
    assert p_of_no_difference(sample) == pytest.approx(oracle.pvalue, rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_p_of_the_margin_is_the_larger_of_two_one_sided_tests(sample: list[float]) -> None:
    one_sided = [
        stats.ttest_1samp(sample, bound, alternative=side)[1]
        for bound, side in ((-MARGIN, "greater"), (MARGIN, "less"))
    ]
    assert p_of_margin(sample, MARGIN) == pytest.approx(numpy.max(one_sided), rel=1e-9)


@given(NUMBERS)
def test_a_p_below_5_percent_is_a_95_percent_interval_without_0(sample: list[float]) -> None:
    p, ends = p_of_no_difference(sample), student_interval(sample)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (ends.low > 0 or ends.high < 0)


@given(NUMBERS)
def test_a_tie_is_a_90_percent_interval_inside_the_margin(sample: list[float]) -> None:
    p, ends = p_of_margin(sample, 0.3), student_interval(sample, 0.9)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (max(-ends.low, ends.high) < 0.3)


@pytest.mark.parametrize(
    "sample",
    [[], [0.02], [math.nan, 0.1, 0.2], [math.inf, 0.1], [math.inf, -math.inf], [1e308, 1e308], [math.nan] * 3],
)
def test_too_few_differences_and_ones_that_are_not_finite_decide_nothing(sample: list[float]) -> None:
    ends = student_interval(sample)
    assert (ends.low, ends.high) == (-math.inf, math.inf)
    assert ends.mean == 0.02 if sample == [0.02] else math.isnan(ends.mean)
    assert (p_of_no_difference(sample), p_of_margin(sample, MARGIN)) == (1.0, 1.0)
    assert decide([sample], MARGIN)[0].word == "undecided"
    assert more_pairs([sample], MARGIN) == (None,)


@pytest.mark.parametrize(
    ("value", "p", "margin_p", "word"),
    [
        (0.0, 1.0, 0.0, "tie"),
        (0.004, 0.0, 0.0, "tie"),
        (-0.01, 0.0, 1.0, "better"),  # the margin itself is no tie
        (0.1, 0.0, 1.0, "worse"),
    ],
)
@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_differences_that_are_all_equal_leave_no_doubt(
    value: float, p: float, margin_p: float, word: str, pairs: int
) -> None:
    sample = [value] * pairs
    ends = student_interval(sample)
    assert (ends.mean, ends.low, ends.high) == (value, value, value)
    assert (p_of_no_difference(sample), p_of_margin(sample, MARGIN)) == (p, margin_p)
    assert decide([sample], MARGIN)[0].word == word


def test_holms_steps_on_a_worked_example() -> None:
    # α = 0.05 over 0.01, 0.04, 0.03, 0.005: thresholds .0125, .0167, .025, .05 reject 0.005 and 0.01, stop at 0.03
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.4, 0.5, 0.001]) == pytest.approx((0.8, 0.8, 0.003))
    assert holm([0.7, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


@given(PROBABILITIES)
def test_holm_rejects_what_its_thresholds_reject(ps: list[float]) -> None:
    adjusted = holm(ps)
    rejected = set()
    for step, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        if ps[place] * (len(ps) - step) >= 0.05:
            break
        rejected.add(place)
    assert {place for place, value in enumerate(adjusted) if value < 0.05} == rejected


@given(PROBABILITIES)
def test_holms_p_keep_their_order_and_lie_between_the_raw_and_bonferronis(ps: list[float]) -> None:
    adjusted = holm(ps)
    ordered = sorted(zip(ps, adjusted, strict=True))
    assert [value for _, value in ordered] == sorted(adjusted)
    assert all(p <= value <= 1 for p, value in ordered)
    assert min(adjusted) == min(1.0, len(ps) * min(ps))


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.5])
def test_holm_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(UsageError, match=f"a p value is {p} and must lie between 0 and 1"):
        holm([0.5, p])


@given(FAMILIES)
def test_swapping_the_arms_swaps_better_and_worse(family: list[list[float]]) -> None:
    mirrored = {"better": "worse", "worse": "better", "tie": "tie", "undecided": "undecided"}
    swapped = decide([[-value for value in sample] for sample in family], 0.1)
    for one, other in zip(decide(family, 0.1), swapped, strict=True):
        assert other.word == mirrored[one.word]
        assert other[1:] == one[1:]


@given(FAMILIES, NUMBERS)
def test_a_further_contrast_never_decides_one_that_was_undecided(family: list[list[float]], added: list[float]) -> None:
    for alone, among in zip(decide(family, 0.1), decide([*family, added], 0.1), strict=False):
        assert among.adjusted >= alone.adjusted and among.equivalence >= alone.equivalence
        if alone.word == "undecided":
            assert among.word == "undecided"


def test_a_difference_that_is_shown_to_be_less_than_the_margin_is_a_tie() -> None:
    sample = alternating(-0.004, 0.001, 10)
    decision = decide([sample], MARGIN)[0]
    assert decision.adjusted < 0.05
    assert decision.word == "tie"
    assert decide([sample], 0.001)[0].word == "better"


def test_each_contrast_of_a_family_has_its_own_word() -> None:
    family = [
        alternating(-0.1, 0.02, 6),
        alternating(0.1, 0.02, 6),
        alternating(0.0, 0.002, 6),
        alternating(0.01, 0.05, 6),
        [],
    ]
    assert [decision.word for decision in decide(family, MARGIN)] == [
        "better",
        "worse",
        "tie",
        "undecided",
        "undecided",
    ]


def test_what_is_decided_alone_can_be_undecided_among_others() -> None:
    sample = alternating(-0.05, 0.04, 6)
    assert 0.025 < p_of_no_difference(sample) < 0.05
    assert decide([sample], MARGIN)[0].word == "better"
    assert decide([sample, alternating(0.01, 0.05, 6)], MARGIN)[0].word == "undecided"
    tie = alternating(0.0, 0.0118, 6)
    assert 0.025 < p_of_margin(tie, MARGIN) < 0.05
    assert decide([tie], MARGIN)[0].word == "tie"
    assert decide([tie, alternating(0.01, 0.05, 6)], MARGIN)[0].word == "undecided"


@pytest.mark.parametrize(("effect", "wanted"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15)])
def test_more_pairs_are_those_of_published_tables_for_a_paired_t_test(effect: float, wanted: int) -> None:
    # Two-sided, 5%, power 80%: the numbers that G*Power and pwr give for these effects in standard deviations.
    assert more_pairs([alternating(effect, 1.0, 4)], 1e-6) == (wanted - 4,)


def test_more_pairs_for_a_difference_follow_from_the_noncentral_t() -> None:
    for effect in numpy.linspace(0.15, 1.5, 40):
        pairs = numpy.arange(5, 500)
        seen = stats.nct.sf(stats.t.ppf(0.975, pairs - 1), pairs - 1, effect * numpy.sqrt(pairs)) >= 0.8
        assert more_pairs([alternating(effect, 1.0, 4)], 1e-6) == (int(pairs[seen.argmax()]) - 4,)


@pytest.mark.parametrize("mean", [0.0, 0.002])
def test_more_pairs_for_a_tie_have_a_power_of_80_percent(mean: float) -> None:
    spread = 2 * MARGIN
    (more,) = more_pairs([alternating(mean, spread, 4)], MARGIN)
    assert more is not None
    random = numpy.random.default_rng(0)
    for pairs, low, high in ((4 + more, 0.795, 0.82), (1 + more, 0.7, 0.795)):
        draws = mean + spread * random.standard_normal((40_000, pairs))
        reach = stats.t.ppf(0.95, pairs - 1) * draws.std(axis=1, ddof=1) / math.sqrt(pairs)
        assert low < (abs(draws.mean(axis=1)) + reach < MARGIN).mean() < high


def test_more_pairs_are_none_where_decided_and_where_a_thousand_would_not_do() -> None:
    decided, hopeless = alternating(1.0, 0.1, 6), alternating(0.0099, 1.0, 6)
    assert more_pairs([decided, hopeless, [0.3]], MARGIN) == (None, None, None)


def test_more_pairs_stop_at_a_thousand() -> None:
    within, beyond = (next(iter(more_pairs([alternating(effect, 1.0, 4)], 1e-6))) for effect in (0.09, 0.0885))
    assert within is not None and 900 < within <= 1000
    assert beyond is None


def test_a_family_that_is_decided_but_for_one_asks_no_more_of_it_than_a_family_of_one() -> None:
    sample, clear = alternating(0.3, 1.0, 4), alternating(9.0, 0.1, 4)
    assert more_pairs([clear, sample, clear], 1e-6) == (None, *more_pairs([sample], 1e-6), None)
    (_, among) = more_pairs([alternating(0.2, 1.0, 4), sample], 1e-6)
    (alone,) = more_pairs([sample], 1e-6)
    assert among is not None and alone is not None and among > alone


@given(NUMBERS)
def test_more_pairs_are_asked_for_only_by_the_undecided(sample: list[float]) -> None:
    (more,) = more_pairs([sample], 0.05)
    if decide([sample], 0.05)[0].word == "undecided":
        assert more is None or 1 <= more <= 1000
    else:
        assert more is None


@pytest.mark.parametrize("draw", intervals.SHAPES.values(), ids=intervals.SHAPES)
def test_the_bootstrap_interval_is_scipys_bca(draw: intervals.Draw) -> None:
    sample = draw(numpy.random.default_rng(3), (24,))
    oracle = stats.bootstrap(
        (sample,), numpy.mean, method="BCa", n_resamples=200_000, batch=20_000, rng=numpy.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(sample.tolist())
    assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * (oracle.high - oracle.low))
    assert ours.mean == pytest.approx(sample.mean())
    assert bootstrap_interval(sample.tolist()) == ours


def test_a_bootstrap_below_20_pairs_is_refused_with_its_coverage() -> None:
    with pytest.raises(UsageError, match=r"at least 20 pairs and there are 19; .* covers 76, 82 and 89%"):
        bootstrap_interval([0.1, 0.2] * 9 + [0.3])
    assert bootstrap_interval([0.1, 0.2] * 10).low < 0.15


def test_a_bootstrap_of_equal_or_infinite_differences_is_defined() -> None:
    assert bootstrap_interval([0.1] * 20).low == bootstrap_interval([0.1] * 20).high == 0.1
    assert bootstrap_interval([0.1] * 19 + [math.inf]).high == math.inf


def test_the_probability_of_better_counts_ties_half() -> None:
    assert probability_of_better([-1.0, -2.0, 3.0, 0.0]) == 0.625
    assert probability_of_better([math.nan, -math.inf, math.inf, math.inf]) == 0.375
    assert math.isnan(probability_of_better([]))


@given(NUMBERS)
def test_the_probability_of_better_follows_from_the_mean_sign(sample: list[float]) -> None:
    assert probability_of_better(sample) == pytest.approx((1 - numpy.sign(sample).mean()) / 2)


def test_learning_rate_sensitivity_caps_losses_at_the_start() -> None:
    # min(loss, 5.5) − 2: 1, 0, 0.5, 3.5
    assert learning_rate_sensitivity([3.0, 2.0, 2.5, 9.0], start=5.5, best=2.0) == pytest.approx(1.25)
    assert learning_rate_sensitivity([3.0, 2.0, 2.5, math.inf], start=5.5, best=2.0) == pytest.approx(1.25)
    assert learning_rate_sensitivity([3.0, 2.0], start=math.nan, best=1.0) == pytest.approx(1.5)
    assert learning_rate_sensitivity([2.0, 2.0], start=5.5, best=2.0) == 0
    assert math.isnan(learning_rate_sensitivity([], start=5.5, best=2.0))


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_nominal_95_percent_intervals_cover_93_to_97_percent(pairs: int) -> None:
    assert 0.93 <= intervals.coverage("normal", pairs, 2000) <= 0.97


@pytest.mark.parametrize("size", [1, 3, 10])
def test_at_most_5_percent_of_families_hold_a_false_word(size: int) -> None:
    """Within two standard errors of 1,000 simulations; the last line is for a rule that finds no ties at all."""
    none = intervals.words(intervals.families(0, 0.03, size, 5, 1000))
    assert intervals.families_with(none, "better", "worse") <= 0.05 + 0.014
    different = intervals.words(intervals.families(intervals.MARGIN, intervals.MARGIN / 4, size, 5, 1000))
    assert intervals.families_with(different, "tie") <= 0.05 + 0.014
    equal = intervals.words(intervals.families(0, intervals.MARGIN / 4, size, 5, 200))
    assert intervals.contrasts_with(equal, "tie") > 0.95


@pytest.mark.parametrize("size", [1, 3, 10])
def test_a_tenth_of_a_nat_is_decided_with_five_pairs(size: int) -> None:
    found = intervals.words(intervals.families(intervals.PLANTED, intervals.SPREAD, size, 5, 300))
    assert intervals.contrasts_with(found, "worse") > 0.97


def test_the_benchmark_prints_its_three_tables() -> None:
    command = [sys.executable, intervals.__file__, "--simulations", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tables = [part.splitlines() for part in done.stdout.strip().split("\n\n")]
    assert [len(table) for table in tables] == [8, 14, 5]
    assert all(line.count("|") == table[0].count("|") for table in tables for line in table)


def test_importing_the_statistics_loads_neither_scipy_nor_torch() -> None:
    code = "import evenkeel.studies.judging, sys; print({'torch', 'scipy', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_judging_drawing_and_exporting_load_no_torch() -> None:
    code = (
        "import sys, study_cases\n"
        "from evenkeel.studies import EXPORTS, draw_comparison, draw_methods\n"
        "from evenkeel.studies.judging import compared\n"
        "from evenkeel.studies.statistics import decide\n"
        "comparison = study_cases.finished()\n"
        "draws = [draw_comparison, draw_methods, *(EXPORTS[name] for name in EXPORTS)]\n"
        "decide([[0.1, 0.2, 0.3]], 0.01)\n"
        "print(all(draw(comparison) for draw in draws), {'torch', 'numba', 'optuna'} & set(sys.modules))\n"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True set()", done.stderr


def test_every_public_name_of_studies_is_found() -> None:
    assert set(studies.__all__) == set(studies._HOMES)
    assert all(getattr(studies, name) is not None for name in studies.__all__)


def test_a_missing_scipy_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "scipy.py").write_text("raise ImportError('No module named scipy')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from evenkeel.errors import UsageError\n"
        "from evenkeel.studies.statistics import student_interval\n"
        "try: student_interval([0.1, 0.2])\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("pip install 'evenkeel[compare]'"), done.stderr
