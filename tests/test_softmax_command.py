"""`evenkeel softmax`: what it prints for numbers typed by hand, against the definition."""

from __future__ import annotations

import json
import math

import pytest

from evenkeel.cli.main import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["softmax", *arguments]) == 0
    return capsys.readouterr().out


def test_two_numbers(capsys: pytest.CaptureFixture[str]):
    found = json.loads(printed(capsys, "10", "5", "--temperature", "0.5", "--format", "json"))
    p = 1 / (1 + math.exp(-10))
    assert found["probabilities"] == pytest.approx([p, 1 - p], rel=1e-9)
    assert found["entropy_nats"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-9)
    assert found["effective_count"] == pytest.approx(math.exp(found["entropy_nats"]))
    assert found["softmax_gain"] == pytest.approx(1 - p**2 - (1 - p) ** 2, rel=1e-6)
    assert found["support"] == 2


def test_the_table_reads_well(capsys: pytest.CaptureFixture[str]):
    text = printed(capsys, "2", "1", "-3", "--top-p", "0.9")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["logit", "probability", "of", "the", "largest"]
    assert lines[1].split()[:3] == ["2", "0.731059", "1"] and lines[1].count("█") == 17
    assert lines[3].split() == ["-3", "0.000000", "out"]
    assert "2 kept" in text and "entropy 0.5822 nats" in text


def test_infinite_and_greedy(capsys: pytest.CaptureFixture[str]):
    assert json.loads(printed(capsys, "--format", "json", "--", "0", "-inf"))["probabilities"] == [1, 0]
    greedy = json.loads(printed(capsys, "1", "3", "3", "--temperature", "0", "--format", "json"))
    assert greedy["probabilities"] == [0, 1, 0] and greedy["entropy_nats"] == 0


def test_json_holds_no_bare_infinity(capsys: pytest.CaptureFixture[str]):
    text = printed(capsys, "1", "2", "--top-n-sigma", "inf", "--format", "json")
    assert json.loads(text, parse_constant=pytest.fail)["filters"] == {"top_n_sigma": "Infinity"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("nan", "1"), "holds NaN"), (("--top-p", "2", "1"), "top_p is 2.0"), (("--", "-inf"), "throughout")],
)
def test_errors(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["softmax", *arguments]) == 2
    assert message in capsys.readouterr().err
