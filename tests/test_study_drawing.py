"""A comparison is drawn whole: every trial, seed and contrast is there, in its place, and no name is obeyed."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace

import pytest
import study_cases
from rich.cells import cell_len
from study_cases import CASES, Case, hostile, short_and_hostile

from evenkeel.studies.comparison import Interval
from evenkeel.studies.drawing.exports import EXPORTS
from evenkeel.studies.drawing.methods import draw_methods
from evenkeel.studies.drawing.text import draw_comparison

ESCAPE = "\N{ESCAPE}"


def sections(drawn: str, title: str) -> list[str]:
    """The lines from a title to the next one."""
    lines = drawn.split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith(title))
    titles = ("arms", "size and speed", "every seed's loss", "losses in", "contrasts:", "intervals", "health")
    rest = lines[start + 1 :]
    end = next((index for index, line in enumerate(rest) if line.startswith(titles)), len(rest))
    return rest[:end]


# --- text


@pytest.mark.parametrize("case", [*CASES, hostile, short_and_hostile])
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
    assert drawn.count("more pairs") == 1
    obeyed = replace(undecided, command=f"run {ESCAPE}[2J")
    assert ESCAPE not in draw_comparison(replace(comparison, verdicts=(obeyed,)))
    never = (*comparison.verdicts[:2], replace(undecided, more_pairs=None, more_seconds=None, command=""))
    assert "fewer than 1,000 more pairs would not decide" in draw_comparison(replace(comparison, verdicts=never))


def test_header_and_closing_line() -> None:
    lines = draw_comparison(study_cases.finished()).rstrip("\n").split("\n")
    assert "study       4 arms, parameters matched; baseline relu" in lines
    assert "data        Python's standard library, bytes 5,120,331, sha256 4be14be14be1" in lines
    assert "trials      40: 20 to tune learning rates, 20 in 5 paired seeds" in lines
    assert "each trial  400 steps, 819,200 tokens" in lines
    assert "note  tokens per second were measured while other work ran" in lines
    assert lines[-1] == "3 contrasts: 1 better, 1 tie, 1 undecided"


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


@pytest.mark.parametrize("case", [hostile, short_and_hostile])
def test_colour_is_only_escapes(case: Case) -> None:
    colored = draw_comparison(case(), color=True)
    plain = draw_comparison(case())
    assert ESCAPE in colored
    assert ESCAPE not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain
    assert "\u202e" not in plain
    assert ESCAPE not in draw_methods(case())


def test_a_name_is_drawn_as_it_is_but_for_what_a_terminal_obeys() -> None:
    drawn = draw_comparison(short_and_hostile())
    assert "\ng\N{REPLACEMENT CHARACTER}[2J<i> − relu " in drawn
    assert "arm 1" not in drawn


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
    assert "verified" not in draw_methods(study_cases.own_objective())


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
