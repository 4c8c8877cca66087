"""Texts are continued with a cache as they would be without one: every kind of model, padded, sampled, overflowing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import SMALL, VARIANTS, configs, small, stirred, token_rows
from sampling_cases import either_way
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import Sampler, sample
from evenkeel.nn import AttentionConfig, Cache, HeadConfig, PositionConfig, Transformer, TransformerConfig
from evenkeel.nn.generation import steps

DRAWN = Sampler(temperature=0.8, top_p=0.95, repetition_penalty=1.3, presence_penalty=0.5)


def model_of(config: TransformerConfig, dtype: torch.dtype = torch.float64) -> Transformer:
    return stirred(Transformer(config)).to(dtype)


def logits_of(model: Transformer, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        logits = model(ids, **options).logits
    assert isinstance(logits, Tensor)
    return logits


def cache_of(model: Transformer, capacity: int, batch: int = 2) -> Cache:
    weight = model.embedding.weight
    return Cache(model.config, batch=batch, capacity=capacity, dtype=weight.dtype, device=weight.device)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_step_sees_what_a_whole_pass_sees(name: str) -> None:
    tolerances = {torch.float64: 1e-9, torch.float32: 2e-4}
    for dtype, tolerance in tolerances.items():
        model, tokens = model_of(VARIANTS[name], dtype), token_rows(2, 5)
        for step in steps(model, tokens, max_new_tokens=15):
            expected = logits_of(model, tokens)[:, -1]
            bound = tolerance * float(expected.abs().max())
            torch.testing.assert_close(step.logits, expected, rtol=0, atol=bound)
            assert torch.equal(step.sampled.tokens, step.logits.argmax(-1))
            tokens = torch.cat([tokens, step.sampled.tokens[:, None]], dim=1)
        assert torch.equal(model.generate(token_rows(2, 5), max_new_tokens=15), tokens)


@pytest.mark.parametrize("cuts", [(5, 6, 7, 12, 17), (1, 2, 17), (16, 17)])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_prompt_may_come_in_pieces(name: str, cuts: tuple[int, ...]) -> None:
    model, ids = model_of(VARIANTS[name]), token_rows(2, 17)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[1, :6] = 0
    for padding in (None, mask):
        cache, found, start = cache_of(model, 17), [], 0
        for end in cuts:
            piece = None if padding is None or (start >= 6 and end == 17) else padding[:, start:end]
            found.append(logits_of(model, ids[:, start:end], attention_mask=piece, cache=cache))
            start = end
        whole = logits_of(model, ids, attention_mask=padding)
        real = mask.bool() if padding is not None else torch.ones_like(mask, dtype=torch.bool)
        torch.testing.assert_close(torch.cat(found, dim=1)[real], whole[real], rtol=1e-9, atol=1e-9)
        assert cache.length == 17


@settings(max_examples=40, deadline=None)
@given(config=configs(), data=st.data())
def test_any_model_takes_any_pieces_with_any_padding(config: TransformerConfig, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, config.context))
    cuts = data.draw(st.sets(st.integers(1, length), max_size=4)) | {length}
    padding = torch.tensor(data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2)))
    model, ids = model_of(config), token_rows(2, length, vocabulary=config.vocabulary)
    mask = torch.arange(length) >= padding[:, None]
    cache, found, start = cache_of(model, length), [], 0
    for end in sorted(cuts):
        piece = mask[:, start:end].long() if bool(padding.any()) else None
        found.append(logits_of(model, ids[:, start:end], attention_mask=piece, cache=cache))
        start = end
    pieces = torch.cat(found, dim=1)
    assert not pieces.isnan().any()
    for row, missing in enumerate(padding.tolist()):
        expected = logits_of(model, ids[row : row + 1, missing:])[0]
        bound = 1e-9 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(pieces[row, missing:], expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, lengths = model_of(VARIANTS[name]), (7, 1, 4)
    rows = [token_rows(1, length, seed=length) for length in lengths]
    padded = torch.cat([torch.cat([torch.full((1, 7 - row.shape[1]), 3), row], dim=1) for row in rows])
    mask = torch.arange(7) >= 7 - torch.tensor(lengths)[:, None]
    seeds = torch.tensor([4, 5, 6])
    for sampler in (None, DRAWN):
        options: dict[str, Any] = {"max_new_tokens": 9, "sampler": sampler}
        found = model.generate(padded, attention_mask=mask.long(), seeds=seeds, **options)
        assert torch.equal(found[:, :7], padded)
        for place, row in enumerate(rows):
            alone = model.generate(row, seeds=int(seeds[place]), **options)
            assert torch.equal(found[place, 7:], alone[0, row.shape[1] :])


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_right_leaves_what_stands_before_it(name: str) -> None:
    model, ids = model_of(VARIANTS[name]), token_rows(2, 12)
    mask = torch.arange(12) < torch.tensor([[12], [8]])
    logits = logits_of(model, ids, attention_mask=mask)
    torch.testing.assert_close(logits[:1], logits_of(model, ids[:1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits[1:, :8], logits_of(model, ids[1:, :8]), rtol=1e-9, atol=1e-9)
    other = torch.where(mask, ids, (ids + 1) % 61)
    assert torch.equal(logits_of(model, other, attention_mask=mask)[mask], logits[mask])
    labels = ids.masked_fill(~mask, -100)
    losses = [model(ids[row : row + 1, :end], labels[row : row + 1, :end]).loss for row, end in ((0, 12), (1, 8))]
    expected = (11 * losses[0] + 7 * losses[1]) / 18
    torch.testing.assert_close(model(ids, labels, attention_mask=mask).loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rotary", "sigmoid head", "many"])
def test_tokens_are_those_that_the_sampler_draws_from_the_logits_of_a_whole_pass(name: str) -> None:
    model, tokens = model_of(VARIANTS[name]), token_rows(3, 4)
    seeds = torch.tensor([7, 8, 2**40])
    found = model.generate(tokens, max_new_tokens=15, sampler=DRAWN, seeds=seeds)
    for position in range(15):
        logits = logits_of(model, tokens)[:, -1]
        if model.config.head.kind == "sigmoid":
            logits = (1 / (1 + torch.exp(-logits))).log()
        drawn = sample(logits, DRAWN, previous=tokens, seeds=seeds, position=position).tokens
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    assert torch.equal(found, tokens)
    other = model.generate(tokens[:, :4], max_new_tokens=15, sampler=DRAWN, seeds=seeds + 1)
    assert not torch.equal(other, tokens)


def test_rows_have_seeds_of_their_own() -> None:
    model, row = model_of(SMALL), token_rows(1, 4)
    sampler, seeds = Sampler(temperature=1.5), torch.tensor([3, 9, 3])
    found = model.generate(row.expand(3, -1), max_new_tokens=12, sampler=sampler, seeds=seeds)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    for place in range(3):
        alone = model.generate(row, max_new_tokens=12, sampler=sampler, seeds=int(seeds[place]))
        assert torch.equal(found[place : place + 1], alone)


OVERFLOWING = {
    "rotary": SMALL,
    "learned": small(position=PositionConfig(kind="learned")),
    "relative": small(position=PositionConfig(kind="relative", buckets=4, farthest=5)),
    "window": small(attention=AttentionConfig(window=3)),
}


@pytest.mark.parametrize("name", OVERFLOWING)
@pytest.mark.parametrize(("context", "prompt"), [(6, 3), (7, 7), (7, 10), (1, 2), (2, 1)])
def test_a_full_context_goes_on_with_its_last_half(name: str, context: int, prompt: int) -> None:
    model = model_of(replace(OVERFLOWING[name], context=context))
    mask = torch.ones(2, prompt, dtype=torch.long)
    mask[1, : prompt - 1] = 0
    for padding in (None, mask):
        tokens = token_rows(2, prompt)
        found = model.generate(tokens, max_new_tokens=14, attention_mask=padding)
        seen = torch.ones_like(tokens) if padding is None else padding
        shown, seen = tokens[:, -context:], seen[:, -context:]
        for _ in range(14):
            if shown.shape[1] > context:
                shown, seen = (rows[:, -(context - context // 2) :] for rows in (shown, seen))
            new = logits_of(model, shown, attention_mask=seen)[:, -1:].argmax(-1)
            shown, seen = torch.cat([shown, new], dim=1), torch.cat([seen, torch.ones_like(new)], dim=1)
            tokens = torch.cat([tokens, new], dim=1)
        assert torch.equal(found, tokens)


def test_steps_go_on_without_end() -> None:
    model = model_of(replace(SMALL, context=4))
    endless = steps(model, token_rows(1, 2))
    found = torch.stack([next(endless).sampled.tokens for _ in range(13)], dim=1)
    assert torch.equal(found, model.generate(token_rows(1, 2), max_new_tokens=13)[:, 2:])


def test_a_row_ends_with_a_stop_token_and_repeats_it() -> None:
    model, ids = model_of(small(position=PositionConfig(kind="learned"))), token_rows(4, 3, seed=5)
    free = model.generate(ids, max_new_tokens=12)
    stops = {int(free[0, 5]), int(free[1, 8])}
    found = model.generate(ids, max_new_tokens=12, stop_tokens=stops)
    longest = 0
    for row in range(4):
        ends = [place for place in range(3, 15) if int(free[row, place]) in stops]
        end = min([*ends, 14])
        longest = max(longest, end)
        wanted = torch.cat([free[row, : end + 1], free[row, end].expand(14 - end)])
        assert torch.equal(found[row], wanted[: found.shape[1]])
    assert found.shape[1] == longest + 1
    only = int(free[0, 3])
    assert model.generate(ids[:1], max_new_tokens=12, stop_tokens=[only]).tolist() == free[:1, :4].tolist()
    inside = model.generate(torch.tensor([[only, only]]), max_new_tokens=2, stop_tokens=[60 - only])
    assert inside.shape[1] >= 3  # a stop token in the prompt stops nothing


@pytest.mark.parametrize("name", ["rotary", "alibi", "softcaps", "many", "post-norm"])
def test_bfloat16_is_generated_in_bfloat16(name: str) -> None:
    model, tokens = model_of(VARIANTS[name], torch.bfloat16), token_rows(2, 5)
    for step in steps(model, tokens, max_new_tokens=6):
        assert step.logits.dtype == torch.bfloat16
        expected = logits_of(model, tokens)[:, -1].float()
        bound = 0.06 * float(expected.abs().max())
        torch.testing.assert_close(step.logits.float(), expected, rtol=0, atol=bound)
        tokens = torch.cat([tokens, step.sampled.tokens[:, None]], dim=1)


def test_autocast_trains_and_generates() -> None:
    for name in ("rotary", "learned", "alibi", "many", "sigmoid head"):
        model, ids = model_of(VARIANTS[name], torch.float32), token_rows(2, 20)
        exact = model(ids, ids).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, ids).loss
            tokens = model.generate(ids[:, :4], max_new_tokens=4)
        loss.backward()
        torch.testing.assert_close(loss.double(), exact.double(), rtol=0.003, atol=0)
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert tokens.shape == (2, 8)


def test_generation_leaves_the_model_as_it_was() -> None:
    model, ids = stirred(Transformer(SMALL)).train(), token_rows(2, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = model.generate(ids, max_new_tokens=30)  # past the context
    assert model.training
    assert torch.is_grad_enabled()
    assert not found.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.eval().generate(ids, max_new_tokens=30), found)
    with torch.inference_mode():
        assert torch.equal(model.generate(ids, max_new_tokens=30), found)
    held = steps(model, ids, max_new_tokens=2)
    next(held)
    assert torch.is_grad_enabled()  # between steps too


def test_kernels_change_no_token() -> None:
    for name in ("rotary", "many", "part rotary"):
        model = model_of(VARIANTS[name], torch.float32)
        found = [model.generate(token_rows(1, 5), max_new_tokens=10) for _ in either_way()]
        assert torch.equal(*found)


def test_a_batch_without_rows_is_continued_too() -> None:
    model = model_of(VARIANTS["many"], torch.float32)
    assert model(torch.zeros(0, 5, dtype=torch.long)).logits.shape == (0, 5, 61)


MODEL = stirred(Transformer(small(context=8, head=HeadConfig(tied=True))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MODEL.generate(token_rows(2, 3), max_new_tokens=1, attention_mask=torch.tensor([[1, 1, 0]] * 2)),
            "attention_mask has padding at the end of a row; pad on the left",
        ),
        (
            lambda: MODEL.generate(token_rows(2, 3), max_new_tokens=1, attention_mask=torch.tensor([[1] * 3, [0] * 3])),
            "pad on the left, so that every row ends in text",
        ),
        (lambda: MODEL.generate(token_rows(2, 0), max_new_tokens=1), "input_ids have no tokens; give at least one"),
        (lambda: MODEL.generate(token_rows(2, 3), max_new_tokens=0), "max_new_tokens is 0 and must be at least 1"),
        (lambda: MODEL(token_rows(2, 9)), "has 9 tokens and the model's context is 8; .* context=9"),
        (
            lambda: [MODEL(token_rows(2, 5), cache=cache) for cache in [cache_of(MODEL, 20)] for _ in range(2)],
            "has 10 tokens and the model's context is 8",
        ),
        (
            lambda: MODEL(token_rows(2, 5), cache=cache_of(MODEL, 4)),
            "the cache has room for 4 tokens and 5 are needed; make a larger one",
        ),
        (
            lambda: MODEL(token_rows(2, 5), attention_mask=torch.ones(2, 1)),
            r"attention_mask has shape \(2, 1\) and input_ids \(2, 5\); give one number for each token",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
