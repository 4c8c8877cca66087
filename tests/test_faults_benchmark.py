"""The labelled benchmark: its cases, its arithmetic, how it goes on after a stop, and what 80 of its cases show."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from diagnosis import runner
from diagnosis.cases import SICK, SPLITS, Case, able, cases, few_cases
from diagnosis.peers import autotrainer, sagemaker_debugger
from diagnosis.runner import Results, run_all
from diagnosis.tables import Share, forbidden, is_brief, is_found, is_placed, is_warned, loud, render
from diagnosis.trial import Outcome, Told, try_case

from evenkeel.diagnosis import Diagnosis
from evenkeel.faults import FAULTS
from evenkeel.schema import DataInfo, ModelInfo, Reading, Site

ROOT = Path(__file__).parents[1]
CASES = cases()


def of_fault(fault: str | None) -> Case:
    return next(case for case in CASES if case.fault == fault)


def outcome(case: Case, *told: Told, places: tuple[str, ...] = (), reason: str = "") -> Outcome:
    return Outcome(id=case.id, seconds=0.5, told=told, places=places, peers={}, reason=reason)


def test_the_list_is_a_pure_function() -> None:
    state = random.getstate()
    random.seed(1)
    again = cases()
    random.setstate(state)
    assert again == CASES
    assert len({case.id for case in CASES}) == len(CASES)


def test_the_splits_share_neither_a_family_nor_a_seed() -> None:
    tune, held_out = ([case for case in CASES if case.split == split] for split in SPLITS)
    assert not {case.base.family for case in tune} & {case.base.family for case in held_out}
    assert not {case.base.seed for case in tune} & {case.base.seed for case in held_out}


def test_every_fault_has_its_cases_and_as_many_models_are_healthy() -> None:
    counts = Counter((case.split, case.fault) for case in CASES)
    for split in SPLITS:
        for fault in FAULTS:
            assert counts[split, fault] == (SICK[split] if able(split, fault) else 0), (split, fault)
        sick = sum(count for (name, fault), count in counts.items() if name == split and fault is not None)
        assert counts[split, None] >= sick > 0
    assert SICK["held_out"] >= 30
    assert all(able("held_out", fault) for fault in FAULTS)
    assert len(CASES) >= 1000


def test_the_cases_cover_sizes_stages_formats_and_families() -> None:
    assert {case.base.steps for case in CASES} == {0, 40, 160}
    assert {case.dtype for case in CASES} == {"float32", "bfloat16"}
    depths, widths = ({case.base.size[index] for case in CASES} for index in (0, 1))
    assert {2, 4, 6, 12, 24} <= depths and {64, 128, 256} <= widths
    assert len({case.base.family for case in CASES if case.fault is not None}) >= 12


def wilson_by_bisection(count: int, total: int, towards: float) -> float:
    """Where |p − seen| = z·√(p(1−p)/n), between what was seen and 0 or 1."""
    seen, outside = count / total, towards
    inside = seen
    for _ in range(200):
        middle = (inside + outside) / 2
        within = abs(middle - seen) <= 1.959963984540054 * math.sqrt(middle * (1 - middle) / total)
        inside, outside = (middle, outside) if within else (inside, middle)
    return inside


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (98, 100), (1187, 1200), (3, 7)])
def test_intervals_are_wilsons(count: int, total: int) -> None:
    low, high = Share(count, total).interval
    assert low == pytest.approx(wilson_by_bisection(count, total, 0.0), abs=1e-12)
    assert high == pytest.approx(wilson_by_bisection(count, total, 1.0), abs=1e-12)


def test_a_share_of_nothing_says_so() -> None:
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0.0, 1.0)
    assert str(Share(0, 0)) == "–"
    assert str(Share(98, 100)) == "98/100 = 98.0% [93.0, 99.4]"


def test_what_counts_as_found_allowed_placed_and_brief() -> None:
    case = of_fault("dead_relu")
    right = Told("ACT102", "warning", "", ("model.layers.1.mlp.act:activation.relu",))
    beside = Told("ACT102", "warning", "", ("model.layers.0.mlp.act:activation.relu", *right.sites, "x:head.softmax"))
    behind = Told("ACT102", "warning", "", (*right.sites, *beside.sites))
    consequence = Told("GRD501", "warning", "ACT102", ())
    foreign = Told("NUM601", "error", "", ())
    quiet = Told("ARC701", "info", "", ())
    place = "model.layers.1.mlp"
    assert is_found(case, outcome(case, right)) and not is_found(case, outcome(case, foreign))
    softly = outcome(case, Told("ACT102", "info", "", ()))
    assert is_found(case, softly) and not is_warned(case, softly) and is_warned(case, outcome(case, right))
    assert is_placed(case, outcome(case, right, places=(place,)))
    assert is_placed(case, outcome(case, behind, places=(place,)))  # it comes first
    assert not is_placed(case, outcome(case, beside, places=(place,)))  # one site in three is no address
    assert not is_placed(case, outcome(case, right, places=("model.layers.11.mlp",)))
    assert forbidden(case, outcome(case, right, foreign, quiet)) == ("NUM601",)
    assert is_brief(outcome(case, right, foreign, *[consequence] * 5, *[quiet] * 5))
    assert not is_brief(outcome(case, *[right] * 4))
    assert loud(outcome(case, quiet)) == ()


def test_the_tables_name_every_miss_and_false_alarm() -> None:
    sick = [case for case in CASES if case.fault == "dead_relu" and case.split == "held_out"][:3]
    healthy = [case for case in CASES if case.fault is None and case.split == "held_out"][:2]
    found = Told("ACT102", "warning", "", ())
    wrong = Told("NUM601", "error", "", ())
    text = render(
        [
            (sick[0], outcome(sick[0], found)),
            (sick[1], outcome(sick[1])),
            (sick[2], outcome(sick[2], reason="it has no such place")),
            (healthy[0], outcome(healthy[0])),
            (healthy[1], outcome(healthy[1], wrong)),
        ]
    )
    assert "| sick models that get their fault's code | 1/2 = 50.0% [9.5, 90.5] |" in text
    assert "| healthy models with a finding at warning or above | 1/2 = 50.0% [9.5, 90.5] |" in text
    assert "### Missed: 1" in text and f"--case {sick[1].id}` nothing" in text
    assert "### False alarms: 1" in text and f"--case {healthy[1].id}` NUM601" in text
    assert f"--case {sick[2].id}` it has no such place" in text
    assert "| `dead_relu` | 50 |  |" in text  # the confusion table: ACT102 in one of two, NUM601 in none
    assert "| `healthy` |  | 50 |" in text


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [case for case in CASES if case.base.steps == 0][:4]
    tried: list[str] = []

    def trying(case: Case, *, with_peers: bool) -> Outcome:
        tried.append(case.id)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return outcome(case, Told("ACT102", "warning", "", ("a:head.softmax",)), places=("a",))

    monkeypatch.setattr(runner, "try_case", trying)
    results = Results(tmp_path, Outcome.from_dict, digest="some")
    with pytest.raises(KeyboardInterrupt):
        run_all(wanted, results, jobs=1)
    with results.path.open("a") as file:
        file.write('{"id": "half a li')  # killed while it wrote

    again = Results(tmp_path, Outcome.from_dict, digest="some")
    assert list(again.outcomes) == [case.id for case in wanted[:2]]
    assert again.outcomes == results.outcomes
    run_all(wanted, again, jobs=1)
    assert tried == [case.id for case in (*wanted[:3], *wanted[2:])]
    assert [json.loads(line)["id"] for line in again.path.read_text().splitlines()] == [case.id for case in wanted]
    assert not Results(tmp_path, Outcome.from_dict, digest="other").outcomes


def test_a_case_that_breaks_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(case: Case, *, with_peers: bool) -> Outcome:
        raise ValueError("no")

    monkeypatch.setattr(runner, "try_case", breaking)
    case = next(case for case in CASES if case.base.steps == 0)
    with pytest.raises(ValueError, match="no") as caught:
        run_all([case], Results(tmp_path, Outcome.from_dict, digest="some"), jobs=1)
    assert any(case.id in note for note in caught.value.__notes__)


def diagnosis(*readings: Reading, ops: Sequence[str] = ()) -> Diagnosis:
    sites = tuple(Site(path="a", kind="activation", op=op) for op in ops)
    model = ModelInfo(class_name="M", parameters=1, dtype="float32", device="cpu")
    data = DataInfo(source="s", kind="text")
    return Diagnosis(tool="t", model=model, data=data, sites=sites, readings=readings, findings=(), rules=(), notes=())


def reading(site: str, stat: str, value: float, step: int = 0) -> Reading:
    return Reading(site=site, step=step, phase="forward", stat=stat, values=(value,), unit="1")


def test_published_thresholds_on_our_readings() -> None:
    first, last = "w.first:parameter.weight", "w.last:parameter.weight"
    sound = (reading(first, "gradient_rms", 1e-3), reading(last, "gradient_rms", 1e-2))
    assert sagemaker_debugger(diagnosis(*sound)) == autotrainer(diagnosis(*sound)) == ()
    vanished = diagnosis(reading(first, "gradient_rms", 1e-8), reading(last, "gradient_rms", 1e-2))
    assert sagemaker_debugger(vanished) == ("VanishingGradient",)
    assert autotrainer(vanished) == ("gradient vanish",)
    dead = [reading("a:activation.relu", stat, 0.8) for stat in ("dead_channel_share", "zero_gradient_share")]
    assert sagemaker_debugger(diagnosis(*dead, ops=["relu"])) == ("DeadRelu",)
    assert autotrainer(diagnosis(*dead, ops=["relu"])) == ("dying ReLU",)
    assert sagemaker_debugger(diagnosis(reading(first, "update_ratio", 11.0))) == ("WeightUpdateRatio",)
    assert autotrainer(diagnosis(reading(first, "gradient_rms", math.nan))) == ("gradient explode",)
    saturated = [
        reading("a:activation.tanh", "dead_channel_share", 0.9),
        reading("a:activation.tanh", "input_absmax", 12),
    ]
    assert sagemaker_debugger(diagnosis(*saturated, ops=["tanh"])) == ("SaturatedActivation",)


def test_one_case_prints_its_diagnosis() -> None:
    case = next(case for case in few_cases() if case.fault is not None and not case.watched)
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--case", case.id],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert case.id in done.stdout and any(code in done.stdout for code in FAULTS[str(case.fault)].codes)


def test_a_case_that_is_none_gets_a_hint() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--case", f"{CASES[0].id}0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"did you mean {CASES[0].id!r}?" in done.stderr or "did you mean" in done.stderr


def test_80_cases_keep_the_bounds() -> None:
    chosen = few_cases()
    assert len(chosen) == 80
    judged = [(case, try_case(case, with_peers=False)) for case in chosen]
    sick = [item for item in judged if item[0].fault is not None]
    healthy = [item for item in judged if item[0].fault is None]
    assert len(sick) == len(healthy) == 40
    assert not [outcome.reason for _, outcome in judged if outcome.reason]
    missed = [case.id for case, outcome in sick if not is_found(case, outcome)]
    alarmed = {case.id: [item.code for item in loud(outcome)] for case, outcome in healthy if loud(outcome)}
    assert len(missed) <= 1, missed
    assert len(alarmed) <= 1, alarmed


def test_what_is_done_is_shown_without_running_anything(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "faults.py")
    command = [sys.executable, script, "--few", "--done", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "0 of 80 cases are done." in done.stdout and "to go" not in done.stderr
