"""`evenkeel claims ID --explain`: bars as long as their numbers, intervals where the bounds are, in any encoding."""

from __future__ import annotations

import io
import math
import sys

import pytest

from evenkeel.cli.main import main
from evenkeel.ledger import Bound, Claim, MeasuredClaim, Measurement, Text, draw_plots, glyphs_of

NOTHING = Text(en="A.", es="B.", pt="C.")


def measured(numbers: dict[str, float], *bounds: Bound, unit: str = "nats") -> MeasuredClaim:
    claim = Claim(
        id="C99",
        statement=NOTHING,
        method=NOTHING,
        measure=lambda: (),
        criterion=bounds,
        ops=(),
        source="no source",
    )
    return MeasuredClaim(
        claim=claim, measurements=tuple(Measurement(name, value, unit) for name, value in numbers.items())
    )


def bars(item: MeasuredClaim, encoding: str = "utf-8", width: int = 80) -> dict[str, str]:
    """What is drawn beside each label."""
    lines = draw_plots([item], "en", width, glyphs=glyphs_of(encoding)).splitlines()[4:]
    start = next(line for line in lines if line.strip()).index("█" if encoding == "utf-8" else "#")
    return {line[:start].strip(): line[start:-10].rstrip() for line in lines if line}


def test_a_bar_is_as_long_as_its_number() -> None:
    found = bars(measured({"whole": 4.0, "half": 2.0, "none": 0.0}))
    length = len(found["whole"])
    assert set(found["whole"]) == {"█"} and length > 40
    assert len(found["half"]) == pytest.approx(length / 2, abs=1)
    assert found["none"] == ""


def test_an_interval_lies_where_the_bound_is() -> None:
    bounds = (Bound(measurement="a", low=1.0, high=3.0), Bound(measurement="a", low=2.0, role="caveat"))
    found = bars(measured({"a": 4.0}, *bounds))
    length = len(found["a"])
    closed, open_ended = found["holds only if 1 … 3"], found["caveat unless ≥ 2"]
    assert closed.index("├") == pytest.approx(length / 4, abs=1)
    assert closed.index("┤") == pytest.approx(3 * length / 4, abs=1)
    assert open_ended.index("├") == pytest.approx(length / 2, abs=1) and open_ended.endswith("─")
    assert len(open_ended) == length


def test_numbers_far_apart_get_a_logarithmic_axis() -> None:
    item = measured({"a": 1.0, "b": 1e-6, "c": 1e-12})
    assert "nats: 5e-13 to 1, logarithmic" in draw_plots([item], "en")
    found = bars(item)
    share = math.log(1e-6 / 5e-13) / math.log(1 / 5e-13)
    assert len(found["b"]) == pytest.approx(share * len(found["a"]), abs=1) and found["c"]


def test_negative_numbers_go_to_the_left_of_zero() -> None:
    lines = draw_plots([measured({"up": 1.0, "down": -1.0})], "en").splitlines()
    up = next(line for line in lines if line.startswith("  up"))
    down = next(line for line in lines if line.startswith("  down"))
    assert up.index("█") == pytest.approx(down.rindex("█") + 1, abs=1)
    assert up.count("█") == pytest.approx(down.count("█"), abs=1) and up.count("█") > 20


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_drawn(value: float) -> None:
    text = draw_plots([measured({"a": value, "b": 1.0}, Bound(measurement="a", high=1.0))], "en")
    assert f"{value:.4g}" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_without_block_characters_it_is_ascii(encoding: str) -> None:
    item = measured({"a": 4.0}, Bound(measurement="a", low=1.0, high=3.0), Bound(measurement="a", high=5.0))
    text = draw_plots([item], "en", glyphs=glyphs_of(encoding))
    assert text.isascii()
    assert "####" in text and "[----" in text and "holds only if 1 .. 3" in text and "<= 5" in text


def test_colours_are_the_callers_choice() -> None:
    item = measured({"a": 4.0}, Bound(measurement="a", high=3.0), Bound(measurement="a", high=5.0))
    assert "\N{ESCAPE}" not in draw_plots([item], "en")
    coloured = draw_plots([item], "en", color=True)
    assert "\N{ESCAPE}[31m        no" in coloured and "\N{ESCAPE}[32m       yes" in coloured


def test_the_command_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "C14", "c31", "--explain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("C14  holds with a caveat\n") and "\n\n\nC31  does not hold\n" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "  normal.64.variance" in out and "caveat unless 0.5 … 2" in out


def test_the_command_asks_the_encoding_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    def drawn(encoding: str) -> bytes:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", Terminal(raw, encoding=encoding, write_through=True))
        assert main(["claims", "C34", "--explain"]) == 0
        return raw.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\N{ESCAPE}[31m" in drawn("utf-8").decode() and "█".encode() in drawn("utf-8")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = drawn("ascii")
    assert b"\x1b" not in plain and b"####" in plain and b"\\u2588" not in plain
