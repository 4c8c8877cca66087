"""What a project sets otherwise: read, refused, applied by the commands and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from documents import DATA, MODEL, document

import evenkeel as ek
from evenkeel.cli.main import main
from evenkeel.diagnosis import Diagnosis, judge
from evenkeel.errors import UsageError
from evenkeel.nn import Transformer, TransformerConfig
from evenkeel.records import Record
from evenkeel.rules import RULES, Override, at, example
from evenkeel.rules._judging import judge_all
from evenkeel.schema import Document
from evenkeel.settings import FAIL_ON, Settings, Suppression

LARGE = (5e4, 150.0, 900.0)  # of three layers; the first is an error of ATT303, the others warnings


def recorded(path: Path | None = None) -> Record:
    """A run with too large attention logits in three layers."""
    places = [at(f"layers.{n}.attn:attention.softmax", max_logit=value) for n, value in enumerate(LARGE)]
    measurements = example("large", *places).measurements
    record = Record.create(path, MODEL, DATA)
    record.append(0, measurements.sites, measurements.readings)
    return record


def judged(**settings: object) -> Diagnosis:
    return judge(recorded(), Settings(**settings))  # type: ignore[arg-type]


def found(diagnosis: Document) -> list[tuple[str, str, list[str]]]:
    """Code, severity and layers of the findings."""
    return [(item.code, item.severity, [site.split(".")[1] for site in item.sites]) for item in diagnosis.findings]


def wrote(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder / "pyproject.toml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the pyproject.toml of the working directory, in which a run was recorded."""
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "run.sqlite").close()
    return lambda text: wrote(tmp_path, text)


# --- reading -----------------------------------------------------------------------------------------------------

EVERYTHING = """
[tool.evenkeel]
fail_on = "warning"
ignore = ["ACT103"]
baseline = "known.json"

[tool.evenkeel.rules.ATT303]
severity = "error"
bounds = {clipped = 200}

[[tool.evenkeel.suppress]]
code = "ATT301"
sites = "layers.0.*"
reason = "a layer of sinks"

[[tool.evenkeel.suppress]]
sites = ["decoder.*", "*.router"]
"""


def test_every_key_is_read(tmp_path: Path) -> None:
    path = wrote(tmp_path, EVERYTHING)
    expected = Settings(
        rules={"ATT303": Override(severity="error", bounds={"clipped": 200.0})},
        suppress=(
            Suppression(code="ATT301", sites=("layers.0.*",), reason="a layer of sinks"),
            Suppression(sites=("decoder.*", "*.router")),
        ),
        ignore=("ACT103",),
        fail_on="warning",
        baseline=tmp_path / "known.json",
        source="pyproject.toml",
    )
    assert Settings.from_file(path) == expected
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert Settings.nearest(inner) == expected
    wrote(inner, "[tool.ruff]\nline-length = 120\n")
    assert Settings.nearest(inner) == expected  # one that says nothing of evenkeel is not the nearest
    wrote(inner.parent, "[tool.evenkeel]\n")
    assert Settings.nearest(inner) == Settings(source="pyproject.toml")


def test_without_a_file_nothing_is_set_otherwise(tmp_path: Path) -> None:
    assert Settings.nearest(tmp_path) == Settings()
    assert Settings().overrides == {} and Settings().fail_on == "error"


WRONG = {
    '[tool.evenkeel]\nfail-on = "error"': "has no key 'fail-on'; did you mean 'fail_on'?",
    '[tool.evenkeel]\nfail_on = "warnings"': "did you mean 'warning'?",
    "[tool.evenkeel]\nfail_on = 3": "fail_on is 3 and must be a string",
    '[tool.evenkeel]\nignore = "ACT103"': "must be a list of strings",
    '[tool.evenkeel]\nignore = ["ACT130"]': "no rule is called 'ACT130'; did you mean 'ACT103'?",
    "[tool.evenkeel]\nrules = 3": "rules is 3 and must be a table",
    "[tool.evenkeel.rules.ATT330]\nbounds = {}": "did you mean 'ATT30",
    "[tool.evenkeel.rules.ATT303]\nbound = {}": "rules.ATT303 has no key 'bound'; did you mean 'bounds'?",
    "[tool.evenkeel.rules.ATT303]\nbounds = {cliped = 2}": "ATT303 has no bound 'cliped'; did you mean 'clipped'?",
    '[tool.evenkeel.rules.ATT303]\nbounds = {clipped = "2"}': "bounds.clipped is '2' and must be a finite number",
    "[tool.evenkeel.rules.ATT303]\nbounds = {clipped = true}": "must be a finite number",
    "[tool.evenkeel.rules.ATT303]\nbounds = {clipped = nan}": "must be a finite number",
    '[tool.evenkeel.rules.ATT303]\nseverity = "errors"': "of ATT303 cannot be 'errors'; did you mean 'error'?",
    '[tool.evenkeel.suppress]\ncode = "ATT301"': "write [[tool.evenkeel.suppress]]",
    '[[tool.evenkeel.suppress]]\ncode = "ATT310"': "did you mean 'ATT30",
    '[[tool.evenkeel.suppress]]\nsite = "a"': "has no key 'site'; did you mean 'sites'?",
    "[[tool.evenkeel.suppress]]\ncode = 'ATT301'\nsites = [1]": "must be a list of strings",
    '[[tool.evenkeel.suppress]]\nreason = "because"': "names neither a code nor sites",
    "[tool.evenkeel]\nbaseline = []": "baseline is [] and must be a string",
    '[tool.evenkeel]\nbaseline = "missing.json"': "missing.json cannot be read",
    "[tool.evenkeel": "is no TOML",
    "tool.evenkeel = 3": "must be a table",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_meant_is_one_line_and_exit_code_2(
    text: str, project: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(text)
    assert main(["report", "run.sqlite"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and WRONG[text] in shown.err, shown.err


def test_what_python_cannot_mean_is_refused_alike() -> None:
    with pytest.raises(UsageError, match="did you mean 'clipped'"):
        Settings(rules={"ATT303": Override(bounds={"clip": 2.0})})
    with pytest.raises(UsageError, match="did you mean 'ATT30"):
        Settings(ignore=("ATT330",))
    with pytest.raises(UsageError, match="known: error, warning, never"):
        Settings(fail_on="x")  # type: ignore[arg-type]
    assert FAIL_ON == ("error", "warning", "never")


# --- bounds and severities ---------------------------------------------------------------------------------------


def test_bounds_and_severities_hold_and_the_diagnosis_says_so() -> None:
    assert found(judged()) == [("ATT303", "error", ["0"]), ("ATT303", "warning", ["1", "2"])]
    wider = judged(rules={"ATT303": Override(bounds={"clipped": 200.0})}, source="pyproject.toml")
    assert found(wider) == [("ATT303", "error", ["0"]), ("ATT303", "warning", ["2"])]
    assert wider.notes == ("ATT303 is set otherwise in pyproject.toml: clipped 200 (by default 100)",)
    assert found(judged(rules={"ATT303": Override(severity="info")})) == [("ATT303", "info", ["0", "1", "2"])]


# --- suppressions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("glob", ["layers.0.*", "layers.0.attn", "layers.0.attn:attention.softmax", "*.0.*softmax"])
def test_one_suppressed_site_leaves_the_others(glob: str) -> None:
    diagnosis = judged(suppress=(Suppression(code="ATT303", sites=(glob,), reason="known"),))
    assert found(diagnosis) == [("ATT303", "warning", ["1", "2"])]
    assert diagnosis.notes == ("suppressed: ATT303 at layers.0.attn (known)",)


def test_the_worst_place_left_tells_the_finding() -> None:
    """What is hidden is in neither message nor evidence."""
    whole, rest = judged(), judged(suppress=(Suppression(code="ATT303", sites=("layers.2.*",)),))
    assert whole.findings[1].evidence[0].value == 900 and "layers.2" in whole.findings[1].message
    assert rest.findings[1].evidence[0].value == 150 and "layers.2" not in rest.findings[1].message


def test_a_suppression_without_code_or_without_sites() -> None:
    everywhere = judged(suppress=(Suppression(code="ATT303"),))
    assert everywhere.findings == () and "ATT303 at layers.{0-2}.attn" in everywhere.notes[0]
    assert {item.status for item in everywhere.rules if item.code == "ATT303"} == {"pass"}
    assert judged(suppress=(Suppression(sites=("layers.*",)),)).findings == ()
    assert len(judged(suppress=(Suppression(code="ATT304"),)).findings) == 2


def test_an_unused_suppression_is_told() -> None:
    unused = Suppression(code="ATT303", sites=("layers.7.*",), reason="gone")
    diagnosis = judged(suppress=(unused, Suppression(code="ATT304"), Suppression(code="ATT303", sites=("layers.1.*",))))
    assert diagnosis.notes == (  # ATT304 had no readings, so that nobody knows what it would have hidden
        "unused suppression, it hides nothing: ATT303 at layers.7.* (gone)",
        "suppressed: ATT303 at layers.1.attn",
    )
    assert "unused suppression" in " ".join(diagnosis.to_text().split())
    assert json.loads(diagnosis.to_json())["notes"] == list(diagnosis.notes)


def test_what_followed_from_a_suppressed_finding_stands_by_itself() -> None:
    cause = replace(RULES["ATT303"], code="CAU001", explains=("CON002",))
    consequence = replace(RULES["ATT303"], code="CON002", explains=())
    given = recorded()

    def causes(overrides: dict[str, Override]) -> set[tuple[str, str]]:
        rules = (cause, consequence)
        findings, _ = judge_all(rules, given.sites(), given.readings(), (), MODEL, DATA, overrides)
        return {(item.code, item.cause) for item in findings}

    assert causes({}) == {("CAU001", ""), ("CON002", "CAU001")}
    assert causes({"CAU001": Override(silent_at=("*",))}) == {("CON002", "")}
    assert causes({"CON002": Override(silent_at=("*",))}) == {("CAU001", "")}


# --- the commands ------------------------------------------------------------------------------------------------


def codes(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    return [(item["code"], item["severity"]) for item in json.loads(capsys.readouterr().out)["findings"]]


JSON = ("report", "run.sqlite", "--format", "json")


def test_a_command_reads_the_nearest_file_and_options_go_before_it(
    project: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*JSON]) == 1
    assert codes(capsys) == [("ATT303", "error"), ("ATT303", "warning")]
    project('[tool.evenkeel]\nfail_on = "never"')
    assert main([*JSON]) == 0 and main([*JSON, "--fail-on", "error"]) == 1
    capsys.readouterr()
    project('[tool.evenkeel]\nignore = ["ATT303"]')
    assert main([*JSON]) == 0 and codes(capsys) == []
    assert main([*JSON, "--ignore", "ATT304"]) == 1 and len(codes(capsys)) == 2
    other = tmp_path / "other.toml"
    other.write_text('[tool.evenkeel.rules.ATT303]\nseverity = "warning"\n')
    assert main([*JSON, "--config", str(other)]) == 0 and codes(capsys) == [("ATT303", "warning")]
    other.write_text("[tool.other]\n")
    assert main([*JSON, "--config", str(other)]) == 2 and "no table [tool.evenkeel]" in capsys.readouterr().err
    assert main([*JSON, "--config", "none.toml"]) == 2 and "none.toml cannot be read" in capsys.readouterr().err


def test_only_what_the_baseline_lacks_fails(
    project: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    project("")
    assert main([*JSON, "--out", "known.json"]) == 1
    project('[tool.evenkeel]\nbaseline = "known.json"')
    assert main([*JSON]) == 0
    assert [item["new"] for item in json.loads(capsys.readouterr().out)["findings"]] == [False, False]
    known = Document.from_dict(json.loads((tmp_path / "known.json").read_text()))
    fewer = replace(known, findings=tuple(replace(item, sites=item.sites[:1]) for item in known.findings))
    (tmp_path / "known.json").write_text(fewer.to_json())
    assert main([*JSON, "--fail-on", "warning"]) == 1  # the third layer is new
    assert [item["new"] for item in json.loads(capsys.readouterr().out)["findings"]] == [False, True]
    milder = replace(known, findings=tuple(replace(item, severity="warning") for item in known.findings))
    (tmp_path / "known.json").write_text(milder.to_json())
    assert main([*JSON]) == 1  # what was a warning is an error now
    assert [item["new"] for item in json.loads(capsys.readouterr().out)["findings"]] == [True, False]
    caused = replace(known, findings=tuple(replace(item, cause="ATT304") for item in known.findings))
    (tmp_path / "known.json").write_text(caused.to_json())
    assert main([*JSON]) == 0  # what it followed from then does not matter


def test_a_document_is_not_judged_again(
    project: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bounds and suppressions held when it was judged; which findings count is asked now."""
    (tmp_path / "d.json").write_text(document().to_json())
    project('[tool.evenkeel]\nfail_on = "warning"\n[[tool.evenkeel.suppress]]\ncode = "ACT101"\n')
    assert main(["report", "d.json", "--format", "json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown == document().to_dict()


# --- from Python -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(TransformerConfig(vocabulary=50, context=16, depth=2, d_model=16), seed=0)


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.arange(32).reshape(2, 16)
    return {"input_ids": tokens, "labels": tokens}


def test_inspect_watch_and_describe_take_settings(model: Transformer) -> None:
    settings = ek.Settings(ignore=("ATT302", "ACT103"))
    plain = ek.inspect(model, [batch()])
    assert len(ek.inspect(model, [batch()], settings=settings).rules) == len(plain.rules) - 2
    with ek.watch(model, every=1, settings=settings) as watch:
        with watch.step():
            model(**batch()).loss.backward()
        assert {item.code for item in watch.diagnose().rules} == {item.code for item in plain.rules} - {
            "ATT302",
            "ACT103",
        }
    model.zero_grad(set_to_none=True)
    described = ek.describe(model, settings=ek.Settings(ignore=("ARC703",)))
    assert "ARC703" not in {item.code for item in described.rules}
    assert "ignored on request: ARC703" in described.notes


def test_one_glob_may_be_a_string_from_python_as_well() -> None:
    assert Suppression(code="ACT102", sites=cast(Any, "blocks.9.*")).sites == ("blocks.9.*",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ignore": "ATT303"}, "ignore is"),
        ({"suppress": Suppression(code="ATT303")}, "suppress is"),
        ({"rules": {"ATT303": {"severity": "error"}}}, "must be an Override"),
        ({"rules": {"ACT102": Override(bounds=cast(Any, {"dead_share": "0.5"}))}}, "must be a finite number"),
        ({"rules": {"ACT102": Override(severity=cast(Any, "fatal"))}}, "ACT102"),
    ],
)
def test_what_is_of_the_wrong_type_is_refused_from_python_as_well(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ek.Settings(**given)


def test_a_suppression_of_a_rule_that_was_not_judged_is_not_called_unused() -> None:
    case = RULES["ATT303"].firing[0].measurements
    settings = ek.Settings(suppress=(Suppression(code="ATT302"), Suppression(code="ATT303", sites=("nowhere",))))
    with Record.create(None, case.model, case.data) as record:
        record.append(0, case.sites, case.readings)
        notes = judge(record, settings).notes
    assert [note for note in notes if "unused" in note and "ATT303" in note]
    assert not [note for note in notes if "unused" in note and "ATT302" in note]
