"""The trial that a study runs by default: what it trains on and measures, and that it goes on as if never stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evenkeel.nn import AttentionConfig, HeadConfig, Transformer, TransformerConfig
from evenkeel.studies.judging import check_pairing
from evenkeel.studies.points import Point
from evenkeel.studies.reading.arms import plan_arms
from evenkeel.studies.reading.specifications import read_study
from evenkeel.studies.results import TrialResult
from evenkeel.studies.trials.corpus import Corpus, read_corpus
from evenkeel.studies.trials.language import LanguageTrials, evaluation_steps, parameter_hashes
from evenkeel.studies.trials.objectives import Session, Stopped
from evenkeel.studies.trials.predictions import copy_loss, predictions, row_losses

CONTEXT, STEPS, RATE = 16, 24, 1e-2
TEXT = b"".join(f"line {number}: {number * number}\n".encode() for number in range(4000))
SMALL = TransformerConfig(depth=1, d_model=16, context=CONTEXT)


@pytest.fixture(scope="module")
def trials() -> LanguageTrials:
    study = read_study(["feedforward=gelu,swiglu", "depth=2", "d_model=16", f"context={CONTEXT}"])
    corpus = Corpus("lines", TEXT[: -len(TEXT) // 10], TEXT[-len(TEXT) // 10 :], "")
    return LanguageTrials({plan.arm.name: plan for plan in plan_arms(study)}, corpus, rows=4, steps=STEPS)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "trial.pt")


def untimed(result: TrialResult) -> TrialResult:
    return replace(result, seconds=0.0, tokens_per_second=0.0, finished="", health={}, findings=())


def test_a_trial_is_the_same_for_the_same_point(trials: LanguageTrials, tmp_path: Path) -> None:
    point = Point("gelu", "tuning", RATE, 3)
    first, second = (trials(point, Session(tmp_path / f"{name}.pt")) for name in "ab")
    assert untimed(first) == untimed(second)
    assert trials(replace(point, seed=4), Session(tmp_path / "c.pt")).loss != first.loss


def test_a_trial_stopped_at_any_step_goes_on_as_if_it_had_not(trials: LanguageTrials, tmp_path: Path) -> None:
    point = Point("swiglu", "tuning", RATE, 0)
    whole = trials(point, Session(tmp_path / "whole.pt"))
    for stop in (1, 7, STEPS - 1):
        path, seen = tmp_path / f"{stop}.pt", []
        with pytest.raises(Stopped):
            trials(point, Session(path, stopping=lambda seen=seen, stop=stop: len(seen) >= stop, progress=seen.append))
        assert path.exists() and len(seen) == stop
        assert untimed(trials(point, Session(path))) == untimed(whole)


def test_arms_of_a_seed_start_alike_and_see_the_same(trials: LanguageTrials, tmp_path: Path) -> None:
    gelu, swiglu, other = (
        trials(Point(arm, "tuning", RATE, seed), Session(tmp_path / f"{arm}{seed}.pt")).hashes
        for arm, seed in (("gelu", 0), ("swiglu", 0), ("gelu", 1))
    )
    shared = gelu.keys() & swiglu.keys()
    assert {"batches", "held_out", "parameter embedding.weight 256x16 ±1"} <= shared
    assert all(gelu[name] == swiglu[name] for name in shared)
    assert gelu["batches"] != other["batches"]
    assert gelu["held_out"] == other["held_out"]
    assert gelu["parameter embedding.weight 256x16 ±1"] != other["parameter embedding.weight 256x16 ±1"]


def test_arms_that_start_otherwise_on_purpose_share_the_rest() -> None:
    """T5's arm: queries start from the same numbers, a quarter as large, and are not what the arms have in common."""
    scaled, folded, untied = (
        Transformer(replace(SMALL, **change), seed=3)
        for change in (
            {},
            {"attention": AttentionConfig(scale="none", query_gain=0.25)},
            {"head": HeadConfig(tied=False)},
        )
    )
    query = "blocks.0.attention.query.weight"
    torch.testing.assert_close(folded.get_parameter(query), scaled.get_parameter(query) / 4)
    hashes = {name: parameter_hashes(model) for name, model in (("a", scaled), ("b", folded), ("c", untied))}
    shared = hashes["a"].keys() & hashes["b"].keys()
    assert {name for name in hashes["a"] if name not in shared} == {f"parameter {query} 16x16"}
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        common = hashes[one].keys() & hashes[other].keys()
        assert len(common) > 3 and all(hashes[one][name] == hashes[other][name] for name in common)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_predictions_are_as_sure_and_as_right_as_numpy_counts(kind: str) -> None:
    model = Transformer(replace(SMALL, head=HeadConfig(kind="softmax" if kind == "softmax" else "sigmoid")), seed=5)
    rows = torch.randint(8, (70, CONTEXT), generator=torch.Generator().manual_seed(2))  # more than one chunk
    with torch.no_grad():
        logits = model(rows).logits
    assert logits is not None
    scores = logits.double().numpy()[:, :-1].reshape(-1, 256)
    weights = np.exp(scores) if kind == "softmax" else 1 / (1 + np.exp(-scores))
    chances, targets = weights / weights.sum(-1, keepdims=True), rows[:, 1:].numpy().ravel()
    top, right = chances.max(-1), chances.argmax(-1) == targets
    bins = np.ceil(top * 15).astype(int)
    error = sum(abs(right[bins == place].sum() - top[bins == place].sum()) for place in range(1, 16)) / len(top)
    found = predictions(model, rows)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["confidence − accuracy"] == pytest.approx(top.mean() - right.mean(), abs=1e-6)
    assert found["confidence where wrong"] == pytest.approx(top[~right].mean(), rel=1e-5)
    assert found["calibration error"] == pytest.approx(error, rel=1e-5)
    sums = weights.sum(-1) if kind == "sigmoid" else np.ones(len(weights))
    assert found["sum of probabilities"] == pytest.approx(sums.mean(), rel=1e-5)
    assert found["sum of probabilities: deviation"] == pytest.approx(sums.std(ddof=1), rel=1e-3, abs=1e-6)


def test_a_learning_rate_far_too_high_diverges_and_counts_with_its_start(
    trials: LanguageTrials, session: Session
) -> None:
    result = trials(Point("gelu", "tuning", 1e4, 0), session)
    assert result.diverged and result.counted == result.start == result.evaluations[0].loss


def test_a_loss_is_the_mean_of_the_last_evaluations(trials: LanguageTrials, session: Session) -> None:
    result = trials(Point("gelu", "tuning", RATE, 0), session)
    assert result.loss == pytest.approx(np.mean([item.loss for item in result.evaluations[-3:]]))
    assert not result.diverged and result.loss < result.start
    assert [item.step for item in result.evaluations] == sorted(evaluation_steps(STEPS))


def test_only_a_paired_trial_is_watched(trials: LanguageTrials, tmp_path: Path) -> None:
    tuned, paired = (
        trials(Point("gelu", role, RATE, 0), Session(tmp_path / f"{role}.pt")) for role in ("tuning", "paired")
    )
    assert not tuned.health and tuned.loss == paired.loss
    assert 0 < paired.health["attention entropy / maximum"] <= 1
    assert 0 < paired.health["confidence"] <= 1
    assert 0.01 < paired.health["gradient: first block / last"] < 100


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_are_those_of_the_distribution_over_the_vocabulary(kind: str) -> None:
    model = Transformer(replace(SMALL, head=HeadConfig(kind="softmax" if kind == "softmax" else "sigmoid")))
    rows = torch.randint(256, (5, CONTEXT), generator=torch.Generator().manual_seed(0))
    logits = model(rows).logits
    assert logits is not None
    scores = logits.detach().double().numpy()[:, :-1]
    weights = np.exp(scores) if kind == "softmax" else 1 / (1 + np.exp(-scores))
    chosen = np.take_along_axis(weights, rows[:, 1:, None].numpy(), -1)[..., 0]
    expected = -np.log(chosen / weights.sum(-1))
    np.testing.assert_allclose(row_losses(model, rows).numpy(), expected, rtol=1e-5)


def test_a_copy_is_judged_on_its_second_half_alone() -> None:
    model = Transformer(SMALL)
    rows = torch.randint(256, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    half = CONTEXT // 2
    repeated = torch.cat([rows[:, :half], rows[:, :half]], 1)
    logits = model(repeated).logits
    assert logits is not None
    expected = torch.nn.functional.cross_entropy(
        logits[:, half:-1].double().flatten(0, 1), repeated[:, half + 1 :].flatten()
    )
    assert copy_loss(model, rows) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("steps", [10, 57, 400])
def test_a_trial_is_evaluated_at_both_ends_and_closely_at_the_last(steps: int) -> None:
    found = sorted(evaluation_steps(steps))
    assert found[0] == 0 and found[-1] == steps
    assert all(steps - step <= max(2, steps // 20) for step in found[-3:])


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    letters = np.random.default_rng(0).integers(97, 123, size=1_000_000, dtype=np.uint8).tobytes()
    path.write_bytes(letters)
    corpus = read_corpus(str(path), context=64)
    assert len(corpus.held_out) + len(corpus.training) == len(letters)
    assert len(corpus.held_out) == pytest.approx(len(letters) / 10, rel=0.1)
    for start in range(0, len(corpus.held_out) - 16, 1009):  # 16 letters meet by chance once in 26^16
        assert corpus.held_out[start : start + 16] not in corpus.training


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, letter in (("b.txt", "b"), ("a.md", "a"), ("c.bin", "\0")):
        (tmp_path / name).write_text(letter * 2000)
    corpus = read_corpus(str(tmp_path), context=16)
    assert corpus.training.startswith(b"a" * 1000) and corpus.held_out.endswith(b"b" * 100)


def test_a_trial_whose_loss_is_no_number_ends_early_and_is_still_a_pair(trials: LanguageTrials, tmp_path: Path) -> None:
    broken, sound = (
        trials(Point(arm, "tuning", rate, 0), Session(tmp_path / f"{arm}.pt"))
        for arm, rate in (("gelu", math.inf), ("swiglu", RATE))
    )
    assert broken.diverged and broken.evaluations[-1].step < STEPS
    assert check_pairing([broken, sound])  # raises where what they saw differs


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_checkpoint_that_is_torn_or_of_another_trial_counts_as_none(
    trials: LanguageTrials, tmp_path: Path, content: bytes | None
) -> None:
    point, path = Point("gelu", "tuning", RATE, 0), tmp_path / "trial.pt"
    if content is None:  # of a longer trial, at a step that this one does not have
        seen: list[float] = []
        longer = replace(trials, steps=3 * STEPS)
        with pytest.raises(Stopped):
            longer(point, Session(path, stopping=lambda: len(seen) > STEPS, progress=seen.append))
    else:
        path.write_bytes(content)
    assert untimed(trials(point, Session(path))) == untimed(trials(point, Session(tmp_path / "fresh.pt")))


def test_a_watched_trial_goes_on_with_its_record(trials: LanguageTrials, tmp_path: Path) -> None:
    point, path, seen = Point("gelu", "paired", RATE, 0), tmp_path / "trial.pt", []
    with pytest.raises(Stopped):
        trials(point, Session(path, stopping=lambda: len(seen) >= 14, progress=seen.append))
    again, whole = trials(point, Session(path)), trials(point, Session(tmp_path / "whole.pt"))
    assert again.health == whole.health and again.findings == whole.findings
