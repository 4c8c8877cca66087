"""The rules about a run as a whole, on runs made by hand and on small real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from torch import Tensor

import evenkeel as ek
from evenkeel.data import standard_library_text
from evenkeel.diagnosis import Diagnosis
from evenkeel.rules import RULES, apply, at, example
from evenkeel.schema import Finding, StepLog
from evenkeel.training import adamw, byte_batches, train


def found(code: str, *log: StepLog, places=()) -> tuple[Finding, ...]:
    return apply(RULES[code], example("a run", *places, log=log).measurements)[0]


def logged(losses, norms=None, jumps=()) -> tuple[StepLog, ...]:
    return tuple(
        StepLog(
            step=step,
            loss=float(loss),
            gradient_norm=None if norms is None else float(norms[step]),
            jump=50.0 if step in jumps else None,
            batch=f"{step:016x}",
        )
        for step, loss in enumerate(losses)
    )


# --- made by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_gradient_jump(seed: int) -> None:
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(0, 0.3, 2000)) * (1 + 8 * np.exp(-np.arange(2000) / 30))
    assert found("RUN802", *logged(np.full(2000, 2.0), norms)) == ()


def test_a_gradient_jump_is_told_by_the_first_and_only_where_the_loss_is_calm() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0, 0.2, 80))
    norms[40], norms[60] = 12.0, 40.0
    (finding,) = found("RUN802", *logged(np.full(80, 2.0), norms))
    assert finding.severity == "warning" and "at step 40 " in finding.message and "has not jumped" in finding.message
    (later,) = found("RUN802", *logged(np.full(80, 2.0), norms, jumps={45}))
    assert "jumps at step 45" in later.message
    assert found("RUN802", *logged(np.full(50, 2.0), norms[:50], jumps={40})) == ()


def test_a_gradient_jump_by_itself_is_only_worth_knowing_once_the_run_has_gone_on() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0, 0.2, 120))
    norms[40] = 12.0
    (alone,), (just_now,) = (found("RUN802", *logged(np.full(end, 2.0), norms[:end])) for end in (120, 50))
    assert (alone.severity, just_now.severity) == ("info", "warning")
    skipped = logged(np.full(120, 2.0), [*norms[:41], np.inf, *norms[42:]])
    assert found("RUN802", *skipped)[0].severity == "warning"  # a step that was left out is no calm
    norms[41:50] = 14.0
    (lasting,) = found("RUN802", *logged(np.full(120, 2.0), norms))
    assert lasting.severity == "warning"


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_descent_does_not_diverge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = 2.2 + 3.3 * np.exp(-np.arange(400) / 25) + rng.normal(0, 0.12, 400)
    assert all(found("RUN803", *logged(losses[:end])) == () for end in range(20, 400, 20))


def test_a_loss_above_its_start_is_an_error_and_one_that_lost_half_a_warning() -> None:
    descent = 2.5 + 3.0 * np.exp(-np.arange(60) / 15)
    for level, severity in ((3.6, None), (4.4, "warning"), (7.0, "error")):
        findings = found("RUN803", *logged(np.concatenate([descent, np.full(12, level)])))
        assert [item.severity for item in findings] == ([severity] if severity else []), level


def test_half_the_batches_may_be_one() -> None:
    turns = tuple(StepLog(step=step, loss=2.0, batch=f"{step % 2:016x}") for step in range(40))
    stuck = tuple(StepLog(step=step, loss=2.0, batch=f"{max(0, 30 - step):016x}") for step in range(40))
    assert found("RUN807", *turns) == () and len(found("RUN807", *stuck)) == 1


def test_a_gradient_jump_before_a_spike_moved_first() -> None:
    norms = np.full(40, 0.7) + 0.05 * np.cos(np.arange(40))
    norms[30] = 9.0
    losses = np.full(40, 2.0) + 0.01 * np.cos(np.arange(40))
    losses[33:] = 6.0
    (finding,) = found("RUN801", *logged(losses, norms, jumps={33}))
    assert "first to move: gradient_norm, 9 at step 30" in finding.message


def test_what_moves_only_behind_a_bad_batch_did_not_move_first() -> None:
    losses = [2.0, 2.1] * 10 + [9.0] + [2.05] * 10
    places = [
        at("layers.0.attn:attention.softmax", step=step, max_logit=value)
        for step, value in ((0, 10.0), (5, 10.2), (10, 10.1), (15, 10.3), (21, 90.0))
    ]
    (finding,) = found("RUN801", *logged(losses, jumps={20}), places=places)
    assert "it begins with this batch" in finding.message and f"{20:016x}" in finding.message


def test_a_spike_of_a_run_without_warm_up_says_so() -> None:
    def spike(rates: list[float]) -> str:
        places = [
            at(
                "up.weight:parameter.parameter",
                step=step,
                update={"learning_rate": rate, "planned_learning_rate": 1e-2},
            )
            for step, rate in zip((0, 5), rates, strict=True)
        ]
        return found("RUN801", *logged([2.0] * 20 + [9.0], jumps={20}), places=places)[0].message

    assert "there is no warm-up" in spike([1e-2, 1e-2]) and "no warm-up" not in spike([1e-3, 6e-3])


# --- real runs ---------------------------------------------------------------------------------------------------


def trained(rate: float, batches: Iterator[Tensor], steps: int = 30) -> tuple[Diagnosis, list[float]]:
    net = ek.Transformer(ek.TransformerConfig(vocabulary=256, context=32, depth=2, d_model=32))
    optimizer = adamw(net, learning_rate=rate)
    with ek.watch(net, optimizer=optimizer, every=5) as watch:
        losses = train(net, optimizer, batches, steps=steps, watch=watch)
        return watch.diagnose(), losses


def bytes_of(text: str) -> Iterator[Tensor]:
    return byte_batches(text, context=32, size=8, seed=0)


def test_a_healthy_run_is_silent_and_the_same_at_a_hundredfold_rate_is_not() -> None:
    text = standard_library_text()
    healthy, _ = trained(3e-3, bytes_of(text))
    assert not [item for item in healthy.findings if item.severity != "info"]
    sick, _ = trained(0.3, bytes_of(text))
    assert [item.cause for item in sick.findings if item.code == "RUN804"] == [""]


def test_one_batch_for_ever() -> None:
    batch = next(bytes_of(standard_library_text()))
    diagnosis, losses = trained(3e-3, iter(lambda: batch, None))
    (finding,) = [item for item in diagnosis.findings if item.code == "RUN807"]
    assert "30" in finding.message.split() or "16 of the last 16" in finding.message
    assert math.isfinite(losses[-1])
