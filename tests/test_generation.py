"""Our sampler inside Hugging Face's `generate`: real models, against transformers' own loop and one without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generation_models import (
    END,
    FAMILIES,
    NO_END,
    PAD,
    PROMPTS,
    SEEDS,
    STEPS,
    VOCABULARY,
    filled,
    generated,
    gpt2,
    inputs_of,
    llama,
    mistral,
    model_of,
    slow_row,
)
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from evenkeel.functional import Sampler
from evenkeel.integrations.transformers import sampling
from evenkeel.reference import sampling as reference


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("use_cache", (True, False))
def test_temperature_zero_is_transformers_greedy(make: Callable[[], Any], use_cache: bool) -> None:
    model = model_of(make)
    inputs = inputs_of(model)
    free = generated(model, model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=NO_END), inputs)
    options: dict[str, Any] = {
        "eos_token_id": [free[0][2], free[1][4]],
        "max_new_tokens": STEPS,
        "use_cache": use_cache,
    }
    for more in ({}, {"min_new_tokens": 6}):
        theirs = model.generate(**inputs, do_sample=False, **options, **more)
        ours = model.generate(**inputs, custom_generate=sampling(temperature=0), **options, **more)
        assert torch.equal(ours, theirs)
        ended = [row.index(PAD) for row in generated(model, ours, inputs) if PAD in row]
        assert bool(ended) and min(ended) > more.get("min_new_tokens", 0)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize(
    ("options", "penalties"),
    [
        ({"temperature": 1.2, "top_p": 0.9}, (1.0, 0.0, 0.0)),
        ({"temperature": 0.8, "top_k": 12, "min_p": 0.02, "order": "llama.cpp"}, (1.4, 0.3, 0.6)),
    ],
    ids=["filters", "penalties"],
)
def test_a_padded_batch_is_each_row_alone_without_a_cache(
    make: Callable[[], Any], options: dict[str, Any], penalties: tuple[float, float, float]
) -> None:
    model = model_of(make)
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    sampler = Sampler(**options, **dict(zip(names, penalties, strict=True)))
    expected = [
        slow_row(model, prompt, int(seed), options, penalties) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    inputs = inputs_of(model)
    together = model.generate(**inputs, custom_generate=sampling(sampler, seeds=SEEDS), max_new_tokens=STEPS)
    longest = max(map(len, expected))
    assert generated(model, together, inputs) == [filled(row)[:longest] for row in expected]
    for prompt, seed, row in zip(PROMPTS, SEEDS, expected, strict=True):
        inputs = inputs_of(model, [prompt])
        alone = model.generate(**inputs, custom_generate=sampling(sampler, seeds=int(seed)), max_new_tokens=STEPS)
        assert generated(model, alone, inputs) == [row]


class Tap(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        assert self.ends == 0
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("make", FAMILIES)
def test_the_streamer_gets_every_token_as_it_is_chosen(make: Callable[[], Any]) -> None:
    model, tap = model_of(make), Tap()
    steps: list[int] = []
    choose = sampling(temperature=1.5, seeds=5, on_step=lambda logits, sampled: steps.append(len(tap.pieces)))
    result = model.generate(torch.tensor(PROMPTS[:1]), custom_generate=choose, streamer=tap, max_new_tokens=STEPS)
    assert [token for piece in tap.pieces for token in piece] == result[0].tolist()
    assert steps == list(range(1, len(tap.pieces)))  # the prompt first, then one token after each step
    assert tap.ends == 1


@pytest.mark.parametrize("make", FAMILIES)
def test_results_hold_what_transformers_results_hold(make: Callable[[], Any]) -> None:
    model = model_of(make, eager=True)  # which returns attention; with padding it gives NaN in float64
    prompts = [prompt[:2] for prompt in PROMPTS]
    inputs = inputs_of(model, prompts)
    sampler, seen = Sampler(temperature=0.9, top_p=0.8, repetition_penalty=1.3), []
    choose = sampling(sampler, seeds=SEEDS, on_step=lambda logits, sampled: seen.append((logits, sampled)))
    more: dict[str, Any] = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "max_new_tokens": 4,
        "min_new_tokens": 4,
    }
    ours, theirs = model.generate(**inputs, custom_generate=choose, **more), model.generate(**inputs, **more)
    assert type(ours) is type(theirs)
    assert ours.keys() == theirs.keys()
    assert all(len(ours[key]) == len(theirs[key]) for key in ours)
    assert torch.equal(ours.logits[0], theirs.logits[0])

    assert [sampled.tokens.tolist() for _, sampled in seen] == ours.sequences[:, -4:].T.tolist()
    chosen = torch.stack([sampled.logprobs for _, sampled in seen], dim=1)
    assert torch.allclose(model.compute_transition_scores(ours.sequences, ours.scores).double(), chosen, atol=1e-5)
    for step, (logits, _) in enumerate(seen):
        assert torch.equal(logits[:, END], torch.full((3,), -torch.inf))  # as min_new_tokens has it
        assert torch.equal(logits[:, END + 1 :], ours.logits[step][:, END + 1 :])
        for row, prompt in enumerate([[PAD]] * 3 if model.config.is_encoder_decoder else prompts):
            before = [*prompt, *ours.sequences[row, ours.sequences.shape[1] - 4 :].tolist()[:step]]
            exact = reference.distribution(
                reference.penalized(logits[row], before, 1.3, 0, 0), temperature=0.9, top_p=0.8
            )
            assert torch.allclose(ours.scores[step][row].double().exp(), exact, atol=1e-6)


class Unsure(StoppingCriteria):
    """Ends a row whose last token had less than a probability."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return scores[-1].softmax(-1).gather(1, input_ids[:, -1:]).squeeze(1) < self.bound


def test_stopping_criteria_see_the_distribution() -> None:
    model = model_of(llama)
    inputs = inputs_of(model)
    seen: list[Any] = []
    result = model.generate(
        **inputs,
        custom_generate=sampling(seeds=SEEDS, on_step=lambda logits, sampled: seen.append(sampled.logprobs)),
        stopping_criteria=StoppingCriteriaList([Unsure(0.2)]),
        return_dict_in_generate=True,
        output_scores=True,
        max_new_tokens=30,
        eos_token_id=[END],
    )
    probabilities = torch.stack(seen, dim=1).exp()
    tokens = torch.tensor(generated(model, result.sequences, inputs))
    stops = (probabilities < 0.2) | (tokens == END)
    for row in range(3):
        length = int(stops[row].nonzero()[0]) + 1
        assert (tokens[row, length:] == PAD).all()
        assert length == tokens.shape[1] or (tokens[:, length:] != PAD).any()


def test_stop_strings_by_their_criterion() -> None:
    model = model_of(llama)
    letters = [chr(ord("a") + number) for number in range(VOCABULARY)]
    spelling = Tokenizer(WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token="a"))
    spelling.pre_tokenizer, spelling.decoder = Split("", "isolated"), Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelling)
    inputs = inputs_of(model)
    free = generated(model, model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=NO_END), inputs)
    stop = "".join(letters[token] for token in free[1][3:5])
    options: dict[str, Any] = {"max_new_tokens": STEPS}
    theirs = model.generate(**inputs, stop_strings=[stop], tokenizer=tokenizer, **options)
    ours = model.generate(
        **inputs,
        custom_generate=sampling(temperature=0),
        stopping_criteria=[StopStringCriteria(tokenizer, [stop])],
        **options,
    )
    assert torch.equal(ours, theirs)
    assert generated(model, ours, inputs)[1][:6] == [*free[1][:5], PAD]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"temperature": 0.01},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 1.0},
        {"typical_p": 0.01},
        {"epsilon_cutoff": 0.99},
        {"eta_cutoff": 0.99},
        {"top_h": 0.01},
        {"temperature": 0.01, "top_k": 2, "top_p": 0.3},
    ],
    ids=str,
)
def test_filters_of_the_generation_config_are_not_applied(config: dict[str, Any]) -> None:
    model = model_of(gpt2)
    inputs = inputs_of(model)
    more: dict[str, Any] = {"custom_generate": sampling(temperature=1.5, seeds=SEEDS), "max_new_tokens": STEPS}
    plain = model.generate(**inputs, **more)
    assert torch.equal(model.generate(**inputs, **more, do_sample=True, **config), plain)
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS)
    assert plain.shape != greedy.shape or not torch.equal(plain, greedy)


@pytest.mark.parametrize("config", [{}, {"temperature": 0.5}, {"top_k": 0}, {"top_k": None}], ids=str)
@pytest.mark.parametrize("do_sample", (True, False))
def test_processors_that_were_given_stay(config: dict[str, Any], do_sample: bool) -> None:
    model = model_of(gpt2)
    inputs = inputs_of(model)
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS)
    given = LogitsProcessorList([TopKLogitsWarper(1)])
    ours = model.generate(
        **inputs,
        custom_generate=sampling(temperature=1.5, seeds=SEEDS),
        logits_processor=given,
        do_sample=do_sample,
        max_new_tokens=STEPS,
        **(config if do_sample else {}),
    )
    assert torch.equal(ours, greedy)
    assert len(given) == 1


def test_processors_that_generate_builds_stay() -> None:
    model = model_of(gpt2)
    inputs = inputs_of(model)
    choose = sampling(temperature=2.0, seeds=SEEDS)
    free = generated(model, model.generate(**inputs, custom_generate=choose, max_new_tokens=STEPS), inputs)
    bad = free[0][0]
    tamed = model.generate(
        **inputs,
        custom_generate=choose,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        bad_words_ids=[[bad]],
        suppress_tokens=[free[1][0]],
        forced_eos_token_id=END,
    )
    rows = generated(model, tamed, inputs)
    assert not {bad, free[1][0]} & {token for row in rows for token in row}
    assert [row[-1] for row in rows] == [END] * 3
    assert all(END not in row[:-1] for row in rows)


def test_sequences_of_one_prompt_are_as_their_seeds() -> None:
    model = model_of(llama)
    prompts = inputs_of(model, PROMPTS[:2])
    seeds = torch.arange(6)
    together = model.generate(
        **prompts,
        custom_generate=sampling(seeds=seeds, frequency_penalty=0.5),
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=STEPS,
    )
    rows = generated(model, together, prompts)
    expected = [slow_row(model, PROMPTS[row // 3], row, {}, (1.0, 0.0, 0.5)) for row in range(6)]
    assert rows == [filled(row)[: len(rows[0])] for row in expected]
    assert len({tuple(row) for row in rows[:3]}) == 3


def test_options_by_row() -> None:
    model = model_of(llama)
    inputs = inputs_of(model)
    choose = sampling(temperature=torch.tensor([0.0, 1.0, 0.0]), seeds=SEEDS)
    rows = generated(model, model.generate(**inputs, custom_generate=choose, max_new_tokens=STEPS), inputs)
    expected = [
        slow_row(model, prompt, int(seed), {"temperature": heat}, (1.0, 0.0, 0.0))
        for prompt, seed, heat in zip(PROMPTS, SEEDS, (0.0, 1.0, 0.0), strict=True)
    ]
    assert rows == [filled(row)[: len(rows[0])] for row in expected]


def test_embeddings_instead_of_tokens() -> None:
    """The prompt's tokens are unknown then, so that penalties begin with what is generated."""
    model = model_of(llama)
    inputs = inputs_of(model)
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    plain = {"custom_generate": sampling(seeds=SEEDS), "max_new_tokens": STEPS}
    assert model.generate(**embedded, **plain).tolist() == generated(model, model.generate(**inputs, **plain), inputs)
    penalized = model.generate(
        **embedded, custom_generate=sampling(temperature=0, presence_penalty=1e4), max_new_tokens=STEPS
    )
    for row in penalized.tolist():
        tokens = row[: row.index(END)] if END in row else row
        assert len(set(tokens)) == len(tokens)
    first = generated(model, model.generate(**inputs, do_sample=False, max_new_tokens=1), inputs)
    assert [row[:1] for row in penalized.tolist()] == first


class Raised(LogitsProcessor):
    """Adds to some tokens' scores."""

    def __init__(self, tokens: Tensor, by: float) -> None:
        self.tokens, self.by = tokens, by

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.scatter_add(1, self.tokens, torch.full_like(self.tokens, self.by, dtype=scores.dtype))


def test_a_later_turn_with_the_cache_of_the_first_one() -> None:
    model = model_of(mistral)
    inputs = inputs_of(model)
    more: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
    sampler = Sampler(temperature=1.3, repetition_penalty=1.5)
    first = model.generate(
        **inputs, custom_generate=sampling(sampler, seeds=SEEDS), return_dict_in_generate=True, **more
    )
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], dim=1)
    second = {"input_ids": first.sequences, "attention_mask": mask, "custom_generate": sampling(sampler, seeds=SEEDS)}
    afresh = model.generate(**second, **more)
    assert torch.equal(model.generate(**second, past_key_values=first.past_key_values, **more), afresh)


def test_a_later_turn_given_by_its_new_tokens_alone() -> None:
    """The mask tells of the cached tokens too; those that penalties charge are the new ones."""
    model = model_of(mistral)
    inputs = inputs_of(model)
    first = model.generate(
        **inputs, do_sample=False, max_new_tokens=1, eos_token_id=NO_END, return_dict_in_generate=True
    )
    new = torch.cat([first.sequences[:, -1:], torch.tensor([[6, 13], [19, 8], [21, 4]])], dim=1)
    wanted = []
    for prompt, tokens in zip(PROMPTS, new.tolist(), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
        bias = torch.zeros(VOCABULARY).scatter_(0, torch.tensor(tokens), 20.0)  # so that only penalties keep them off
        wanted.append(reference.penalized((logits + bias).float(), tokens, 1, 100, 0).argmax().item())
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 3, dtype=torch.long)], dim=1)
    result = model.generate(
        input_ids=new,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        logits_processor=[Raised(new, 20.0)],
        custom_generate=sampling(temperature=0, presence_penalty=100.0),
        max_new_tokens=1,
    )
    assert result[:, -1].tolist() == wanted


@pytest.mark.parametrize("implementation", ("static", "dynamic"))
def test_other_caches(implementation: str) -> None:
    model = model_of(llama)
    inputs = inputs_of(model)
    more: dict[str, Any] = {"custom_generate": sampling(seeds=SEEDS, top_p=0.9), "max_new_tokens": STEPS}
    assert torch.equal(
        model.generate(**inputs, cache_implementation=implementation, **more),
        model.generate(**inputs, use_cache=False, **more),
    )


def test_a_generator_makes_draws_repeatable_and_different() -> None:
    model = model_of(gpt2)
    inputs = inputs_of(model)

    def tokens(number: int) -> list[list[int]]:
        state = torch.get_rng_state()
        choose = sampling(temperature=2.0, generator=torch.Generator().manual_seed(number))
        result = model.generate(**inputs, custom_generate=choose, do_sample=True, max_new_tokens=STEPS)
        assert torch.equal(torch.get_rng_state(), state)
        return generated(model, result, inputs)

    assert tokens(1) == tokens(1) != tokens(2)
