"""A comparison is drawn whole: every trial, seed and contrast is there, in its place, and no name is obeyed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import study_cases
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from evenkeel.errors import UsageError
from evenkeel.schema import clean_name
from evenkeel.studies.comparison import Comparison, Interval
from evenkeel.studies.drawing import draw_comparison
from evenkeel.studies.exports import EXPORTS
from evenkeel.studies.methods import draw_methods
from evenkeel.studies.scales import Scale, difference_range, loss_range

CASES = (
    study_cases.finished,
    study_cases.partial,
    study_cases.with_bootstrap,
    study_cases.own_objective,
)
SVG = "{http://www.w3.org/2000/svg}"
ESCAPE = "\N{ESCAPE}"

Case = Callable[[], Comparison]


def hostile() -> Comparison:
    return study_cases.renamed(study_cases.finished(), "swiglu", study_cases.HOSTILE)


def sections(drawn: str, title: str) -> list[str]:
    """The lines from a title to the next one."""
    lines = drawn.split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith(title))
    titles = ("arms", "size and speed", "every seed's loss", "losses in", "contrasts:", "intervals", "health")
    rest = lines[start + 1 :]
    end = next((index for index, line in enumerate(rest) if line.startswith(titles)), len(rest))
    return rest[:end]


# --- text


@pytest.mark.parametrize("case", [*CASES, hostile])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_asked(case: Case, width: int) -> None:
    assert max(cell_len(line) for line in draw_comparison(case(), width=width).split("\n")) <= width
    if width == 80:
        assert draw_comparison(case()) == draw_comparison(case(), width=80)
        assert max(map(len, draw_methods(case()).split("\n"))) <= 80


@pytest.mark.parametrize("case", [study_cases.finished, study_cases.with_bootstrap])
def test_every_seeds_loss_stands_in_its_arms_row(case: Case) -> None:
    comparison = case()
    shown = sections(draw_comparison(comparison), "every seed's loss")
    for arm in comparison.arms:
        rows = [line.split()[1:] for line in shown if line.startswith(arm.plan.arm.name)]
        numbers = [number for row in rows for number in row]
        assert [number.rstrip("✗") for number in numbers] == [f"{arm.losses[seed]:.4f}" for seed in sorted(arm.losses)]
        assert sum("✗" in number for number in numbers) == arm.diverged


def test_seeds_are_numbered_above_their_losses() -> None:
    drawn = sections(draw_comparison(study_cases.with_bootstrap()), "every seed's loss")
    headings = [line.split() for line in drawn if re.fullmatch(r"[ \d]+", line) and line.strip()]
    assert [seed for heading in headings for seed in heading] == [str(seed) for seed in range(25)]


def test_losses_have_the_decimals_that_their_noise_allows() -> None:
    drawn = draw_comparison(study_cases.own_objective())
    assert re.search(r"^small +1407 +15 ", drawn, re.MULTILINE)
    assert "losses as the objective gives them" in drawn
    assert "nats" not in drawn


def test_numbers_of_each_arm_are_in_the_tables() -> None:
    comparison = study_cases.finished()
    drawn = draw_comparison(comparison)
    for arm in comparison.arms:
        first = next(line for line in sections(drawn, "arms") if line.startswith(arm.plan.arm.name))
        rate = f"{arm.learning_rate:g}" + "!" * arm.at_edge
        steps = "–" if math.isnan(arm.steps_to_target) else f"{arm.steps_to_target:.0f}"
        assert first.split()[1:6] == [
            f"{arm.mean:.4f}",
            f"{arm.deviation:.4f}",
            str(arm.diverged),
            "of",
            "5" + "✗" * bool(arm.diverged),
        ]
        assert first.split()[6:] == [rate, f"{arm.sensitivity:.4f}", f"{arm.copy_loss:.4f}", steps]
        second = next(line for line in sections(drawn, "size and speed") if line.startswith(arm.plan.arm.name))
        assert second.split()[1:] == [
            f"{arm.plan.parameters:,}",
            f"{100 * arm.plan.difference:+.2f}%",
            f"{arm.plan.flops / 1e6:.2f}",
            f"{arm.tokens_per_second:,.0f}",
        ]


def test_an_unfinished_study_says_so_and_shows_dashes() -> None:
    drawn = draw_comparison(study_cases.partial())
    assert "partial: 12 of 40 trials" in drawn
    assert re.search(r"^swiglu +– +–$", drawn, re.MULTILINE)
    assert "0 pairs so far" in drawn
    assert not re.search(r"\b(nan|inf)\b", drawn, re.IGNORECASE)
    assert "intervals" not in drawn
    assert "partial" not in draw_comparison(study_cases.finished())


def test_contrasts_show_interval_p_and_probability() -> None:
    comparison = study_cases.finished()
    for verdict in comparison.verdicts:
        label = f"{verdict.arm} − {verdict.against}"
        row = next(line for line in sections(draw_comparison(comparison), "contrasts") if line.startswith(label))
        interval = verdict.interval
        assert row.removeprefix(label).split() == [
            verdict.word,
            *(f"{value:+.4f}" for value in (interval.mean, interval.low, interval.high)),
            "0.0123",
            "0.0246",
            f"{verdict.probability:.0%}",
        ]


def test_a_bootstrap_stands_beside_the_interval_only_where_there_is_one() -> None:
    comparison = study_cases.with_bootstrap()
    drawn = draw_comparison(comparison)
    for verdict in comparison.verdicts:
        assert verdict.bootstrap is not None
        assert re.search(
            rf"{verdict.bootstrap.low:+.4f} +{verdict.bootstrap.high:+.4f}$".replace("+0", r"\+0"), drawn, re.M
        )
    assert "bootstrap" not in draw_comparison(study_cases.finished())


@pytest.mark.parametrize("case", [study_cases.finished, study_cases.with_bootstrap, study_cases.own_objective])
def test_an_interval_is_drawn_where_the_axis_says(case: Case) -> None:
    """The ticks of the drawn axis give places their values; mean and ends have to be at theirs, to two places."""
    comparison = case()
    lines = sections(draw_comparison(comparison), "intervals")
    axis = next(index for index, line in enumerate(lines) if "┴" in line)
    places = [place for place, mark in enumerate(lines[axis]) if mark == "┴"]
    values = [float(text) for text in lines[axis + 1].split()]
    assert len(places) == len(values) >= 2
    step = (values[-1] - values[0]) / (places[-1] - places[0])
    slack = 2 * abs(step)
    assert lines[0].index("│") == pytest.approx(places[0] - values[0] / step, abs=1.1)
    for line, verdict in zip(lines, comparison.verdicts, strict=False):
        if "◄" in line or "►" in line:
            continue
        interval = verdict.interval
        for mark, value in (("├", interval.low), ("●", interval.mean), ("┤", interval.high)):
            assert values[0] + (line.index(mark) - places[0]) * step == pytest.approx(value, abs=slack)


def test_an_interval_that_leaves_the_plot_ends_in_arrows() -> None:
    sigmoid = next(line for line in sections(draw_comparison(study_cases.finished()), "intervals") if "sigmoid" in line)
    assert "◄" in sigmoid
    assert "►" in sigmoid
    assert "●" not in sigmoid


def test_what_would_decide_is_said_with_a_command_that_a_shell_reads() -> None:
    comparison = study_cases.finished()
    undecided = comparison.verdicts[2]
    command = "evenkeel compare 'a  name with spaces'=relu,gelu --storage sqlite:///a/long/path/study.sqlite --seeds 17"
    verdicts = (*comparison.verdicts[:2], replace(undecided, command=command))
    drawn = draw_comparison(replace(comparison, verdicts=verdicts))
    start = drawn.index("sigmoid − relu: about 12 more pairs, 9 minutes:\n") + len(
        "sigmoid − relu: about 12 more pairs, 9 minutes:\n"
    )
    typed = drawn[start : drawn.index("\n\n", start)]
    assert "\\\n" in typed
    assert shlex.split(typed.replace("\\\n", "")) == shlex.split(command)
    never = (*comparison.verdicts[:2], replace(undecided, more_pairs=None, more_seconds=None, command=""))
    assert "fewer than 1,000 more pairs would not decide" in draw_comparison(replace(comparison, verdicts=never))


def test_findings_and_health_are_shown_by_arm() -> None:
    drawn = draw_comparison(study_cases.finished())
    assert "sigmoid  ACT101 saturated activation in 5 of 5 trials" in drawn
    assert re.search(r"^small_gradient_share +0\.0400 +0\.0400 +0\.0400 +0\.750$", drawn, re.MULTILINE)


def test_of_many_stats_those_that_differ_most_are_shown() -> None:
    comparison = study_cases.finished()
    arms = [
        replace(arm, health={f"stat_{stat:02}": 1 + index * (stat % 2) * stat for stat in range(30)})
        for index, arm in enumerate(comparison.arms)
    ]
    drawn = draw_comparison(replace(comparison, arms=tuple(arms)))
    assert re.findall(r"^stat_(\d\d)", drawn, re.MULTILINE) == [f"{stat:02}" for stat in range(7, 30, 2)]


def test_colour_is_only_escapes() -> None:
    colored = draw_comparison(hostile(), color=True)
    plain = draw_comparison(hostile())
    assert ESCAPE in colored
    assert ESCAPE not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain
    assert "\u202e" not in plain


def test_long_names_are_numbered_and_listed_in_full() -> None:
    name = "attention.scale=none feedforward.activation=gelu depth=2"
    drawn = draw_comparison(study_cases.renamed(study_cases.finished(), "gelu", name))
    assert re.search(r"^arm 2 +attention\.scale=none feedforward\.activation=gelu depth=2$", drawn, re.MULTILINE)
    assert "arm 2 − arm 1" in drawn
    assert "arm 1" not in draw_comparison(study_cases.finished())


def test_an_infinite_loss_and_one_pair_are_drawn() -> None:
    comparison = study_cases.finished()
    arms = (replace(comparison.arms[0], losses={0: math.inf}, mean=math.inf, deviation=math.nan), *comparison.arms[1:])
    first = replace(
        comparison.verdicts[0],
        word="undecided",
        differences={0: -math.inf},
        interval=Interval(math.nan, -math.inf, math.inf),
        p=1.0,
        adjusted=1.0,
    )
    changed = replace(comparison, arms=arms, verdicts=(first, *comparison.verdicts[1:]))
    drawn = draw_comparison(changed)
    assert re.search(r"^relu +inf +– ", drawn, re.MULTILINE)
    assert re.search(r"^gelu − relu +undecided +– +– +– +– +– +100%$", drawn, re.MULTILINE)
    for export in EXPORTS.values():
        assert export(changed)


# --- methods


def numbers(text: str) -> set[str]:
    return set(re.findall(r"[-+]?\d[\d,.]*\d|\d", text))


def test_methods_hold_every_number() -> None:
    comparison = study_cases.with_bootstrap()
    said = numbers(" ".join(draw_methods(comparison).split("References")[0].split()))
    plans = [arm.plan for arm in comparison.arms]
    wanted = {"400", "819,200", "16", "25", "0.001", "0.016", "0.01", "75", "3", "128", "256", "5,120,331"}
    wanted |= {f"{min(plan.parameters for plan in plans):,}", f"{max(plan.parameters for plan in plans):,}"}
    wanted |= {f"{100 * max(abs(plan.difference) for plan in plans):.2f}"}
    for arm in comparison.arms:
        wanted |= {f"{arm.mean:.4f}", f"{arm.deviation:.4f}", f"{arm.learning_rate:g}", f"{arm.sensitivity:.4f}"}
    for verdict in comparison.verdicts:
        assert verdict.bootstrap is not None
        ends = (*vars(verdict.interval).values(), verdict.bootstrap.low, verdict.bootstrap.high)
        wanted |= {f"{value:+.4f}" for value in ends if value != 0.95}
        wanted |= {"0.0123", "0.0246", f"{100 * verdict.probability:.0f}"}
    assert wanted <= said, wanted - said


def test_methods_name_what_diverged_and_what_is_unfinished() -> None:
    said = " ".join(draw_methods(study_cases.finished()).split())
    assert "Of 20 paired trials 1 diverged, counted with the loss before the first step: sigmoid 1." in said
    assert "sigmoid 0.016 (at the edge)" in said
    assert "about 12 more pairs, 9 minutes" in said
    assert "verified by hash" in said
    partial = " ".join(draw_methods(study_cases.partial()).split())
    assert "12 of 40 trials have run" in partial
    assert not re.search(r"\b(nan|inf)\b", partial, re.IGNORECASE)


def test_hashes_are_called_verified_only_where_they_agree() -> None:
    comparison = study_cases.finished()
    last = comparison.results[-1]
    for hashes in ({}, {**last.hashes, "batches": "other"}):
        results = (*comparison.results[:-1], replace(last, hashes=hashes))
        assert "verified" not in draw_methods(replace(comparison, results=results))


@pytest.mark.parametrize("case", CASES)
def test_what_is_cited_is_listed_and_nothing_else(case: Case) -> None:
    body, references = draw_methods(case()).split("References\n")
    names = re.findall(r"[A-Z]\w+(?: & [A-Z]\w+| et al\.)? \d{4}", " ".join(body.split()))
    listed = re.findall(r"^(\w.*?\d{4})\. ", references, re.MULTILINE)
    assert sorted(set(names)) == sorted(listed)


def test_sources_are_cited_where_they_were_used() -> None:
    finished, own = draw_methods(study_cases.finished()), draw_methods(study_cases.own_objective())
    assert "Shazeer 2020" in finished
    assert "Loshchilov" in finished
    assert "Efron" not in finished
    assert "Efron" in draw_methods(study_cases.with_bootstrap())
    assert "Shazeer" not in own
    assert "Loshchilov" not in own
    assert "mine.py:train" in own
    comparison = study_cases.finished()
    plain = [
        replace(arm, plan=replace(arm.plan, config={**arm.plan.config, "feedforward": {"gated": False}}))
        for arm in comparison.arms
    ]
    assert "Shazeer" not in draw_methods(replace(comparison, arms=tuple(plain)))


# --- exports


def test_exports_are_named() -> None:
    assert tuple(EXPORTS) == ("csv", "latex", "json", "svg")
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        EXPORTS["latec"]


@pytest.mark.parametrize("case", [*CASES, hostile])
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


@pytest.mark.parametrize("case", [*CASES, hostile])
def test_latex_is_balanced_and_escaped(case: Case) -> None:
    drawn = EXPORTS["latex"](case())
    body = re.sub(r"^%.*\n", "", drawn)
    bare = re.sub(r"\\[\\{}&%$#_]", "", body)  # what is left stands for itself
    assert bare.count("{") == bare.count("}") > 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#_~^<>\"|–−�]", bare)
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


@pytest.mark.parametrize("case", [*CASES, hostile])
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


@pytest.mark.parametrize("case", [*CASES, hostile])
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


def test_drawing_loads_no_torch() -> None:
    code = "import sys, evenkeel.studies.exports, evenkeel.studies.methods; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
