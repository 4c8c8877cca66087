"""`evenkeel claims`: what it prints, in which language, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evenkeel.catalogue import Catalogue
from evenkeel.cli.main import main
from evenkeel.ledger import CLAIMS, Claim, _running

LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")


@pytest.fixture(autouse=True)
def no_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOCALE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of two quick claims."""
    few: Catalogue[Claim] = Catalogue("claim")
    for name in ("C34", "C35"):
        few.add(name, CLAIMS[name])
    monkeypatch.setattr(_running, "CLAIMS", few)


@pytest.mark.usefixtures("two_claims")
def test_without_ids_a_table_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "C34  does not hold  Softmax is a set of sigmoids, normalised.",
        "C35  holds          For binary decisions the sigmoid works.",
        "",
        "evenkeel claims ID shows the numbers behind a verdict, beside its criterion.",
    ]


def test_a_page_shows_numbers_beside_the_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "c34"]) == 0
    page = capsys.readouterr()
    assert page.err == ""
    assert page.out.startswith("C34  does not hold\nSoftmax is a set of sigmoids, normalised.\n")
    assert "“Why Sigmoid Is Avoided in LLMs” (en), sentence 16" in page.out
    assert "  softmax.weight_of_3                            0.6652  share\n" in page.out
    assert "  holds only if  normalised_sigmoids.distance_from_softmax  ≤ 0.01  0.2938  no\n" in page.out
    assert "Softmax normalises the odds" in page.out


def test_an_id_may_leave_out_its_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "c1", "C31"]) == 0
    out = capsys.readouterr().out
    assert "C01  holds\n" in out and "\nC31  does not hold\n" in out


@pytest.mark.parametrize(
    ("language", "verdict", "why"),
    [("es", "no se cumple", "Por qué este veredicto"), ("pt", "não vale", "Por que este veredito")],
)
def test_languages(
    language: str,
    verdict: str,
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["claims", "C34", "--lang", language]) == 0
    asked = capsys.readouterr().out
    assert f"C34  {verdict}\n" in asked and why in asked
    monkeypatch.setenv("LANG", f"{language}_XX.UTF-8")
    assert main(["claims", "C34"]) == 0
    assert capsys.readouterr().out == asked
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert main(["claims", "C34"]) == 0
    assert "C34  does not hold\n" in capsys.readouterr().out


def test_json_is_not_translated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "C34", "--format", "json", "--lang", "es"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema_version"] == 1
    assert [item["verdict"] for item in data["claims"]] == ["does not hold"]


def test_out_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "claims.md"
    assert main(["claims", "C34", "--format", "markdown", "--out", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_text(encoding="utf-8").startswith("# The claims ledger\n")


def test_an_unknown_id_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "C177"]) == 2
    assert capsys.readouterr().err == "evenkeel: no claim is called 'C177'; did you mean 'C17'?\n"


def test_progress_for_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["claims", "C34"]) == 0
    shown = capsys.readouterr()
    assert "measured 0 of 1 claims" in shown.err and "measured 1 of 1 claims" in shown.err
    assert shown.err.endswith("\r\N{ESCAPE}[K")
    assert "measured 1 of 1" not in shown.out


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from evenkeel.cli.main import build_parser; text = build_parser().format_help(); "
        "assert 'claims' in text and not {'torch', 'evenkeel.ledger'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
