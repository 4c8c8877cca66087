"""Exports hold what the comparison holds, can be read by the programs they are for, and obey no name."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
import study_cases
from hypothesis import given
from hypothesis import strategies as st
from study_cases import CASES, Case, hostile, short_and_hostile

from evenkeel.errors import UsageError
from evenkeel.schema import clean_name
from evenkeel.studies.comparison import Comparison
from evenkeel.studies.drawing.exports import EXPORTS
from evenkeel.studies.drawing.scales import Scale, difference_range, loss_range

SVG = "{http://www.w3.org/2000/svg}"


def test_exports_are_named() -> None:
    assert tuple(EXPORTS) == ("csv", "latex", "json", "svg")
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        EXPORTS["latec"]


@pytest.mark.parametrize("case", [*CASES, hostile, short_and_hostile])
def test_csv_has_every_trial_with_all_digits(case: Case) -> None:
    comparison = case()
    rows = list(csv.DictReader(io.StringIO(EXPORTS["csv"](comparison))))
    assert len(rows) == len(comparison.results)
    for row, result in zip(rows, comparison.results, strict=True):
        point = result.point
        assert (row["arm"], row["role"], int(row["seed"])) == (clean_name(point.arm), point.role, point.seed)
        same = {"learning_rate": point.learning_rate, "counted": result.counted}
        same |= {name: getattr(result, name) for name in ("loss", "start", "copy_loss", "seconds", "tokens_per_second")}
        same |= {f"health.{stat}": value for stat, value in result.health.items()}
        if result.evaluations:
            last = result.evaluations[-1]
            same |= {"last_step": last.step, "last_evaluation": last.loss, "diverged": result.diverged}
        for name, value in same.items():
            assert float(row[name]) == value or (math.isnan(value) and row[name] == "NaN"), name
        assert row["findings"].split() == list(result.findings)
        for name in ("batches", "held_out"):
            assert row[name] == result.hashes.get(name, "")[:12]
        assert (row["worker"], row["finished"]) == (result.worker, result.finished)


def test_csv_tells_first_weights_apart() -> None:
    rows = list(csv.DictReader(io.StringIO(EXPORTS["csv"](study_cases.finished()))))
    paired = [row for row in rows if row["role"] == "paired"]
    assert len({row["first_weights"] for row in paired}) == len({row["seed"] for row in paired}) == 5
    assert len({(row["seed"], row["first_weights"]) for row in paired}) == 5


@pytest.mark.parametrize("case", CASES)
def test_json_is_the_comparison(case: Case) -> None:
    assert json.loads(EXPORTS["json"](case())) == json.loads(json.dumps(case().to_dict()))


def rows_of(table: str) -> list[list[str]]:
    """The cells of a LaTeX table, read back to plain text by the meaning of each command."""
    plain = {
        r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"', r"$\pm$": "±", "$-$": "-", "$+$": "+",
        "--": "–", r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}",
    }  # fmt: skip
    pattern = re.compile("|".join(map(re.escape, plain)))
    lines = [line.strip() for line in table.split("\n") if line.endswith(r"\\")]
    cells = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
    return [[pattern.sub(lambda found: plain[found[0]], cell).strip() for cell in row] for row in cells]


@pytest.mark.parametrize("case", [*CASES, hostile, short_and_hostile])
def test_latex_is_balanced_and_escaped(case: Case) -> None:
    drawn = EXPORTS["latex"](case())
    body = re.sub(r"^%.*\n", "", drawn)
    bare = re.sub(r"\\[\\{}&%$#_]", "", body)  # what is left stands for itself
    assert bare.count("{") == bare.count("}") > 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#_~^<>\"|–−�]", bare)
    cells = [line.removesuffix(r"\\") for line in drawn.split("\n") if line.endswith(r"\\")]
    assert not any("\\" in re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}|\$\\pm\$", "", cell) for cell in cells)
    assert drawn.count(r"\begin{tabular}") == drawn.count(r"\end{tabular}") == 2
    for table in drawn.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{(l?r*)\}", table)
        assert columns is not None
        assert {len(row) for row in rows_of(table)} == {len(columns[1])}


def test_latex_tables_hold_arms_and_contrasts() -> None:
    comparison = hostile()
    _, arms, contrasts = EXPORTS["latex"](comparison).split(r"\begin{tabular}")
    names = [clean_name(arm.plan.arm.name).replace("\N{REPLACEMENT CHARACTER}", "?") for arm in comparison.arms]
    assert [row[0] for row in rows_of(arms)[1:]] == names
    for row, verdict in zip(rows_of(contrasts)[1:], comparison.verdicts, strict=True):
        interval = verdict.interval
        ends = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
        assert row[1:] == [f"{interval.mean:+.4f}", ends, "0.0246", f"{verdict.probability:.0%}", verdict.word]


def test_a_latex_row_cannot_be_taken_for_an_argument_of_the_line_before() -> None:
    drawn = EXPORTS["latex"](study_cases.renamed(study_cases.finished(), "gelu", "[2cm] *"))
    assert "{}[2cm] *" in drawn
    assert not re.search(r"\\\\\s*[\[*]", drawn)


def figure(comparison: Comparison) -> ElementTree.Element:
    return ElementTree.fromstring(EXPORTS["svg"](comparison))


def groups(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [item for item in root.iter() if item.get("class") == name]


def title(group: ElementTree.Element) -> str:
    return group.findtext(f"{SVG}title") or ""


@pytest.mark.parametrize("case", [*CASES, hostile, short_and_hostile])
def test_the_figure_has_every_arm_and_contrast(case: Case) -> None:
    comparison = case()
    root = figure(comparison)
    wanted = [f"{clean_name(item.arm)} − {clean_name(item.against)}: {item.word}" for item in comparison.verdicts]
    assert [title(group) for group in groups(root, "contrast")] == wanted
    names = [clean_name(arm.plan.arm.name) for arm in comparison.arms]
    legend = ["".join(group.itertext()).strip() for group in groups(root, "legend")]
    assert len(legend) == len(names)
    assert all(text.endswith(name) for text, name in zip(legend, names, strict=True))
    tuned = [clean_name(arm.plan.arm.name) for arm in comparison.arms if arm.tuned]
    trained = {clean_name(item.point.arm) for item in comparison.results if item.evaluations}
    paired = [name for name in names if name in trained and not comparison.wanted]
    assert [title(group) for group in groups(root, "arm")] == tuned + paired


@pytest.mark.parametrize("case", [*CASES, hostile, short_and_hostile])
def test_the_figure_needs_nothing_from_outside_and_holds_only_numbers(case: Case) -> None:
    drawn = EXPORTS["svg"](case())
    assert {item.tag.removeprefix(SVG) for item in ElementTree.fromstring(drawn).iter()} <= {
        "svg", "title", "rect", "text", "tspan", "g", "circle", "polyline", "polygon",
    }  # fmt: skip
    assert not re.search(r"href|url\(|\bnan\b|\binf\b", drawn)
    for item in ElementTree.fromstring(drawn).iter():
        for name in ("x", "y", "cx", "cy", "r", "points"):
            for number in re.findall(r"[^\s,]+", item.get(name, "")):
                assert math.isfinite(float(number))


def test_a_contrast_without_pairs_says_so_in_the_figure() -> None:
    root = figure(study_cases.partial())
    assert groups(root, "interval") == []
    assert sum(item.text == "no pairs yet" for item in root.iter()) == 3


def test_every_pair_is_in_the_figure() -> None:
    comparison = study_cases.with_bootstrap()
    root = figure(comparison)
    for group, verdict in zip(groups(root, "contrast"), comparison.verdicts, strict=True):
        assert len(groups(group, "pair")) == len(verdict.differences) == 25
    courses = [len(groups(group, "pair")) for group in groups(root, "arm")]
    assert courses == [0, 0, 0, 25, 25, 25]


def test_intervals_and_pairs_lie_where_the_figures_axis_says() -> None:
    """Two ticks of the first axis give places their values."""
    comparison = study_cases.with_bootstrap()
    root = figure(comparison)
    labels = [item for item in root.findall(f"{SVG}text") if re.fullmatch(r"[−+]0\.0\d", item.text or "")]
    ticks = [(float(item.get("x", "")), float((item.text or "").replace("−", "-"))) for item in labels]
    (x, value), (other_x, other_value) = ticks[0], ticks[-1]
    slope = (other_value - value) / (other_x - x)

    def at(place: str | None) -> float:
        return value + slope * (float(place or "nan") - x)

    for group, verdict in zip(groups(root, "contrast"), comparison.verdicts, strict=True):
        low, high = (pair.split(",")[0] for pair in groups(group, "interval")[0].get("points", "").split())
        drawn = [at(low), at(high), at(groups(group, "mean")[0].get("cx"))]
        assert drawn == pytest.approx([verdict.interval.low, verdict.interval.high, verdict.interval.mean], abs=2e-5)
        pairs = [at(item.get("cx")) for item in groups(group, "pair")]
        assert pairs == pytest.approx(list(verdict.differences.values()), abs=2e-5)


def test_the_figures_losses_over_steps_show_the_second_half_large() -> None:
    """The highest median curve is inside its panel from the middle of the steps on, and above it before."""
    group = next(item for item in groups(figure(study_cases.finished()), "arm")[4:] if title(item) == "sigmoid")
    curve = [float(place.split(",")[1]) for place in groups(group, "median")[0].get("points", "").split()]
    panel = figure(study_cases.finished()).findall(f"{SVG}svg")[1]
    top, height = float(panel.get("y", "")), float(panel.get("height", ""))
    assert curve[0] < top - height
    assert all(top - height < y < top + height for y in curve[len(curve) // 2 :])
    assert curve[len(curve) // 2] < top + 0.1 * height


def test_the_chosen_rate_is_ringed_once_for_each_tuned_arm() -> None:
    assert len(groups(figure(study_cases.finished()), "chosen")) == 4
    assert len(groups(figure(study_cases.partial()), "chosen")) == 2


def test_text_stays_inside_the_figure() -> None:
    for comparison in (study_cases.finished(), study_cases.own_objective()):
        root = figure(comparison)
        width, height = float(root.get("width", "")), float(root.get("height", ""))
        for item in root.iter(f"{SVG}text"):
            assert 0 < float(item.get("x", "")) < width
            assert 0 < float(item.get("y", "")) < height


# --- axes


def test_an_axis_of_differences_holds_all_but_outliers() -> None:
    low, high = difference_range([(-0.04, -0.03), (0.0, 0.02)], 0.01)
    assert -0.05 < low < -0.04
    assert 0.02 < high < 0.03
    assert difference_range([(-0.04, -0.03), (0.0, 0.02), (-2.0, 3.0), (-math.inf, 0.0)], 0.01) == (low, high)
    assert difference_range([], 0.01) == pytest.approx((-0.011, 0.011))


def test_an_axis_of_losses_holds_every_curves_best_but_no_explosion() -> None:
    low, high = loss_range([[2.0, 2.1, 2.05], [2.2, 2.02, 1e4]])
    assert 1.9 < low < 2.0
    assert 2.2 < high < 2.3
    low, high = loss_range([[2.0, 2.001, 2.002], [9.0, 9.1]])
    assert low < 2.0 < 9.0 < high


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_round_inside_and_not_too_many(low: float, span: float, most: int) -> None:
    scale = Scale(low, low + span, 0, 100)
    ticks = scale.ticks(most)
    assert len(ticks) <= most
    assert all(low - 1e-9 * abs(low) <= tick <= low + span + 1e-9 * abs(low + span) for tick in ticks)
    steps = [second - first for first, second in itertools.pairwise(ticks)]
    assert all(f"{step:.6e}"[:8] in ("1.000000", "2.000000", "5.000000") for step in steps if span > 1e-3 * abs(low))


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.integers(3, 9))
def test_ticks_of_factors_lie_inside_in_order(low: float, factor: float, most: int) -> None:
    scale = Scale(low, low * factor, 0, 100, logarithmic=True)
    ticks = scale.ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)
    assert scale(math.sqrt(low * low * factor)) == pytest.approx(50)
