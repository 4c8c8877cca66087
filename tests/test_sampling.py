"""Which tokens sampling leaves, and with what probability: against the sort oracle, and against transformers."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_cases import (
    CLOSE,
    DTYPES,
    EDGES,
    FINITE,
    KINDS,
    KNIFE_EDGE,
    PENALTIES,
    VANISHING,
    Case,
    as_given,
    assert_as_defined,
    cases,
    close_case,
    close_cases,
    either_way,
    logits_of,
    options_of,
)
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as warpers

from evenkeel.errors import UsageError
from evenkeel.functional import Sampler, distribution, sample
from evenkeel.reference import sampling as reference


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_rows_as_defined(case: Case, exact: list[reference.Row], **given: Any) -> None:
    """Assert that distribution and sample leave what is left by definition, but for what stands on a knife edge."""
    clear = [row for row, left in enumerate(exact) if left.margin > KNIFE_EDGE]
    for _ in either_way():
        found = distribution(case.logits, order=case.order, **case.given, **given)
        drawn = sample(case.logits, order=case.order, seeds=3, return_logprobs=True, **case.given, **given)
        assert drawn.logprobs is not None
        for row in clear:
            assert_as_defined(found[row], exact[row])
            assert (found[row] > VANISHING).sum() <= drawn.support[row] <= len(exact[row].tokens)
            assert math.isclose(
                drawn.logprobs[row], math.log(found[row, drawn.tokens[row]]), rel_tol=1e-12, abs_tol=1e-12
            )


@given(case=cases())
@settings(max_examples=600, deadline=None)
def test_what_is_left_is_what_a_sort_leaves(case: Case):
    exact = [reference.filtered(logits, case.order, **case.of_row(row)) for row, logits in enumerate(case.logits)]
    assume(any(row.margin > KNIFE_EDGE for row in exact))
    assert_rows_as_defined(case, exact)


@given(case=close_cases())
@settings(max_examples=400, deadline=None)
def test_what_is_left_where_decisions_are_close(case: Case):
    exact = reference.filtered(case.logits[0], case.order, **case.options)
    assume(exact.margin > KNIFE_EDGE)
    assert_rows_as_defined(case, [exact])


@given(case=cases(FINITE, 200), data=st.data())
@settings(max_examples=200, deadline=None)
def test_penalties_and_bias_come_first_and_are_rounded(case: Case, data: st.DataObject):
    rows, count = case.logits.shape
    tokens = st.lists(st.integers(-1, count - 1), min_size=5, max_size=5)
    previous = data.draw(st.lists(tokens, min_size=rows, max_size=rows), "previous")
    bias = data.draw(st.dictionaries(st.integers(0, count - 1), st.floats(-5, 5, width=32), max_size=3), "bias")
    charged = data.draw(options_of(PENALTIES, rows), "penalties")
    exact = []
    for row, logits in enumerate(case.logits):
        values = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        values |= case._replace(options=charged).of_row(row)
        before = [token for token in previous[row] if token >= 0]
        scores = reference.biased(reference.penalized(logits, before, *values.values()), bias)
        assume(scores.max() > -math.inf)
        exact.append(reference.filtered(scores, case.order, **case.of_row(row)))
    assert_rows_as_defined(case, exact, previous=torch.tensor(previous), logit_bias=bias, **as_given(charged))


ENDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1e-3},
    {"temperature": 1e4},
    {"top_k": 1},
    {"top_k": 36},
    {"top_k": 37},
    {"top_k": 100, "temperature": 3.0},
    {"top_p": 0.0},
    {"top_p": 1 - 2**-53},
    {"top_p": 1.0},
    {"min_p": 1.0},
    {"min_p": 1e-30},
    {"typical_p": 0.0},
    {"typical_p": 1.0},
    {"top_n_sigma": 0.0},
    {"top_n_sigma": math.inf},
    {"epsilon": 1.0},
    {"epsilon": 1e-30},
    {"temperature": 0.0, "top_k": 3, "typical_p": 0.5},
)


@pytest.mark.parametrize("order", reference.ORDERS)
@pytest.mark.parametrize("options", ENDS, ids=str)
def test_every_kind_of_logits_at_the_ends_of_every_option(options: dict[str, Any], order: Any):
    compared = 0
    for dtype in DTYPES:
        case = Case(logits_of(tuple(KINDS), 37, dtype, 0), order, options)
        exact = [reference.filtered(logits, order, **options) for logits in case.logits]
        compared += sum(row.margin > KNIFE_EDGE for row in exact)
        assert_rows_as_defined(case, exact)
    assert compared > len(DTYPES) * len(KINDS) / 3


MODERATE: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 10,
    "top_p": 0.8,
    "min_p": 0.05,
    "typical_p": 0.8,
    "top_n_sigma": 1.5,
    "epsilon": 0.03,
}


@pytest.mark.parametrize("order", reference.ORDERS)
@pytest.mark.parametrize(("one", "other"), tuple(combinations(MODERATE, 2)))
def test_one_option_after_the_other(one: str, other: str, order: Any):
    options = {one: MODERATE[one], other: MODERATE[other]}
    case = Case(logits_of(("normal", "heavy head", "coarse") * 10, 60, torch.float32, 0) / 2, order, options)
    assert_rows_as_defined(case, [reference.filtered(logits, order, **options) for logits in case.logits])


@pytest.mark.parametrize(
    ("count", "dtype", "order", "options"),
    [
        (32_768, torch.float32, "transformers", {"temperature": 0.8, "top_p": 0.9}),
        (50_257, torch.bfloat16, "llama.cpp", {"temperature": 1.5, "top_k": 1000, "min_p": 1e-4}),
        (20_001, torch.float16, "transformers", {"temperature": 1.3, "typical_p": 0.9}),
        (60_001, torch.float32, "llama.cpp", {"top_n_sigma": 1.5, "epsilon": 1e-5}),
    ],
)
def test_large_vocabularies(count: int, dtype: torch.dtype, order: Any, options: dict[str, Any]):
    kinds = ("normal", "heavy head", "peaked", "ascending", "high stripes", "low stripes", "heavy beside stripes")
    case = Case(logits_of(kinds, count, dtype, 1), order, options)
    exact = [reference.filtered(logits, order, **options) for logits in case.logits]
    assert min(row.margin for row in exact) > KNIFE_EDGE
    assert_rows_as_defined(case, exact)


@pytest.mark.parametrize("name", EDGES)
def test_close_decisions_for_every_kind_of_logits(name: str):
    compared = 0
    for kind in CLOSE:
        for count in (50, 1500):
            logits = logits_of((kind,), count, torch.float32, 0)
            for shift in (1e-8, -1e-8, 1e-10, -1e-10, 1e-12, -1e-12):
                case = close_case(logits, 1.0, name, 0.3, shift)
                exact = reference.filtered(logits[0], **case.options)
                if exact.margin > KNIFE_EDGE:
                    compared += 1
                    assert_rows_as_defined(case, [exact])
    assert compared > 50


@pytest.mark.parametrize("shift", (1e-9, -1e-9, 1e-12, -1e-12))
@pytest.mark.parametrize("name", EDGES)
def test_close_decisions_in_large_vocabularies(name: str, shift: float):
    case = close_case(logits_of(("normal",), 40_000, torch.float32, 2), 0.8, name, 0.01, shift)
    exact = reference.filtered(case.logits[0], **case.options)
    assert KNIFE_EDGE < exact.margin < 1e-6
    assert_rows_as_defined(case, [exact])


@pytest.mark.parametrize("order", reference.ORDERS)
def test_every_option_may_differ_by_row(order: Any):
    values: dict[str, Any] = {
        "temperature": [0.0, 0.5, 1.0, 2.0, 1.1, 1.0, 0.9],
        "top_k": [0, 5, 1, 100, 20, 0, 0],
        "top_p": [0.9, 0.99, 1.0, 0.0, 0.95, 1.0, 1.0],
        "min_p": [0.0, 0.001, 0.01, 0.0, 0.001, 0.01, 0.0],
        "typical_p": [1.0, 1.0, 0.5, 0.7, 0.9, 1.0, 0.4],
        "top_n_sigma": [math.inf, 3.0, 2.0, math.inf, 1.5, 1.5, 2.5],
        "epsilon": [0.0, 0.01, 0.0, 0.5, 0.001, 0.0, 0.02],
    }
    case = Case(3 * torch.randn(7, 30), order, values)
    exact = [reference.filtered(logits, order, **case.of_row(row)) for row, logits in enumerate(case.logits)]
    assert min(row.margin for row in exact) > KNIFE_EDGE
    assert len({len(row.tokens) for row in exact}) > 2
    assert_rows_as_defined(case, exact)
    in_two_dimensions = {name: value[:6].view(2, 3) for name, value in case.given.items()}
    assert torch.equal(
        distribution(case.logits[:6].view(2, 3, 30), Sampler(order=order, **in_two_dimensions)).view(6, 30),
        distribution(case.logits, Sampler(order=order, **case.given))[:6],
    )


def kept(logits: Any, **options: Any) -> list[int]:
    """The numbers of the tokens that are left."""
    logits = torch.as_tensor(logits)
    found = [distribution(logits, **options) for _ in either_way()]
    supports = [int(sample(logits, seeds=0, **options).support) for _ in either_way()]
    one, other = (p.nonzero().flatten().tolist() for p in found)
    assert one == other and supports == [len(one)] * 2
    return one


def test_a_mass_that_is_exactly_reached_is_enough():
    """Of equal logits all weights are exactly 1, so that nothing is rounded."""
    for eighths in range(1, 9):
        assert kept([0.25] * 16, top_p=eighths / 8) == list(range(2 * eighths))
        assert kept([0.25] * 16, typical_p=eighths / 8) == list(range(2 * eighths))
    assert kept([0.25] * 16, top_p=math.nextafter(0.5, 1)) == list(range(9))
    assert kept([-1.0] * 4, epsilon=0.25) == [0, 1, 2, 3]
    assert kept([-1.0] * 4, epsilon=math.nextafter(0.25, 1)) == [0]
    assert kept([2.0, 2.0, 1.0], min_p=1.0) == [0, 1]
    assert kept([0.0, 1.0, 1.0, 1.0, -1.0, 0.0], top_k=2) == [1, 2]
    assert kept([1.0, 3.0, 1.0, 3.0], top_n_sigma=2.0) == [0, 1, 2, 3]
    assert kept([1.0, 3.0, 1.0, 3.0], top_n_sigma=math.nextafter(2, 0)) == [1, 3]


@pytest.mark.parametrize("temperature", (0.5, 2.0, 3.0, 1e4))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_temperature_changes_no_order(temperature: float, dtype: torch.dtype):
    """Divided, and even less the largest, the first two are the same number."""
    logits = torch.tensor([1e-20, 2e-20, 1.0], dtype=dtype)
    assert kept(logits, temperature=temperature, top_k=2) == [1, 2]
    assert kept(logits, top_k=2, temperature=temperature, order="llama.cpp") == [1, 2]
    assert kept(logits, temperature=temperature, top_p=0.85 if temperature < 1 else 0.6) == [1, 2]
    nearly = torch.tensor([1.0, 1 + torch.finfo(dtype).eps], dtype=dtype)
    assert kept(nearly, temperature=temperature, top_k=1) == [1]
    assert int(sample(nearly, temperature=0).tokens) == 1


def test_a_penalty_is_rounded_to_the_precision_of_the_logits():
    """3.9 in float32 is more than 3.9, and over 1.3 more than 3, but by less than float32 can tell; float64 can."""
    logits = torch.tensor([3.0, 3.9])
    options: dict[str, Any] = {"previous": torch.tensor([1]), "repetition_penalty": 1.3, "top_k": 1}
    assert kept(logits, **options) == [0]
    assert kept(logits.double(), **options) == [1]
    half = torch.tensor(
        [3.0, 3.900390625], dtype=torch.float16
    )  # its own neighbours are 2^-9 apart: it goes to float32
    assert kept(half, **options) == [1]
    added = {"logit_bias": {0: 1e-8}, "top_k": 1}
    assert kept(torch.tensor([1.0, 1.0 + 2**-23]), **added) == [1]
    assert kept(torch.tensor([1.0, 1.0], dtype=torch.float64), logit_bias={1: 1e-8}, top_k=1) == [1]
    assert kept(torch.tensor([1.0, 1.0]), logit_bias={1: 1e-8}, top_k=1) == [0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_three_penalties_are_rounded_once(dtype: torch.dtype):
    logits, previous = torch.randn(64, 30).to(dtype), torch.randint(-1, 30, (64, 10))
    for _ in either_way():
        found = distribution(
            logits, previous=previous, repetition_penalty=1.37, presence_penalty=0.3123, frequency_penalty=0.217
        )
        for row, tokens in enumerate(previous.tolist()):
            before = [token for token in tokens if token >= 0]
            exact = reference.ranked(reference.penalized(logits[row], before, 1.37, 0.3123, 0.217))
            assert_as_defined(found[row], exact)


@pytest.mark.parametrize(
    ("warper", "options"),
    [
        (warpers.TopKLogitsWarper(5), {"top_k": 5}),
        (warpers.TopPLogitsWarper(0.7), {"top_p": 0.7}),
        (warpers.MinPLogitsWarper(0.1), {"min_p": 0.1}),
        (warpers.TypicalLogitsWarper(0.6), {"typical_p": 0.6}),
        (warpers.EpsilonLogitsWarper(0.02), {"epsilon": 0.02}),
        (warpers.TemperatureLogitsWarper(0.6), {"temperature": 0.6}),
    ],
)
def test_filters_are_those_of_transformers(warper: Any, options: dict[str, Any]):
    logits = 2 * torch.randn(20, 60)
    theirs = warper(torch.zeros(20, 1, dtype=torch.long), logits.clone()).softmax(-1)
    ours = distribution(logits, **options)
    assert torch.equal(ours > 0, theirs > 0)
    assert torch.allclose(ours.float(), theirs, atol=1e-6)


def test_all_filters_together_are_those_of_transformers_in_its_order():
    logits = 2 * torch.randn(40, 200)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8}
    model: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=200))
    config = GenerationConfig(do_sample=True, **options)
    theirs: Any = model._get_logits_processor(config, input_ids_seq_length=1)
    wanted = theirs(torch.zeros(40, 1, dtype=torch.long), logits.clone()).softmax(-1)
    found = distribution(logits, **options)
    assert torch.equal(found > 0, wanted > 0)
    assert torch.allclose(found.float(), wanted, atol=1e-6)


def test_penalties():
    logits = torch.randn(2, 10)
    previous = torch.tensor([[3, 3, 4, -1], [0, 1, 2, 3]])
    penalty: Any = warpers.RepetitionPenaltyLogitsProcessor(1.3)
    theirs = penalty(previous[1:], logits[1:].clone())
    ours = distribution(logits, previous=previous, repetition_penalty=1.3)
    assert torch.allclose(ours[1:].float(), theirs.softmax(-1))
    exact = reference.penalized(logits[0], [3, 3, 4], 1.3, 0.4, 0.2)
    by_hand = logits[0].double()
    for token, count in ((3, 2), (4, 1)):
        score = by_hand[token].clone()
        by_hand[token] = (score / 1.3 if score > 0 else score * 1.3) - (0.4 + 0.2 * count)
    assert torch.equal(exact, by_hand.float())
    found = distribution(logits, previous=previous, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)
    assert torch.allclose(found[0], exact.double().softmax(-1), rtol=1e-12)
    biased = logits[0].double() + torch.tensor([0, 0, 5.0, 0, 0, 0, 0, 0, 0, -math.inf])
    found = distribution(logits[0], logit_bias={2: 5.0, 9: -math.inf})
    assert torch.allclose(found, biased.float().double().softmax(-1), rtol=1e-12)


@pytest.mark.parametrize("temperature", (1e-320, 1e-30, 1e30))
def test_no_temperature_overflows(temperature: float):
    p = distribution(torch.tensor([5.0, 9.0, 9.0, -1e30]), temperature=temperature)
    few = [0, 0.5, 0.5, 0] if temperature < 1 else [1 / (3 + 1 / math.e)] * 3
    assert p.tolist()[: len(few)] == pytest.approx(few)


def test_infinite_logits_and_ties():
    logits = torch.tensor(
        [[1.0, math.inf, 0.0, math.inf], [2.0, 2.0, 2.0, 1.0], [-math.inf, 3.0, -math.inf, -math.inf]]
    )
    assert distribution(logits)[0].tolist() == [0, 0.5, 0, 0.5]
    assert (distribution(logits, top_k=2) > 0).tolist()[1] == [True, True, False, False]
    assert sample(logits, temperature=0).tokens.tolist() == [1, 0, 1]
    assert sample(logits, seeds=5).support.tolist() == [2, 4, 1]
    lowest = torch.tensor([torch.finfo(torch.float64).min, 0.0], dtype=torch.float64)
    assert distribution(lowest, top_n_sigma=0.0).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", (0, 77, 999))
@pytest.mark.parametrize(
    ("number", "what"), [(math.nan, "holds NaN"), (-math.nan, "holds NaN"), (-math.inf, "is −inf")]
)
def test_a_row_without_a_token_is_named(dtype: torch.dtype, place: int, number: float, what: str):
    logits = torch.randn(5, 1000).to(dtype)
    logits[3, place if math.isnan(number) else slice(None)] = number
    for _ in either_way():
        for call in (sample, distribution):
            for sampler in (None, Sampler(temperature=0.0), Sampler(temperature=0.8, top_p=0.9)):
                with pytest.raises(UsageError, match=f"row 3 of the logits {what}"):
                    call(logits, sampler)
    assert sample(logits[:3], temperature=0.8, top_p=0.9).tokens.shape == (3,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(torch.tensor([[0.0, 1.0], [math.nan, 0.0]])), "row 1 of the logits holds NaN"),
        (lambda: sample(torch.tensor([[-math.inf] * 2])), "row 0 of the logits is −inf throughout"),
        (lambda: sample(torch.ones(2, 3, dtype=torch.long)), "give floating"),
        (lambda: sample(torch.zeros(3), top_q=0.5), "no option 'top_q'"),
        (lambda: sample(torch.zeros(3), seeds=1.5), "seeds is 1.5; give a whole number"),  # pyright: ignore
        (lambda: sample(torch.zeros(2, 3), seeds=torch.ones(2)), r"torch.arange\(2\)"),
        (lambda: sample(torch.zeros(3), top_k=1.5), "top_k is 1.5; give a whole number"),
        (lambda: sample(torch.zeros(3), logit_bias={1.5: 2.0}), "logit_bias names 1.5"),
        (lambda: Sampler(top_p=1.5), "top_p is 1.5; it must lie from 0 to 1"),
        (lambda: Sampler(order="vllm"), "'transformers', 'llama.cpp'"),  # pyright: ignore[reportArgumentType]
        (lambda: sample(torch.zeros(2, 3), top_p=torch.ones(3)), r"one for each row: \(2,\)"),
        (lambda: sample(torch.zeros(2, 3), previous=torch.ones(3, 1, dtype=torch.long)), r"\(2, 'n'\)"),
        (lambda: sample(torch.zeros(3), previous=torch.tensor([3]), presence_penalty=1.0), "there are 3 tokens"),
        (lambda: sample(torch.zeros(3), logit_bias={7: 1.0}), "token 7"),
        (lambda: sample(torch.zeros(3), logit_bias={0: 1.0, -2: 1.0}), "token -2"),
        (lambda: distribution(torch.zeros(1), logit_bias={0: -math.inf}), "after penalties and bias is −inf"),
        (lambda: sample(torch.zeros(3), seeds=1, generator=torch.Generator()), "give one of them"),
    ],
)
def test_errors_say_what_to_give(call: Any, message: str):
    with pytest.raises(UsageError, match=message):
        call()
