"""Logits of every kind and options of every size for sampling, and what has to be true of the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.kernels import cpu
from evenkeel.reference import sampling as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KNIFE_EDGE = 1e-13
"""A decision by less than this share of what it compares may fall either way: weights are rounded."""
RELATIVE = 1e-12
"""Of a probability: e^z has the error of z, which is up to 700 · 2^-52."""
VANISHING = 1e-300
"""A probability that may as well be 0."""


def _two_values(count: int) -> Tensor:
    return torch.where(torch.rand(count) < 0.3, 1.5, -0.5)


def _some(values: Tensor, share: float, value: float) -> Tensor:
    """A value at a share of the places, and never at all of them."""
    places = torch.rand(len(values)) < share
    places[torch.randint(len(values), ())] = False
    return values.masked_fill(places, value)


def _with_one(values: Tensor, value: float) -> Tensor:
    values[torch.randint(len(values), ())] = value
    return values


def _in_stripes(count: int, inside: Tensor | float, outside: Tensor | float) -> Tensor:
    """Something that whoever looks at some places only may miss, or take for all there is."""
    return torch.where(torch.arange(count) % 512 < 16, inside, outside).expand(count).double()


def _few_heavy(count: int) -> Tensor:
    return torch.where(torch.rand(count) < 0.01, 5.0, -30.0)


def _normal(count: int) -> Tensor:
    return 3 * torch.randn(count, dtype=torch.float64)


def _heavy_head(count: int) -> Tensor:
    ranks = torch.randperm(count).double() + 1
    return -1.1 * ranks.log() + 0.5 * torch.randn(count)


Kind = Callable[[int, torch.dtype], Tensor]
KINDS: dict[str, Kind] = {
    "normal": lambda count, dtype: _normal(count),
    "equal": lambda count, dtype: torch.randn(1).expand(count),
    "two values": lambda count, dtype: _two_values(count),
    "coarse": lambda count, dtype: (2 * torch.randn(count)).round() / 2,
    "huge": lambda count, dtype: 1e30 * torch.randn(count, dtype=torch.float64),
    "close": lambda count, dtype: 0.5 + 1e-7 * torch.randint(5, (count,)).double(),
    "nearly equal": lambda count, dtype: 1e-8 * torch.randn(count, dtype=torch.float64),
    "far from 0": lambda count, dtype: 12345.678 + _normal(count),
    "high stripes": lambda count, dtype: _in_stripes(count, 9.0, _normal(count)),
    "low stripes": lambda count, dtype: _in_stripes(count, -30.0, _normal(count)),
    "heavy beside stripes": lambda count, dtype: _in_stripes(count, torch.randn(count), _few_heavy(count)),
    "masked": lambda count, dtype: _some(_normal(count), 0.9, -math.inf),
    "lowest": lambda count, dtype: _some(_normal(count), 0.5, max(torch.finfo(dtype).min, -3e38)),
    "zeros": lambda count, dtype: torch.tensor([0.0, -0.0, -1.0])[torch.randint(3, (count,))],
    "infinite": lambda count, dtype: _with_one(_some(_normal(count), 0.2, math.inf), math.inf),
    "subnormal": lambda count, dtype: max(torch.finfo(dtype).tiny, 1e-38) * torch.randn(count, dtype=torch.float64),
    "small behind one": lambda count, dtype: _with_one(1e-20 * torch.randn(count, dtype=torch.float64), 1.0),
    "peaked": lambda count, dtype: _with_one(_normal(count), 30.0),
    "heavy head": lambda count, dtype: _heavy_head(count),
    "ascending": lambda count, dtype: _normal(count).sort().values,
    "descending": lambda count, dtype: _normal(count).sort(descending=True).values,
    "single": lambda count, dtype: _with_one(torch.full((count,), -math.inf), 2.0),
}
CLOSE = (
    "normal",
    "heavy head",
    "peaked",
    "coarse",
    "masked",
    "nearly equal",
    "far from 0",
    "close",
    "high stripes",
    "heavy beside stripes",
)
FINITE = tuple(name for name in KINDS if name not in ("masked", "infinite", "single"))


def logits_of(kinds: Sequence[str], count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A row (count,) of each kind; the seed is the draw's own."""
    largest = torch.finfo(dtype).max
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        rows = [KINDS[kind](count, dtype).double() for kind in kinds]
    return torch.stack([torch.where(row.isinf(), row, row.clamp(-largest, largest)) for row in rows]).to(dtype)


SHARES = st.one_of(st.sampled_from((0.0, 0.5, 0.9, 1.0, 1 - 2**-53)), st.floats(0, 1))
POWERS = st.one_of(st.sampled_from((0.0, 1.0)), st.floats(-8, 0).map(lambda power: 10**power))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.one_of(st.sampled_from((0.0, 1e-3, 0.7, 1e4)), st.floats(0.05, 5)),
    "top_k": st.one_of(st.sampled_from((0, 1, 2**40)), st.integers(1, 60), st.integers(1, 4000)),
    "top_p": SHARES,
    "min_p": POWERS,
    "typical_p": SHARES,
    "top_n_sigma": st.one_of(st.sampled_from((0.0, math.inf)), st.floats(0, 4)),
    "epsilon": POWERS,
}
PENALTIES: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.5, 2),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-1, 1),
}


class Case(NamedTuple):
    """logits: (rows, V). options: a list has one value for each row, anything else holds for all."""

    logits: Tensor
    order: Any
    options: dict[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """The options as sample takes them, with a tensor for a list."""
        return as_given(self.options)

    def of_row(self, row: int) -> dict[str, Any]:
        """The options of one row."""
        return {name: value[row] if isinstance(value, list) else value for name, value in self.options.items()}


def as_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tensors, whole numbers as such and others in float64."""
    return {
        name: torch.tensor(value, dtype=torch.int64 if isinstance(value[0], int) else torch.float64)
        if isinstance(value, list)
        else value
        for name, value in options.items()
    }


@st.composite
def options_of(draw: st.DrawFn, values: Mapping[str, st.SearchStrategy[Any]], rows: int) -> dict[str, Any]:
    """Some of the options, each with one value or with one for each row."""
    names = draw(st.sets(st.sampled_from(sorted(values)), min_size=1, max_size=4))
    return {
        name: draw(st.one_of(values[name], st.lists(values[name], min_size=rows, max_size=rows)))
        for name in sorted(names)
    }


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = tuple(KINDS), most: int = 3000) -> Case:
    """One to three rows of any length, type and kind, with some options, in either order."""
    some = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    count = draw(st.one_of(st.integers(1, 40), st.integers(1, most)))
    logits = logits_of(some, count, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 10**6)))
    return Case(logits, draw(st.sampled_from(sorted(reference.ORDERS))), draw(options_of(VALUES, len(some))))


def _prefixes(weights: Tensor) -> Tensor:
    return weights.cumsum(0) / weights.sum()


def _by_typicality(weights: Tensor, logits: Tensor) -> Tensor:
    mean = (weights * logits).sum() / weights.sum()
    return _prefixes(weights[(logits - mean).abs().sort(stable=True).indices])


EDGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top_p": lambda weights, logits: _prefixes(weights),
    "min_p": lambda weights, logits: weights,
    "typical_p": _by_typicality,
    "top_n_sigma": lambda weights, logits: (logits[0] - logits) / logits.std(correction=0),
    "epsilon": lambda weights, logits: weights / weights.sum(),
}
"""For each filter the values where what it leaves changes, from weights and logits in order."""


def close_case(logits: Tensor, temperature: float, name: str, place: float, shift: float) -> Case:
    """A row (1, V) and a filter whose value is off by a share of it from where one token more or less is left.

    place: which of the values, as a share of them all.
    """
    row = reference.filtered(logits[0], temperature=temperature)
    edges = EDGES[name](*(torch.tensor(items, dtype=torch.float64) for items in (row.weights(), row.logits)))
    value = float(edges[int(place * (len(edges) - 1))].nan_to_num()) * (1 + shift)
    return Case(
        logits, "transformers", {"temperature": temperature, name: value if name == "top_n_sigma" else min(value, 1.0)}
    )


@st.composite
def close_cases(draw: st.DrawFn) -> Case:
    """As close_case, by 1e-7 to 1e-12, for rows of some kinds."""
    kind = draw(st.sampled_from(CLOSE))
    count, dtype = draw(st.integers(2, 3000)), draw(st.sampled_from(DTYPES))
    logits = logits_of((kind,), count, dtype, draw(st.integers(0, 10**6)))
    temperature, name = draw(st.sampled_from((1.0, 0.7, 3.0))), draw(st.sampled_from(sorted(EDGES)))
    shift = draw(st.sampled_from((1, -1))) * 10.0 ** -draw(st.integers(7, 12))
    case = close_case(logits, temperature, name, draw(st.floats(0, 1)), shift)
    assume(0 < case.options[name] < 1 or name == "top_n_sigma")
    return case


def either_way() -> Iterator[None]:
    """A loop's turn with kernels, and one as where they cannot run."""
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "unavailable_because", lambda: "a test")
        yield


def assert_as_defined(found: Tensor, exact: reference.Row) -> None:
    """Assert that probabilities (V,) are those of what is left by definition: the same tokens, each its share."""
    wanted = reference.probabilities(exact, len(found))
    clear = wanted > VANISHING
    assert torch.equal(found[clear] > 0, wanted[clear] > 0), (exact.margin, (found > 0).sum(), len(exact.tokens))
    assert bool((found[~clear] <= 2 * VANISHING).all()), (exact.margin, (found > 0).sum(), len(exact.tokens))
    assert torch.allclose(found, wanted, rtol=RELATIVE, atol=2 * VANISHING)


def by_hand(counter: Sequence[Any], key: Sequence[int]) -> tuple[Any, ...]:
    """Philox 4×32-10 as in the paper's figure, of Python's integers or of arrays in uint64."""
    for _ in range(10):
        one, two = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            two >> 32 ^ counter[1] ^ key[0],
            two & 0xFFFFFFFF,
            one >> 32 ^ counter[3] ^ key[1],
            one & 0xFFFFFFFF,
        )
        key = ((key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return tuple(counter)


def words_by_hand(seed: int, position: Any) -> tuple[Any, ...]:
    """The four words of a seed and a position, or an array of positions that are not negative."""
    low = 0xFFFFFFFF
    zero = position & 0
    return by_hand((position & low, position >> 32 & low, zero, zero), (seed & low, seed >> 32 & low))


def uniform_by_hand(seed: int, position: Any) -> Any:
    """26 bits of each of the first two words, and a half: an odd multiple of 2^-53 between 0 and 1."""
    first, second, _, _ = words_by_hand(seed, position)
    return (((first >> 6) * 2**26 + (second >> 6)) * 2 + 1) * 2.0**-53
