"""The pages of rules: what the command prints and what lies in docs/rules, of one source and not stale."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from evenkeel.cli.main import main
from evenkeel.report.rule_page import Measured, as_markdown, as_text, measured_examples, page
from evenkeel.rules import RULES, Override, Rule
from evenkeel.schema import SEVERITIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EVERY = [pytest.param(rule, id=rule.code) for rule in RULES.values()]


def script(name: str) -> ModuleType:
    """A script of docs as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def flat(text: str) -> str:
    """A text without its line breaks, and without Markdown's backslashes."""
    return " ".join(text.replace("\\", "").split())


# --- docs/rules --------------------------------------------------------------------------------------------------


def test_no_page_is_stale_and_every_rule_has_one() -> None:
    drawn = script("rules").pages()
    assert drawn.keys() == {"README.md", *(f"{code}.md" for code in RULES)}
    found = {path.name: path.read_text() for path in (DOCS / "rules").iterdir()}
    assert found.keys() == drawn.keys(), "run: python docs/rules.py"
    stale = [name for name, text in drawn.items() if found[name] != text]
    assert not stale, "run: python docs/rules.py"


def test_the_index_links_every_page() -> None:
    links = re.findall(r"\]\((\w+\.md)\)", (DOCS / "rules" / "README.md").read_text())
    assert links == [f"{code}.md" for code in RULES]


# --- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", EVERY)
def test_both_forms_say_everything(rule: Rule) -> None:
    sections = page(rule, RULES)
    said = [rule.name, rule.measures, rule.bound, rule.severity, rule.why, *rule.advice, rule.source, rule.try_command]
    said += [*rule.claims, *rule.explains, *(f"{name} = {value:g}" for name, value in rule.bounds.items())]
    said += [code for code, other in RULES.items() if rule.code in other.explains]
    said += [example.about for example in rule.silent]
    for drawn in (as_text(rule, sections, 80), as_markdown(rule, sections)):
        missing = [text for text in said if flat(text) not in flat(drawn)]
        assert not missing
        assert "Sick" in drawn and "Healthy" in drawn


@pytest.mark.parametrize("rule", EVERY)
def test_the_command_prints_the_page_within_the_width(
    rule: Rule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rules", rule.code.lower()]) == 0
    printed = capsys.readouterr().out
    assert printed == as_text(rule, page(rule, RULES), 80) + "\n"
    assert max(map(len, printed.splitlines())) <= 80


def test_a_value_in_force_is_told_beside_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[tool.evenkeel.rules.ATT303]\nseverity = "info"\nbounds = {clipped = 200}\n')
    assert main(["rules", "ATT303"]) == 0
    printed = capsys.readouterr().out
    assert "clipped = 200 (pyproject.toml; by default 100)" in printed and "diverges = 10000\n" in printed
    assert "set to info in pyproject.toml" in printed
    assert main(["rules", "ATT303", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"name": "clipped", "value": 200.0, "default": 100.0} in data["bounds"] and data["severity_set"] == "info"


def test_markdown_keeps_what_it_is_given() -> None:
    odd = replace(RULES["ATT303"], why="a_b * c | d < e > `f` \\ g")
    drawn = as_markdown(odd, page(odd, RULES, override=Override()))
    assert r"a\_b \* c \| d \< e \> \`f\` \\ g" in drawn


# --- the catalogue -----------------------------------------------------------------------------------------------


def test_the_catalogue_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(RULES)]] == list(RULES)
    assert all(len(line) <= 80 for line in lines)


def test_pages_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["code"] for item in listed] == list(RULES)
    assert main(["rules", "GRD501", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == next(item for item in listed if item["code"] == "GRD501")
    for item in listed:
        assert all(item["code"] in RULES[code].explains for code in item["explained_by"])


def test_an_unknown_code_is_a_usage_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "GRD510"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "did you mean 'GRD50" in captured.err


def test_rules_and_facts_do_not_load_torch() -> None:
    code = (
        "import sys\nfrom evenkeel.cli.main import main\nimport evenkeel.facts\n"
        "assert main(['rules']) == 0 and main(['rules', 'ACT101']) == 0\n"
        "print([name for name in ('torch', 'numpy', 'numba') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


# --- what was measured -------------------------------------------------------------------------------------------


def test_measured_examples_are_of_rules_and_hold_numbers() -> None:
    examples = measured_examples()
    assert set(examples) <= set(RULES)
    assert len(examples) >= 0.9 * len(RULES), f"not measured: {set(RULES) - set(examples)}"
    for code, example in examples.items():
        assert example.severity in SEVERITIES and example.severity in RULES[code].severities
        assert example.numbers and example.message and example.story
        assert Measured.from_dict(json.loads(json.dumps(example.to_dict()))) == example
    telling = [code for code, item in examples.items() if any(each.sick != each.healthy for each in item.numbers)]
    assert len(telling) >= 0.9 * len(examples)  # else a rule about structure, or about a gradient that is not there


@pytest.mark.parametrize("code", ["ATT304", "NUM604", "OUT401"])
def test_what_is_measured_again_is_the_same(code: str, one_thread: None) -> None:
    ((_, again),) = script("rule_examples").measure([code])
    known = measured_examples()[code]
    assert (again.fault, again.model, again.severity, again.place) == (
        known.fault,
        known.model,
        known.severity,
        known.place,
    )
    for ours, theirs in zip(again.numbers, known.numbers, strict=True):
        assert (ours.stat, ours.phase) == (theirs.stat, theirs.phase)
        for one, other in zip((*ours.sick, *ours.healthy), (*theirs.sick, *theirs.healthy), strict=True):
            assert math.isclose(one, other, rel_tol=0.05, abs_tol=1e-6), (code, ours, theirs)
