"""Claims that rest on trained models: their studies, verdicts of made-up worlds, stored runs and fresh ones."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from ledger_cases import LEVELS, World
from scipy import stats

import evenkeel as ek
from evenkeel.catalogue import Catalogue
from evenkeel.cli.main import main
from evenkeel.errors import UsageError
from evenkeel.ledger import CLAIMS, VERDICTS, Bound, Claim, MeasuredClaim, Measurement, Text, _running, _studies
from evenkeel.ledger._contrasts import NARANG, SHAZEER_65K, SHAZEER_524K, contrast, spearman
from evenkeel.ledger._studies import Comparisons, Provenance, StudyRun, comparison_of, study_named
from evenkeel.studies import Report, Run
from evenkeel.studies.reading.arms import plan_arms

HOLDS, CAVEAT, FAILS, UNDECIDED = VERDICTS
TRAINED = tuple(claim for claim in CLAIMS.values() if claim.studies)
FEEDFORWARD, LARGER = "feedforward", "feedforward-larger"


@cache
def base(name: str) -> ek.studies.Comparison:
    return World().run(name)


def judged(claim: Claim, world: World) -> MeasuredClaim:
    """The claim in a world; what it measures without training meets its bounds."""
    altered = set(world.levels) | (set(claim.studies) if world != World(levels=world.levels) else set())
    runs = {name: world.run(name) if name in altered else base(name) for name in claim.studies}
    numbers = {item.name: item for item in claim.trained(runs)}
    bounds: dict[str, list[Bound]] = defaultdict(list)
    for bound in claim.criterion:
        bounds[bound.measurement].append(bound)
    for name, limits in bounds.items():
        if name not in numbers:
            inside = next(end for bound in limits for end in (bound.low, bound.high) if abs(end) < 1e300)
            numbers[name] = Measurement(name, inside, "1")
    return MeasuredClaim(claim=claim, measurements=tuple(numbers.values()))


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_a_world_as_the_claims_say(claim: Claim) -> None:
    found = judged(claim, World())
    assert found.verdict == (CAVEAT if claim.id in ("C10", "C38") else HOLDS), found.missed
    assert {bound.measurement for bound in found.missed} <= {"largest_vocabulary", "deepest"}


GATED = ("glu", "bilinear", "reglu", "geglu", "swiglu")


@pytest.mark.parametrize(
    ("name", "world", "verdict"),
    [
        ("C05", World({FEEDFORWARD: {"sigmoid": 1.9}}), FAILS),
        ("C05", World({FEEDFORWARD: {"sigmoid": 1.98}}), FAILS),  # a tie
        ("C05", World({LARGER: {"sigmoid": 1.98}}), CAVEAT),
        ("C05", World(spread=2.0), UNDECIDED),
        ("C10", World({"head": {"sigmoid 2048": 1.9}}), FAILS),
        ("C10", World(health={"sum of probabilities: deviation": 0.01}), FAILS),  # sums of 1 after all
        ("C10", World(spread=2.0), UNDECIDED),
        ("C13", World({FEEDFORWARD: {"gelu": 2.1}}), FAILS),
        ("C13", World({FEEDFORWARD: {"relu2": 1.95}}), CAVEAT),
        ("C16", World({"scale": {"dim 64": 1.9}}), CAVEAT),
        ("C19", World({"scale": {"dim 64": 1.8}}), FAILS),
        ("C19", World({"scale": {"folded 16": 1.8}}), FAILS),
        ("C19", World(diverging=("sqrt 16",)), FAILS),
        ("C19", World({"scale": {"none 16": 1.9}}), CAVEAT),
        ("C23", World(health={"confidence where wrong": 0.1}), FAILS),
        ("C23", World(health={"confidence − accuracy": -0.02}), CAVEAT),
        ("C27", World({FEEDFORWARD: dict.fromkeys(GATED, 2.1)}), FAILS),
        ("C27", World({LARGER: dict.fromkeys(GATED, 2.1)}), FAILS),
        ("C27", World({FEEDFORWARD: {"glu": 2.05}}), FAILS),  # one that is worse
        ("C27", World({FEEDFORWARD: {"glu": 1.983}}), CAVEAT),
        ("C27", World({FEEDFORWARD: {"relu2": 1.9}}), CAVEAT),
        ("C27", World({LARGER: {"glu": 1.90, "bilinear": 1.91, "reglu": 1.92}}), CAVEAT),  # another order
        ("C27", World(spread=2.0), UNDECIDED),
        ("C28", World({FEEDFORWARD: {"geglu": 1.92}}), FAILS),
        ("C28", World({FEEDFORWARD: {"reglu": 1.944}}), FAILS),
        ("C28", World({LARGER: {"geglu": 1.92}}), CAVEAT),
        ("C28", World(spread=2.0), UNDECIDED),
        ("C30", World({"depth": {"swiglu 3": 2.0, "slim swiglu 4": 2.0}}), FAILS),
        ("C30", World({"depth": {"swiglu 3": 2.0}}), CAVEAT),
        ("C30", World({"depth": {"slim swiglu 4": 2.0}}), CAVEAT),
        ("C30", World(loud=("slim swiglu 4",)), CAVEAT),  # one is shown, the other undecided
        ("C30", World(spread=2.0), UNDECIDED),
        ("C38", World({"depth": {"sigmoid 8": 1.95}}), FAILS),  # the gap of two blocks
        ("C38", World({"depth": {"sigmoid 8": 1.9}}), FAILS),
        ("C38", World(spread=2.0), UNDECIDED),
        ("C39", World({FEEDFORWARD: {"sigmoid": 1.94}}), FAILS),
        ("C39", World(steep=("silu",)), CAVEAT),
        ("C39", World(diverging=("gelu",)), UNDECIDED),  # one pair at its start says nothing of the others
        ("C47", World({"depth": {"swiglu 4": 1.95}}), FAILS),
        ("C47", World({"depth": {"gelu 8": 1.5}}), FAILS),
        ("C47", World({"depth": {"wide gelu 4": 1.5}}), CAVEAT),
        ("C47", World(spread=2.0), UNDECIDED),
    ],
)
def test_another_world_gets_another_verdict(name: str, world: World, verdict: str) -> None:
    found = judged(CLAIMS[name], world)
    assert found.verdict == verdict, found.missed


def test_the_growth_of_the_gap_is_that_of_the_pairs() -> None:
    numbers = {item.name: item.value for item in CLAIMS["C38"].trained({"depth": base("depth")})}
    arms = {item.plan.arm.name: item.losses for item in base("depth").arms}
    growth = [
        arms["sigmoid 8"][seed] - arms["gelu 8"][seed] - arms["sigmoid 2"][seed] + arms["gelu 2"][seed]
        for seed in range(5)
    ]
    low, high = stats.t.interval(0.95, 4, loc=sum(growth) / 5, scale=stats.sem(growth))
    assert numbers["growth_of_gap.mean"] == pytest.approx(sum(growth) / 5)
    assert (numbers["growth_of_gap.low"], numbers["growth_of_gap.high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("printed", [SHAZEER_65K, SHAZEER_524K, NARANG])
def test_rank_correlations_agree_with_scipy(printed: dict[str, float]) -> None:
    ours, theirs = [LEVELS[FEEDFORWARD][name] for name in printed], list(printed.values())
    assert spearman(ours, theirs) == pytest.approx(stats.spearmanr(ours, theirs)[0])
    assert spearman(ours, ours[::-1]) == pytest.approx(stats.spearmanr(ours, ours[::-1])[0])


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_study_can_be_run_as_specified(name: str) -> None:
    study = study_named(name)
    plans = plan_arms(study)
    context = plans[0].config["context"]
    fewest = 500_000 if name == "depth" else 1_000_000
    assert (study.steps or 0) * study.rows * context >= fewest and study.rows * context == 1024
    assert {plan.arm.name for plan in plans} == set(LEVELS[name])
    if study.match == "parameters":
        assert all(abs(plan.difference) <= 0.005 for plan in plans)


def test_gated_and_plain_layers_are_equal_at_each_depth() -> None:
    sizes = {plan.arm.name: plan.parameters for plan in plan_arms(study_named("depth"))}
    for depth in (2, 4, 8):
        assert sizes[f"swiglu {depth}"] == pytest.approx(sizes[f"gelu {depth}"], rel=0.005)
        assert sizes[f"sigmoid {depth}"] == sizes[f"gelu {depth}"]
    assert sizes["swiglu 3"] < sizes["gelu 4"] > sizes["slim swiglu 4"]


def test_every_study_belongs_to_a_claim_and_a_stored_run_to_its_specification() -> None:
    files = {path.stem for path in _studies.FOLDER.glob("*.toml")}
    assert files == {name for claim in CLAIMS.values() for name in claim.studies} == set(LEVELS)
    for path in _studies.FOLDER.glob("*.json"):
        run = _studies.stored(path.stem)
        assert run is not None and not run.wanted and run.notes
        assert run.study.identity == study_named(path.stem).identity
        assert run.study.contrasts == study_named(path.stem).contrasts


# --- a study of seconds ------------------------------------------------------------------------------------------

TINY = """
rows = 2
steps = 10
seeds = 2
tuning_trials = 3
learning_rates = [1e-3, 4e-3]
data = "text.txt"
contrasts = [["gelu", "relu"]]

[model]
depth = 1
d_model = 16
context = 16
attention.heads = 2

[axes]
feedforward = ["relu", "gelu"]
"""


def _tiny_numbers(runs: Comparisons) -> Iterator[Measurement]:
    yield from contrast(runs["tiny"], "gelu", "relu", "gelu_over_relu")


A_CLAIM = Claim(
    id="C05",
    statement=Text(en="It trains.", es="Se entrena.", pt="Treina."),
    method=Text(en="Trained.", es="Entrenado.", pt="Treinado."),
    studies=("tiny",),
    trained=_tiny_numbers,
    criterion=(Bound(measurement="gelu_over_relu.mean", low=-9, high=9),),
    ops=("gelu",),
    source="a test",
)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A ledger of one trained claim and one that is not; in its folder a study that has no stored run."""
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "text.txt").write_text("\n".join(f"line {number}: {number * number}" for number in range(2000)))
    few: Catalogue[Claim] = Catalogue("claim")
    few.add("C05", A_CLAIM)
    few.add("C34", CLAIMS["C34"])
    monkeypatch.setattr(_running, "CLAIMS", few)
    monkeypatch.setattr(_studies, "FOLDER", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))
    for cached in (_studies.stored, _studies.study_named):
        cached.cache_clear()
    yield tmp_path
    for cached in (_studies.stored, _studies.study_named):
        cached.cache_clear()


def test_without_a_run_a_claim_says_what_to_type(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for language, words in (("en", "evenkeel claims C05 --train makes one"), ("es", "--train hace una"), ("pt", "faz")):
        assert main(["claims", "C05", "--lang", language]) == 0
        page = " ".join(capsys.readouterr().out.split())
        assert words in page and "could not be measured" not in page
    assert main(["claims", "C05", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["claims"]
    assert found["verdict"] == UNDECIDED and "--train" in found["reasons"][0]["es"]
    assert found["run"] == {"kind": "none", "date": None, "versions": {}, "studies": {}}


def test_trained_afresh_and_then_stored(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tiny / "trials.sqlite")
    assert main(["claims", "C05", "--train", "--storage", where, "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    (trained,) = json.loads(shown.out)["claims"]
    assert trained["run"]["kind"] == "trained" and trained["verdict"] == HOLDS
    assert main(["compare", "--resume", "--storage", where, "--name", "tiny", "--export", "json"]) == 0
    export = json.loads(capsys.readouterr().out)
    run = trained["run"]["studies"]["tiny"]
    assert run == {
        "identity": study_named("tiny").identity,
        "trials": len(export["results"]),
        "date": export["finished"][:10],
    }
    assert {item["name"]: item["value"] for item in trained["measurements"]}["gelu_over_relu.mean"] == pytest.approx(
        export["verdicts"][0]["interval"]["mean"]
    )
    (tiny / "tiny.json").write_text(json.dumps(export))
    _studies.stored.cache_clear()
    assert main(["claims"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert f"It trains. [stored: run on {run['date']} with torch {export['versions']['torch']}]" in table
    assert "C34 does not hold Softmax is a set of sigmoids, normalised. e" in table  # nothing stored about this one
    assert main(["claims", "C05", "--format", "json"]) == 0
    (stored,) = json.loads(capsys.readouterr().out)["claims"]
    assert stored["run"] == trained["run"] | {"kind": "stored"}
    assert stored["measurements"] == trained["measurements"]
    assert main(["claims", "C05", "--format", "markdown"]) == 0
    assert f"*stored: run on {run['date']}" in capsys.readouterr().out


def test_a_stopped_training_goes_on(tiny: Path) -> None:
    where, seen = str(tiny / "trials.sqlite"), []

    def watcher(name: str, run: Run) -> Report:
        def stop(done: int, total: int, share: float) -> None:
            seen.append(done)
            if done == 2 and share == 0:
                signal.raise_signal(signal.SIGINT)

        return stop

    (stopped,) = ek.claims("C05", train=True, storage=where, watcher=watcher).claims
    assert stopped.run.kind == "none" and stopped.verdict == UNDECIDED and max(seen) == 2
    (whole,) = ek.claims("C05", train=True, storage=where).claims
    assert whole.run.kind == "trained" and whole.verdict == HOLDS
    assert whole.run.studies[0].trials >= 2 * (3 + 2)


def test_an_edited_verdict_of_an_export_counts_for_nothing() -> None:
    data = World().run("head").to_dict()
    words = [item.word for item in comparison_of(data).verdicts]
    for verdict in data["verdicts"]:
        verdict["verdict"] = "better"
    assert [item.word for item in comparison_of(data).verdicts] == words == ["worse", "worse"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["C34", "--train"], "C34: nothing is trained for it; those are C05"),
        (["C5", "--budget", "30m"], "a budget or a storage is of training, and nothing is trained; give --train"),
        (["C5", "--storage", "x.sqlite"], "a budget or a storage is of training"),
        (["C5", "--train", "--budget", "soon"], "budget is 'soon'; give seconds, or a duration such as 90s"),
        (["C5", "--train", "--budget", "0.01s", "--storage", "x.sqlite"], "a budget of 0.01 s gives 0 steps to each"),
        (["C77", "--train"], "no claim is called 'C77'"),
        (["--document", "002", "--train"], "--document walks what is stored; leave out --train"),
    ],
)
def test_wrong_requests(
    arguments: list[str], said: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny)
    assert main(["claims", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"evenkeel: {said}") and shown.err.count("\n") == 1


def test_versions_and_dates_of_several_studies() -> None:
    runs = [
        StudyRun(name=name, identity="a", trials=1, date=date, versions=(("torch", torch),))
        for name, date, torch in (("one", "2026-03-01", "2.13.0"), ("two", "2026-02-01", "2.12.0"))
    ]
    both = Provenance(kind="stored", studies=tuple(runs))
    assert both.date == "2026-03-01" and both.versions == {"torch": "2.13.0, 2.12.0"}


def test_training_options_in_python() -> None:
    with pytest.raises(UsageError, match="nothing is trained"):
        ek.claims("C05", budget=60)
