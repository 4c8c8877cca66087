"""Reports say what the document says, fit where they are shown, and obey nothing that comes from outside."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
from documents import DATA, MODEL, block, document, finding, reading
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from evenkeel.diagnosis import Diagnosis, judge
from evenkeel.records import Record
from evenkeel.report import FORMATS, text
from evenkeel.report.places import compress
from evenkeel.report.quantities import digits, number, quantity, share
from evenkeel.rules import RULES
from evenkeel.schema import SEVERITIES, DataInfo, Document, Reading, Site

WIDTHS = (60, 80, 100, 160)


def lines(drawn: str) -> list[str]:
    return drawn.split("\n")


def rows(drawn: Iterable[str]) -> list[str]:
    """The lines of blocks."""
    return [line for line in drawn if re.match(r"\d+ .*%", line)]


def column(drawn: str, title: str, row: int) -> str:
    """What a block's line has under a title: both end at the same place, but for a mark."""
    heading = next(line for line in lines(drawn) if re.match(rf"block  .*\b{title}\b", line))
    end = heading.index(title) + len(title)
    return rows(lines(drawn))[row][: end + 1].split()[-1]


@pytest.mark.parametrize(
    ("value", "loose", "strict"),
    [
        (0.0, "0", "0"),
        (1.0, "1", "1.00"),
        (-2.5, "-2.5", "-2.50"),
        (0.012345, "0.0123", "0.0123"),
        (0.001, "0.001", "0.00100"),
        (0.00099951, "0.001", "0.00100"),
        (0.000123456, "1.23e-4", "1.23e-4"),
        (999.4, "999", "999"),
        (999.6, "1,000", "1,000"),
        (12345.0, "12,300", "12,300"),
        (99960.0, "1.00e5", "1.00e5"),
        (-1.5e-300, "-1.50e-300", "-1.50e-300"),
        (math.nan, "NaN", "NaN"),
        (-math.inf, "-inf", "-inf"),
    ],
)
def test_numbers_have_three_digits(value: float, loose: str, strict: str) -> None:
    assert (number(value), digits(value)) == (loose, strict)


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, max_value=1e300, min_value=-1e300))
def test_a_drawn_number_is_within_half_a_digit_and_short(value: float) -> None:
    for drawn in (number(value), digits(value)):
        assert len(drawn) <= 10
        assert math.isclose(float(drawn.replace(",", "")), value, rel_tol=0.0051)


@given(st.floats(0, 1))
@example(0.997)
@example(0.9996)
@example(0.99949)
@example(5e-5)
def test_a_share_is_none_or_all_only_where_it_is(value: float) -> None:
    drawn = share(value)
    assert (drawn == "0%", drawn == "100%") == (value == 0, value == 1)
    if drawn[0].isdigit():
        assert abs(float(drawn.removesuffix("%")) - 100 * value) <= (0.51 if value >= 0.1 else 0.051)


def test_units() -> None:
    assert quantity(0.5, "share") == "50%"
    assert quantity(0.031, "share of log(visible keys)") == "3.1% of log(visible keys)"
    assert quantity(2.0, "1") == "2"
    assert quantity(2.0, "nats") == "2 nats"
    assert quantity(53_248, "channels") == "53,248 channels"


def expand(patterns: Iterable[str]) -> list[str]:
    """What the braces stand for, read as a shell would, with ranges as a-b."""
    found = []
    for pattern in patterns:
        pieces = re.split(r"\{([^}]*)\}", pattern)
        choices = [[piece] if index % 2 == 0 else _listed(piece) for index, piece in enumerate(pieces)]
        found += ["".join(parts) for parts in itertools.product(*choices)]
    return found


def _listed(piece: str) -> list[str]:
    runs = [run.split("-") for run in piece.split(",")]
    return [str(value) for run in runs for value in range(int(run[0]), int(run[-1]) + 1)]


@given(st.lists(st.from_regex(r"(a|b|[0-9]|1[0-2])(\.(a|b|[0-9]|1[0-2])){0,3}", fullmatch=True), max_size=30))
def test_compressed_paths_stand_for_exactly_the_same_places(paths: list[str]) -> None:
    assert sorted(expand(compress(paths))) == sorted(set(paths))


def test_paths_are_compressed_as_far_as_they_go() -> None:
    experts = [f"layers.{i}.experts.{j}.act" for i in range(12) for j in range(8)]
    assert compress(experts) == ("layers.{0-11}.experts.{0-7}.act",)
    assert compress([f"layers.{i}.act" for i in (0, 2, 4, 5, 6, 10)]) == ("layers.{0,2,4-6,10}.act",)
    assert compress(["encoder.0", "decoder.0"]) == ("encoder.0", "decoder.0")


def test_the_report_shows_every_number_in_its_place() -> None:
    drawn = text.render(document())
    expected = {
        "flat": "93%!",
        "dead": "0%",
        "open": "31%",
        "select": "50%",
        "entropy": "25–75%",
        "logit": "12.5",
        "rms": "1.50",
        "gradient": "1.23e-5",
    }
    for title, value in expected.items():
        assert column(drawn, title, 0) == value, title
    assert column(drawn, "flat", 1) == "1.2%" and column(drawn, "entropy", 2) == "27–75%"
    for line in (
        "model  SmallForCausalLM: 1.23 M parameters, bfloat16, cuda:0",
        "data   book.txt, 4,096 tokens",
        "layers.{0-2}: silu",
        "head  loss 5.54 nats; accuracy 1.2%; best temperature 1.02",
        "! warning ACT101 saturated activation",
        "93.1% of the inputs are flat.",
        "  where     layers.0.act",
        "  measured  small_gradient_share 93%; bound 50%",
        "  why       No signal passes.",
        "  change    Use another activation.",
        "            Normalise before it.",
        "            feedforward.activation = silu",
        "  try       evenkeel rules ACT101",
        "  source    derived",
        "  claims    C01, C02",
        "not measured  layers.1.scan: it is fused",
        "not judged    OUT402: no ece was read at lm_head",
        "1 warning; 2 rules passed, 1 not applicable, 1 not measured",
    ):
        assert line in lines(drawn), line
    assert "weak evidence" not in drawn


def test_consequences_stand_in_a_line_each_under_their_main_finding() -> None:
    cause = finding("ATT303", block(1)[0], rule="attention logits too large")
    gradient = finding("GRD501", *(block(n)[3] for n in range(3)), rule="vanishing", severity="error", cause="ATT303")
    flat = finding("ACT101", block(2)[1], cause="ATT303")
    alone = finding("ATT301", block(0)[0], rule="collapsed", cause="GLU201")  # whose main finding is not shown
    drawn = text.render(replace(document(), findings=(gradient, alone, cause, flat)))
    told = lines(drawn)
    assert [line for line in told if re.match(r"[✗!·] ", line)] == [
        "! warning ATT303 attention logits too large",  # first, because an error follows from it
        "! warning ATT301 collapsed",
    ]
    start = told.index("  follows   ✗ GRD501 vanishing: layers.{0-2} (small_gradient_share 93%; bound")
    assert told[start + 1 : start + 3] == [
        "            50%)",  # an error tells its number
        "            ! ACT101 saturated activation: layers.2.act",
    ]
    assert start < told.index("! warning ATT301 collapsed")
    assert "1 error, 3 warnings, 2 of them consequences; 2 rules" in " ".join(told)
    assert drawn.count("Use another activation.") == 2


def test_long_consequences_fit_and_say_what_is_new() -> None:
    cause = finding("ATT303", block(1)[0])
    places = [Site(path=f"{name}.attention", kind="attention", op="softmax") for name in ("a" * 30, "b" * 30, "c" * 30)]
    far = finding("ATT301", *places, rule="collapsed", cause="ATT303")
    drawn = text.render(replace(document(), findings=(cause, far)), new=[far])
    assert max(map(cell_len, lines(drawn))) <= 80
    assert "1 more place (new)" in drawn and "c" * 30 not in drawn and "(in the baseline)" in drawn


def test_norms_take_no_room() -> None:
    """Two in each of 24 blocks and one behind them: nothing but where one of them is found sick."""
    base = document(24)
    norms = [Site(path=f"layers.{n}.norm{i}", kind="norm", op="rms_norm") for n in range(24) for i in (1, 2)]
    norms.append(Site(path="norm", kind="norm", op="rms_norm"))
    read = [reading(norm, stat, 1.0) for norm in norms for stat in ("input_rms", "output_rms", "epsilon_share")]
    full = replace(base, sites=(*base.sites, *norms), readings=(*base.readings, *read))
    assert text.render(full) == text.render(base)
    sick = finding("NUM604", norms[5], rule="norm passes nothing")
    drawn = lines(text.render(replace(full, findings=(sick,))))
    assert "  where     layers.2.norm2" in drawn and any(line.startswith("2!") for line in drawn)


def test_random_data_is_called_weak_evidence_and_notes_are_shown() -> None:
    weak = replace(document(), data=DataInfo(source="random tokens", kind="random"), notes=("auto_map was dropped",))
    drawn = text.render(weak)
    assert "weak evidence" in drawn and "note   auto_map was dropped" in lines(drawn)


def test_each_site_shows_its_newest_step() -> None:
    base = document()
    activation = block(0)[1]
    later = reading(activation, "small_gradient_share", 0.22, step=50)
    drawn = text.render(replace(base, readings=(later, *base.readings)))
    assert column(drawn, "flat", 0) == "22%!"
    assert "93%!" not in drawn and "2 measured, 0 to 50" in drawn


def test_stacks_are_drawn_apart_and_lonely_places_below() -> None:
    encoder, decoder = document(2, "encoder.block"), document(4, "decoder.block")
    pooler = Site(path="pooler.activation", kind="activation", op="tanh")
    both = replace(
        encoder,
        sites=(*encoder.sites, *decoder.sites, pooler),
        readings=(*encoder.readings, *decoder.readings, reading(pooler, "small_gradient_share", 0.03)),
    )
    drawn = lines(text.render(both))
    titles = [drawn.index(title) for title in ("encoder.block.{0-1}: silu", "decoder.block.{0-3}: silu")]
    assert titles[0] < titles[1] < drawn.index("outside the blocks: tanh")
    assert [line.split()[0] for line in rows(drawn[titles[0] : titles[1]])] == ["0", "1"]
    assert [line.split()[0] for line in rows(drawn[titles[1] :])] == ["0", "1", "2", "3"]
    assert any(re.fullmatch(r"pooler\.activation +3\.0%", line) for line in drawn)


def test_a_place_belongs_to_the_innermost_block() -> None:
    inner = Site(path="layers.0.experts.3", kind="residual", op="block")
    expert = Site(path="layers.0.experts.3.act", kind="activation", op="silu")
    base = document()
    more = (reading(inner, "residual_rms", 9.0), reading(expert, "small_gradient_share", 0.44))
    drawn = lines(text.render(replace(base, sites=(*base.sites, inner, expert), readings=(*base.readings, *more))))
    assert any(re.fullmatch(r"0\.3 +44% +9\.00", line) for line in drawn)
    assert "93%!" in rows(drawn)[0] and "44%" not in rows(drawn)[0]


def test_titles_of_groups_stand_over_their_columns() -> None:
    base = document()
    few = ("small_gradient_share", "entropy_relative", "gradient_rms")
    drawn = lines(text.render(replace(base, readings=tuple(item for item in base.readings if item.stat in few))))
    titles = next(line for line in drawn if line.startswith("block "))
    groups = drawn[drawn.index(titles) - 1]
    for group, title in (("activation", "flat"), ("attention", "entropy"), ("block output", "gradient")):
        assert groups.index(group) + len(group) == titles.index(title) + len(title)


def test_a_block_with_another_activation_says_so() -> None:
    base = document()
    odd = replace(block(1)[1], op="sigmoid")
    drawn = lines(text.render(replace(base, sites=tuple(odd if item == block(1)[1] else item for item in base.sites))))
    assert "layers.{0-2}" in drawn
    assert [line.split()[1] for line in rows(drawn)] == ["silu", "sigmoid", "silu"]


def test_a_finding_marks_the_number_that_it_is_about() -> None:
    attention, _, _, residual = block(1)
    weight = Site(path="layers.2.mlp.weight", kind="parameter", op="parameter")
    base = document()
    evidence = base.findings[0].evidence[0]
    found = (
        finding("ATT303", attention, severity="error", evidence=(replace(evidence, stat="max_logit"),)),
        finding("ATT301", attention, severity="warning", evidence=(replace(evidence, stat="max_logit"),)),
        finding("ATT302", attention, severity="info", evidence=(replace(evidence, stat="softmax_gain"),)),
        finding("GRD501", residual, evidence=(replace(evidence, stat="gradient_rms"),)),
        finding("NUM601", weight, severity="error"),
    )
    drawn = text.render(replace(base, findings=found, sites=(*base.sites, weight)))
    _, one, two = (line for line in lines(drawn) if re.match(r"\d[ ✗].*\d%", line))
    assert "12.5✗" in one and "75%·" in one and "1.23e-5!" in one and one.count("!") == 1
    assert two.startswith("2✗")


def test_nan_is_shown_and_no_number_hides_it() -> None:
    base = document()
    attention = block(0)[0]
    readings = tuple(
        replace(item, values=(0.3, math.nan)) if item.site == attention.id and len(item.values) == 2 else item
        for item in base.readings
    )
    drawn = text.render(replace(base, readings=readings))
    assert column(drawn, "entropy", 0) == "NaN" and column(drawn, "logit", 0) == "NaN"


@pytest.mark.parametrize("width", WIDTHS)
def test_reports_fit_their_width(width: int) -> None:
    drawn = text.render(document(100), width=width)
    beside = text.render_side_by_side(document(100), document(7), ("healthy", "sick"), width=width)
    for line in (*lines(drawn), *lines(beside)):
        assert cell_len(line) <= width and line == line.rstrip()
    assert [line.split()[0] for line in rows(lines(drawn))] == [str(index) for index in range(100)]
    assert all(title in drawn for title in ("gradient", "flat", "entropy"))


def test_wider_means_more_columns_and_the_important_ones_stay() -> None:
    def titles(width: int) -> set[str]:
        drawn = lines(text.render_side_by_side(document(), document(), ("healthy", "sick"), width=width))
        heads = next(line for line in drawn if "gradient" in line)
        return set(heads.split())

    narrow, wide = titles(80), titles(160)
    assert {"gradient", "flat", "entropy"} <= narrow < wide


def test_side_by_side_sets_the_same_numbers_beside_each_other() -> None:
    left = document()
    right = replace(document(2), findings=(), readings=(*document(2).readings, reading(left.sites[-2], "loss", 7.25)))
    drawn = lines(text.render_side_by_side(left, right, ("healthy", "sick")))
    assert re.fullmatch(r" +healthy +sick", drawn[0])
    assert any(re.fullmatch(r"loss +5\.54 nats +7\.25 nats", line) for line in drawn)
    assert any(re.fullmatch(r"warnings +ACT101 +none", line) for line in drawn)
    first, _, last = rows(drawn)
    assert first.split()[1:3] == ["93%!", "93%"]
    assert last.count("%") * 2 == first.count("%")  # the right one has two blocks only


HOSTILE = [
    "[/x]",
    "[bold]x",
    "\x1b[31mred\x1b]0;title\x07",
    "a" * 10_000,
    "\udc80",
    "\x00\r\n\b",
    "‮abc",
    "{0}%s",
    "表" * 500,
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("color", [False, True])
def test_hostile_text_is_only_text(name: str, color: bool) -> None:
    base = document()
    sites = tuple(
        replace(item, path=f"{item.path}.{name}", op=name, reason=name and item.reason) for item in base.sites
    )
    ids = {old.id: new.id for old, new in zip(base.sites, sites, strict=True)}
    bad = finding(name, sites[0], rule=name, message=name, why=name, advice=(name,), source=name, try_command=name)
    hostile = replace(
        base,
        tool=name,
        model=replace(MODEL, class_name=name, dtype=name, device=name),
        data=replace(DATA, source=name),
        sites=sites,
        readings=tuple(replace(item, site=ids[item.site]) for item in base.readings),
        findings=(bad,),
        notes=(name,),
    )
    for drawn in (
        text.render(hostile, color=color),
        text.render_side_by_side(hostile, hostile, (name, name), color=color),
        text.render_findings(hostile, color=color),
    ):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn) if color else drawn
        assert all(character == "\n" or character.isprintable() for character in plain)
        assert all(cell_len(line) <= 80 for line in lines(plain))
    if name.startswith("["):
        assert name in text.render(hostile)


def test_color_only_adds_color_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, colored = (text.render(document(), width=100, color=color) for color in (False, True))
    assert "\x1b[33m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).split() == plain.split()
    for name, value in (("NO_COLOR", "1"), ("FORCE_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", "33")):
        monkeypatch.setenv(name, value)
        assert text.render(document(), width=100) == plain
        assert text.render(document(), width=100, color=True) == colored


def test_json_is_the_document() -> None:
    base = document()
    nan = replace(base.readings[0], values=(math.nan, math.inf))
    base = replace(base, readings=(nan, *base.readings[1:]), notes=("naïve \U0001f600",))
    drawn = FORMATS["json"](base)
    assert drawn.isascii() and json.loads(drawn) == base.to_dict()
    assert repr(Document.from_dict(json.loads(drawn))) == repr(base)
    other = finding("ACT102", block(1)[1])
    with_new = json.loads(FORMATS["json"](replace(base, findings=(*base.findings, other)), new=(other,)))
    assert [item["new"] for item in with_new["findings"]] == [False, True]


@pytest.mark.parametrize("code", RULES)
def test_every_rule_finds_its_own_example_in_a_record(code: str) -> None:
    """Numbers, logs and their order survive the record."""
    for case in (*RULES[code].firing, *RULES[code].silent):
        given_data = case.measurements
        with Record.create(None, given_data.model, given_data.data) as record:
            for step in sorted({item.step for item in given_data.readings}) or [0]:
                found = [item for item in given_data.readings if item.step == step]
                record.append(step, given_data.sites, found)
            for entry in given_data.log:
                record.log(entry)
            diagnosis = judge(record)
        assert (code in {item.code for item in diagnosis.findings}) is (case in RULES[code].firing), case


def test_findings_come_by_severity_then_by_place() -> None:
    """Dead channels in block 0, a saturated block 1, NaN in block 2: the NaN first, then block after block."""
    firing = [RULES[code].firing[0].measurements for code in ("ACT102", "ACT101", "NUM601")]
    moved: list[tuple[Site, list[Reading]]] = []
    for index, measurements in enumerate(firing):
        for site in measurements.sites:
            new = replace(site, path=f"{index}.{site.path}")
            own = [replace(item, site=new.id) for item in measurements.readings if item.site == site.id]
            moved.append((new, own))
    with Record.create(None, MODEL, DATA) as record:
        record.append(0, [site for site, _ in moved], [replace(item, step=0) for _, own in moved for item in own])
        diagnosis = judge(record)
    assert isinstance(diagnosis, Diagnosis) and diagnosis.tool.startswith("evenkeel ")
    ranks = [SEVERITIES.index(item.severity) for item in diagnosis.findings]
    assert ranks == sorted(ranks)
    warnings = [item for item in diagnosis.findings if item.severity == "warning"]
    places = [min(int(site.split(".")[0]) for site in item.sites) for item in warnings]
    assert {"ACT101", "ACT102"} <= {item.code for item in warnings}
    assert places == sorted(places)
