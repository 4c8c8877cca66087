"""The small trainer: batches are windows of the text, the schedule and the clipping hold, a run repeats exactly."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.nn import AttentionConfig, Transformer, TransformerConfig
from evenkeel.training import adamw, byte_batches, train
from evenkeel.watching import watch

TINY = TransformerConfig(depth=2, d_model=16, context=16, attention=AttentionConfig(heads=2))
TEXT = "".join(chr(32 + (7 * place * place) % 90) for place in range(500)) + "ñ→"


def some(seed: int, count: int = 5) -> list[Tensor]:
    return list(itertools.islice(byte_batches(TEXT, context=16, size=4, seed=seed), count))


def test_batches_are_windows_of_the_texts_bytes() -> None:
    raw = TEXT.encode()
    windows = {raw[start : start + 16] for start in range(len(raw) - 15)}
    batches = some(0, 200)
    assert all(batch.shape == (4, 16) and batch.dtype == torch.int64 for batch in batches)
    seen = {bytes(row.tolist()) for batch in batches for row in batch}
    assert seen <= windows
    assert raw[:16] in seen and raw[-16:] in seen  # both ends can be drawn


def test_batches_repeat_for_a_seed_and_only_for_it() -> None:
    assert all(torch.equal(*pair) for pair in zip(some(1), some(1), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(some(1), some(2), strict=True))


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="the text has 15 bytes and a window needs 16"):
        next(byte_batches("x" * 15, context=16, size=1, seed=0))
    assert next(byte_batches("x" * 16, context=16, size=1, seed=0)).shape == (1, 16)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    model = Transformer(TINY)
    optimizer = adamw(model, learning_rate=0.01)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    train(model, optimizer, byte_batches(TEXT, context=16, size=2, seed=0), steps=50)
    assert rates[:6] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01])
    cosine = [0.001 + 0.009 * (1 + math.cos(math.pi * step / 45)) / 2 for step in range(45)]
    assert rates[5:] == pytest.approx(cosine)


def test_gradients_are_clipped_to_norm_one_and_never_stretched() -> None:
    for factor in (100.0, 1e-3):
        model = Transformer(TINY)
        with torch.no_grad():
            model.head.get_parameter("weight").mul_(factor)
        optimizer = adamw(model, learning_rate=1e-3)
        norms: list[float] = []

        def see(*_: object, model: Transformer = model, norms: list[float] = norms) -> None:
            norms.append(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5)

        optimizer.register_step_pre_hook(see)
        plain = Transformer(TINY)
        plain.load_state_dict(model.state_dict())
        batch = some(0, 1)[0]
        plain(batch, labels=batch).loss.backward()
        unclipped = sum(float(p.grad.square().sum()) for p in plain.parameters() if p.grad is not None) ** 0.5
        assert unclipped > 1 if factor > 1 else unclipped < 1
        train(model, optimizer, iter([batch]), steps=1)
        assert norms == pytest.approx([min(1.0, unclipped)], rel=1e-4)


def test_each_step_starts_from_its_own_gradient() -> None:
    model, twin = Transformer(TINY), Transformer(TINY)
    optimizer, plain = adamw(model, learning_rate=0.01), adamw(twin, learning_rate=0.01)
    train(model, optimizer, iter(some(0, 4)), steps=4)
    for batch, share in zip(some(0, 4), (1, 1, 0.775, 0.325), strict=True):  # the cosine at 0, 1/3 and 2/3
        for group in plain.param_groups:
            group["lr"] = 0.01 * share
        twin(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        plain.step()
        for parameter in twin.parameters():
            parameter.grad = None
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_norms_are_not_decayed() -> None:
    model = Transformer(TINY)
    decayed, kept = adamw(model, learning_rate=1e-3).param_groups
    assert decayed["weight_decay"] > 0 and kept["weight_decay"] == 0
    assert {id(p) for p in kept["params"]} == {id(p) for name, p in model.named_parameters() if "norm" in name}


def test_it_learns_what_can_be_learned() -> None:
    model = Transformer(TINY)
    losses = train(
        model, adamw(model, learning_rate=1e-2), byte_batches("abcd" * 50, context=16, size=8, seed=0), steps=60
    )
    assert losses[0] > 4
    assert losses[-1] < 0.05  # each byte follows from the one before


def test_a_run_repeats_exactly_watched_or_not(tmp_path: Path) -> None:
    runs, states, told = [], [], []
    for watched in (False, True, False):
        model = Transformer(TINY, seed=2)
        optimizer = adamw(model, learning_rate=1e-2)
        watcher = watch(model, optimizer=optimizer, every=3, record=tmp_path / "run.sqlite") if watched else None
        batches = byte_batches(TEXT, context=16, size=4, seed=2)
        runs.append(
            train(
                model,
                optimizer,
                batches,
                steps=10,
                watch=watcher,
                progress=lambda *numbers: told.append(tuple(numbers)),
            )
        )
        states.append(model.state_dict())
        if watcher is not None:
            assert watcher.record.steps() == (0, 3, 6, 9)
            entries = watcher.record.log_entries()
            assert [entry.loss for entry in entries] == pytest.approx(runs[-1])
            assert all(entry.gradient_norm and entry.batch for entry in entries)
            watcher.close()
    assert runs[0] == runs[1] == runs[2]
    assert told[:10] == [(step + 1, 10, loss) for step, loss in enumerate(runs[0])]
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in states[0])
