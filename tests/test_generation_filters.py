"""The sampler's filters beside transformers' own, and what `generate` may not be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_models import (
    PROMPTS,
    STEPS,
    VOCABULARY,
    gpt2,
    inputs_of,
    llama,
    model_of,
)
from torch import Tensor

from evenkeel.errors import UsageError
from evenkeel.functional import Sampler
from evenkeel.integrations.transformers import SamplerLogitsProcessor, sampling
from evenkeel.reference import sampling as reference


def significance(counts: Tensor, probabilities: Tensor) -> float:
    """The G-test's p-value of counts under probabilities, rare tokens taken together; the impossible must not occur."""
    possible = probabilities > 0
    assert int(counts[~possible].sum()) == 0
    expected, found = probabilities[possible].double() * counts.sum(), counts[possible].double()
    rare = expected < 5
    expected, found = (torch.cat([part[~rare], part[rare].sum()[None]]) for part in (expected, found))
    statistic = 2 * torch.xlogy(found, found / expected.clamp(min=1e-300)).sum()
    freedom = torch.tensor((len(found) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


CHAINS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"epsilon": 0.02},
    {"temperature": 1.4, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "epsilon": 0.01},
]


def theirs_of(chain: dict[str, Any]) -> dict[str, Any]:
    """A chain in the words of a generation config."""
    return {"top_k": 0, **{"epsilon_cutoff" if name == "epsilon" else name: value for name, value in chain.items()}}


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_frequencies_are_those_of_transformers_filters(chain: dict[str, Any]) -> None:
    model, draws = model_of(llama), 5_000
    prompt = torch.tensor(PROMPTS[:1])
    asked: dict[str, Any] = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    wanted = model.generate(prompt, do_sample=True, **theirs_of(chain), **asked).scores[0][0].softmax(-1)
    assert int((wanted > 0).sum()) > 2
    for choose in (
        sampling(**chain, seeds=torch.arange(draws)),
        sampling(**chain, generator=torch.Generator().manual_seed(1)),
    ):
        tokens = model.generate(prompt.expand(draws, -1), custom_generate=choose, max_new_tokens=1)[:, -1]
        assert significance(tokens.bincount(minlength=VOCABULARY), wanted) > 1e-6


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_processor_leaves_what_transformers_filters_leave(chain: dict[str, Any]) -> None:
    model = model_of(llama)
    inputs = inputs_of(model)
    asked: dict[str, Any] = {
        "do_sample": True,
        "max_new_tokens": STEPS,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    torch.manual_seed(0)
    theirs = model.generate(**inputs, **theirs_of(chain), **asked)
    torch.manual_seed(0)
    ours = model.generate(**inputs, logits_processor=[SamplerLogitsProcessor(**chain)], top_k=0, **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    for found, wanted in zip(ours.scores, theirs.scores, strict=True):
        assert found.dtype == wanted.dtype == torch.float32
        assert torch.equal(found > -torch.inf, wanted > -torch.inf)
        assert torch.allclose(found.softmax(-1), wanted.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_the_processors_scores_keep_their_dtype(dtype: torch.dtype) -> None:
    scores = torch.linspace(-4, 4, VOCABULARY).to(dtype)[None]
    tokens: Any = torch.zeros(1, 0, dtype=torch.long)
    found = SamplerLogitsProcessor(Sampler(temperature=0.5), top_k=3)(tokens, scores)
    assert found.dtype == dtype
    wanted = reference.distribution(scores[0], temperature=0.5, top_k=3)
    assert torch.allclose(found[0].double().exp(), wanted, atol=1e-2)
    assert torch.equal(found[0] > -torch.inf, wanted > 0)


@pytest.mark.parametrize("sequences", (1, 2))
def test_the_processor_does_not_charge_padding(sequences: int) -> None:
    model = model_of(llama)
    inputs = inputs_of(model)
    tokens = inputs["input_ids"].repeat_interleave(sequences, 0)
    scores = torch.randn(len(tokens), VOCABULARY, generator=torch.Generator().manual_seed(0))
    charged: dict[str, Any] = {"repetition_penalty": 1.7, "frequency_penalty": 0.3}
    found = SamplerLogitsProcessor(**charged, attention_mask=inputs["attention_mask"])(tokens, scores)
    for row, logits in enumerate(scores):
        exact = reference.penalized(logits, PROMPTS[row // sequences], 1.7, 0, 0.3).double().softmax(-1)
        assert torch.allclose(found[row].double().exp(), exact, atol=1e-6)
    without = SamplerLogitsProcessor(**charged)(tokens, scores)
    assert not torch.allclose(without[-1], found[-1], atol=1e-2)


def test_tokens_that_the_head_does_not_know_are_not_charged() -> None:
    scores = torch.zeros(1, VOCABULARY)
    tokens: Any = torch.tensor([[VOCABULARY + 3, -200, 4]])
    found = SamplerLogitsProcessor(presence_penalty=1.0)(tokens, scores)
    exact = reference.penalized(scores[0], [4], 1, 1, 0).double().softmax(-1)
    assert torch.allclose(found[0].double().exp(), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 2}, "num_beams=1"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=1"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=None"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=None"),
        ({"dola_layers": "low"}, "dola_layers=None"),
        ({"assistant_model": "gpt2"}, "assistant_model=None"),
        ({"num_return_sequences": 2, "do_sample": True}, r"torch.arange\(2\)"),
    ],
    ids=str,
)
def test_what_contradicts_is_refused(asked: dict[str, Any], message: str) -> None:
    model = model_of(gpt2)
    asked = {name: model_of(gpt2) if value == "gpt2" else value for name, value in asked.items()}
    with pytest.raises(UsageError, match=message):
        model.generate(torch.tensor(PROMPTS[:1]), custom_generate=sampling(seeds=1), max_new_tokens=2, **asked)


def test_options_that_do_not_fit_are_refused() -> None:
    model = model_of(gpt2)
    prompt = torch.tensor(PROMPTS[:1])
    with pytest.raises(UsageError, match=r"\(2,\) and there are 1 rows"):
        model.generate(prompt, custom_generate=sampling(seeds=torch.arange(2)), max_new_tokens=2)
    with pytest.raises(UsageError, match="give one of them"):
        model.generate(prompt, custom_generate=sampling(seeds=1, generator=torch.Generator()), max_new_tokens=2)
    with pytest.raises(UsageError, match="'heat'"):
        sampling(heat=2.0)
    with pytest.raises(UsageError, match="top_p is 2"):
        sampling(top_p=2.0)
    with pytest.raises(UsageError, match="'heat'"):
        SamplerLogitsProcessor(heat=2.0)
