"""The demo through its command: what it shows, what it writes, what it keeps, and what a failure leaves behind."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from evenkeel.cli.demo import SICK_SHOWS, healthy_config, sick_config, unexpected
from evenkeel.cli.main import main
from evenkeel.nn import Transformer
from evenkeel.rules import RULES
from evenkeel.schema import Document


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the cache is a folder that is not there yet."""
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache" / "deep"))
    monkeypatch.delenv("EVENKEEL_TRACEBACK", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def report(path: Path) -> tuple[Document, Document]:
    data = json.loads(path.read_text())
    assert list(data) == ["healthy", "sick"]
    return Document.from_dict(data["healthy"]), Document.from_dict(data["sick"])


def test_the_demo_as_it_is_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["demo"]) == 0
    assert torch.get_num_threads() == threads
    out, err = capsys.readouterr()
    assert err == ""  # nobody watches, so no bar
    assert all(code in out for code in SICK_SHOWS)
    assert max(map(len, out.splitlines())) <= 80

    healthy, sick = report(folder / "here" / "demo-report.json")
    assert not [finding for finding in healthy.findings if finding.severity != "info"]
    assert {finding.code for finding in sick.findings} >= set(SICK_SHOWS)
    assert all(500_000 <= document.model.parameters <= 1_000_000 for document in (healthy, sick))
    kinds = [{site.kind for site in document.sites if site.status == "measured"} for document in (healthy, sick)]
    assert {"activation", "gate", "attention", "residual", "head"} <= kinds[0]
    assert {"activation", "attention", "residual", "head"} <= kinds[1]
    assert all(site.status == "measured" for document in (healthy, sick) for site in document.sites)

    kept = Transformer.load(folder / "cache" / "deep" / "demo")
    assert kept.config == healthy_config()
    source = torch.tensor(list(Path(argparse.__file__).read_bytes()[: 64 * 128])).view(64, 128)
    with torch.no_grad():
        assert kept(source, labels=source).loss < 3  # an untrained one has ln 256 = 5.5 and more
    assert main(["inspect", "demo", "--tokens", "256"]) == 0
    assert "Transformer: " in capsys.readouterr().out


def test_few_steps_say_what_they_cannot_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "elsewhere.json"
    assert main(["demo", "--steps", "2", "--seed", "7", "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    healthy, sick = report(out)
    assert {reading.step for reading in healthy.readings} == {0}
    missing = set(SICK_SHOWS) - {finding.code for finding in sick.findings}
    assert missing and all(f"does not show {code}" in " ".join(shown.split()) for code in missing)
    assert [item.name for item in (folder / "here").iterdir()] == []
    assert [item.name for item in (folder / "cache" / "deep").iterdir()] == ["demo"]


def test_a_seed_decides_everything(folder: Path) -> None:
    reports = []
    for seed in ("1", "1", "2"):
        main(["demo", "--steps", "1", "--seed", seed])
        reports.append((folder / "here" / "demo-report.json").read_text())
    assert reports[0] == reports[1] != reports[2]


def test_an_interruption_leaves_the_old_model_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--steps", "1"]) == 1
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def interrupted(model: Transformer, directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(Transformer, "save", interrupted)
    assert main(["demo", "--steps", "1", "--out", str(folder / "here" / "demo-report.json")]) == 130
    assert capsys.readouterr().err == "evenkeel: stopped by Ctrl-C\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps is 0 and must be at least 1"),
        (["--steps", "1"], "the healthy model cannot be kept in"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("EVENKEEL_CACHE", str(folder / "file"))
    assert main(["demo", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evenkeel: {message}")


def test_an_out_file_in_a_missing_folder_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", "missing/report.json"])
    assert stopped.value.code == 2
    assert "is no file in an existing folder" in capsys.readouterr().err


def test_the_sick_model_differs_in_its_choices_alone() -> None:
    healthy, sick = healthy_config(), sick_config()
    assert (healthy.depth, healthy.d_model, healthy.context) == (sick.depth, sick.d_model, sick.context)
    assert set(SICK_SHOWS) <= set(RULES)


def test_what_is_not_as_intended_is_named() -> None:
    empty = Document.from_dict(
        {
            "schema_version": 1,
            "tool": "",
            "model": {"class": "", "parameters": 1, "dtype": "float32", "device": "cpu"},
            "data": {"source": "", "kind": "given"},
            **{key: [] for key in ("sites", "readings", "findings", "rules")},
        }
    )
    assert len(unexpected(empty, empty)) == len(SICK_SHOWS)
