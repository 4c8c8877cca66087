"""Choosing tokens from logits: penalties, temperature, filters, and one uniform number per row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import UsageError
from ..reference.sampling import ORDERS
from ._uniforms import uniforms

Order = Literal["transformers", "llama.cpp"]
PerRow = float | Tensor
"""A number for all rows, or a tensor with one for each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sampler:
    """How tokens are chosen. Every number may also be a tensor with one for each row of logits.

    temperature: 0 takes the most probable token. top_k: the k most probable tokens; 0 for all. top_p: the shortest
    prefix of the most probable tokens whose mass reaches p of the whole. min_p: tokens of at least this share of the
    largest probability. typical_p: the shortest prefix, by how far −log p lies from the entropy, whose mass reaches p.
    top_n_sigma: tokens whose logit is within n standard deviations of the largest. epsilon: tokens of at least this
    probability. repetition_penalty: r divides the positive and multiplies the negative logits of previous tokens.
    presence_penalty, frequency_penalty: subtracted from logits of previous tokens, once and per occurrence.
    logit_bias: added to the logits of tokens. order: "transformers" has the temperature first, "llama.cpp" last.
    Every filter keeps at least one token, and looks at the distribution that the one before it has left.
    """

    temperature: PerRow = 1.0
    top_k: int | Tensor = 0
    top_p: PerRow = 1.0
    min_p: PerRow = 0.0
    typical_p: PerRow = 1.0
    top_n_sigma: PerRow = math.inf
    epsilon: PerRow = 0.0
    repetition_penalty: PerRow = 1.0
    presence_penalty: PerRow = 0.0
    frequency_penalty: PerRow = 0.0
    logit_bias: Mapping[int, float] | None = None
    order: Order = "transformers"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"order is {self.order!r}; it is one of {', '.join(map(repr, get_args(Order)))}")
        for name, (low, high) in _RANGES.items():
            value = torch.as_tensor(getattr(self, name))
            if not bool(((value >= low) & (value <= high)).all()):
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie from {low:g} to {high:g}")


_RANGES = {
    "temperature": (0, 1e30),
    "top_k": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (0, math.inf),
    "epsilon": (0, 1),
    "repetition_penalty": (1e-30, 1e30),
    "presence_penalty": (-1e30, 1e30),
    "frequency_penalty": (-1e30, 1e30),
}


class Sampled(NamedTuple):
    """What was chosen; every field has the logits' shape without the classes."""

    tokens: Tensor
    """Token numbers, int64."""
    support: Tensor
    """How many tokens the filters left."""
    logprobs: Tensor | None
    """Log-probabilities of the tokens among those that were left, in float64, if they were asked for."""


def sample(
    logits: Tensor,
    sampler: Sampler | None = None,
    *,
    previous: Tensor | None = None,
    seeds: int | Tensor | None = None,
    position: int | Tensor = 0,
    generator: torch.Generator | None = None,
    return_logprobs: bool = False,
    **options: Any,
) -> Sampled:
    """Choose a token per row: penalties, temperature and filters, then one uniform number through the inverse CDF.

    logits: float tensor (..., V); −inf where a token is impossible, +inf takes all the weight. sampler, or its fields
    as options: see Sampler. previous: token numbers (..., n) that came before, negative where there is none. seeds: one
    number for all rows or one for each (...), and position likewise: a row's token depends on its own seed and position
    only, whatever else is in the batch. generator: torch's, instead of seeds.
    Probabilities, their sums and the inverse CDF are float64, so that no tail is lost; equal logits go by token number.
    Raises UsageError for options that do not fit, NaN, and a row without a possible token.
    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p), Meister et al. 2023
    (typical), Hewitt et al. 2022 (epsilon), Tang et al. 2024 (top-nσ), Keskar et al. 2019 (repetition penalty).
    """
    scores = _scores(logits, _chosen(sampler, options), previous)
    mass = _weights(scores).cumsum(-1)
    target = _drawn(mass.shape[0], seeds, position, generator, logits) * mass[:, -1]
    tokens = torch.searchsorted(mass, target.unsqueeze(-1), right=True)
    support = (scores > -torch.inf).sum(-1)
    logprobs = scores.log_softmax(-1).gather(-1, tokens).squeeze(-1) if return_logprobs else None
    shape = logits.shape[:-1]
    return Sampled(tokens.view(shape), support.view(shape), None if logprobs is None else logprobs.view(shape))


def distribution(
    logits: Tensor, sampler: Sampler | None = None, *, previous: Tensor | None = None, **options: Any
) -> Tensor:
    """The probabilities that `sample` draws from: float64, of the logits' shape, 0 for what the filters took away.

    Arguments and errors as of `sample`.
    """
    scores = _scores(logits, _chosen(sampler, options), previous)
    return scores.softmax(-1).view(logits.shape)


def _chosen(sampler: Sampler | None, options: dict[str, Any]) -> Sampler:
    known = {field.name for field in fields(Sampler)}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return replace(sampler or Sampler(), **options)


def _drawn(
    rows: int, seeds: int | Tensor | None, position: int | Tensor, generator: torch.Generator | None, logits: Tensor
) -> Tensor:
    if seeds is None:
        return torch.rand(rows, dtype=torch.float64, device=logits.device, generator=generator)
    if generator is not None:
        raise UsageError("seeds and a generator were given; give one of them")
    numbers = (
        torch.as_tensor(item, dtype=torch.int64, device=logits.device).expand(logits.shape[:-1]).reshape(-1)
        for item in (seeds, position)
    )
    return uniforms(*numbers)


def _scores(logits: Tensor, sampler: Sampler, previous: Tensor | None) -> Tensor:
    """float64 scores (rows, V) after penalties, bias, temperature and filters; −inf is out."""
    if not logits.is_floating_point() or logits.dim() == 0 or logits.shape[-1] == 0:
        raise UsageError(f"logits are {tuple(logits.shape)} in {logits.dtype}; give floating (..., V) with V > 0")
    _check_rows(logits.detach().reshape(-1, logits.shape[-1]), "the logits")
    scores = logits.detach().reshape(-1, logits.shape[-1]).double()
    peaks = scores == torch.inf
    scores = torch.where(peaks.any(-1, keepdim=True), torch.where(peaks, 0.0, -torch.inf), scores)
    scores = _penalized(scores, logits.shape, sampler, previous)
    _check_rows(scores, "the logits after penalties and bias")
    for step in ORDERS[sampler.order]:
        value = _per_row(getattr(sampler, step), logits)
        if step == "temperature" or not torch.all(value == _NOTHING[step]):
            scores = _STEPS[step](scores, value)
    return scores


def _check_rows(rows: Tensor, of: str) -> None:
    """Raises UsageError for a row (of so many) that no token can be chosen from, naming the first."""
    for wrong, what in ((rows.isnan().any(-1), "holds NaN"), ((rows == -torch.inf).all(-1), "is −inf throughout")):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise UsageError(f"row {row} of {of} {what}; a token needs one number above −inf and no NaN")


def _per_row(value: PerRow | int, logits: Tensor) -> Tensor:
    """As a column (rows, 1), or (1, 1) for all."""
    value = torch.as_tensor(value, dtype=torch.float64, device=logits.device)  # a float as it is
    if value.dim() == 0:
        return value.view(1, 1)
    if value.shape != logits.shape[:-1]:
        raise UsageError(
            f"an option has shape {tuple(value.shape)} and logits {tuple(logits.shape)}; give a number, or one for "
            f"each row: {tuple(logits.shape[:-1])}"
        )
    return value.reshape(-1, 1)


def _penalized(scores: Tensor, shape: torch.Size, sampler: Sampler, previous: Tensor | None) -> Tensor:
    if previous is not None:
        if previous.shape[:-1] != shape[:-1] or previous.dtype.is_floating_point:
            raise UsageError(
                f"previous is {tuple(previous.shape)} in {previous.dtype} and logits {tuple(shape)}; give token "
                f"numbers {(*shape[:-1], 'n')}"
            )
        tokens = previous.reshape(scores.shape[0], -1).long()
        if bool((tokens >= shape[-1]).any()):
            raise UsageError(f"previous holds {int(tokens.max())}, but there are {shape[-1]} tokens")
        counts = torch.zeros_like(scores).scatter_add_(1, tokens.clamp(min=0), (tokens >= 0).double())
        like = scores.view(shape)
        repetition, presence, frequency = (
            _per_row(getattr(sampler, f"{name}_penalty"), like) for name in ("repetition", "presence", "frequency")
        )
        divided = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(counts > 0, divided - presence - frequency * counts, scores)
    if sampler.logit_bias:
        tokens, added = zip(*sampler.logit_bias.items(), strict=True)
        if wrong := [token for token in tokens if not 0 <= token < shape[-1]]:
            raise UsageError(f"logit_bias names token {wrong[0]}, but there are {shape[-1]} tokens")
        scores = scores.index_add(
            1,
            torch.tensor(tokens, device=scores.device),
            torch.tensor(added, dtype=scores.dtype, device=scores.device).expand(scores.shape[0], -1),
        )
    return scores


def _weights(scores: Tensor) -> Tensor:
    return torch.exp(scores - scores.amax(-1, keepdim=True))


def _only(scores: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, scores, -torch.inf)


def _first(scores: Tensor) -> Tensor:
    """Where the most probable token is, of equal ones the first."""
    return torch.arange(scores.shape[-1], device=scores.device) == scores.argmax(-1, keepdim=True)


def _heat(scores: Tensor, temperature: Tensor) -> Tensor:
    cold = temperature == 0
    below = scores - scores.amax(-1, keepdim=True)  # so that no temperature overflows
    return torch.where(cold, _only(scores, _first(scores)), below / torch.where(cold, 1, temperature))


def _top_k(scores: Tensor, k: Tensor) -> Tensor:
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return _prefix(
        scores, order, torch.where(k == 0, scores.shape[-1], k) > torch.arange(scores.shape[-1], device=scores.device)
    )


def _top_p(scores: Tensor, p: Tensor) -> Tensor:
    return _shortest(scores, torch.sort(scores, dim=-1, descending=True, stable=True).indices, p)


def _min_p(scores: Tensor, share: Tensor) -> Tensor:
    return _only(scores, _weights(scores) >= share)


def _typical_p(scores: Tensor, p: Tensor) -> Tensor:
    logs = scores.log_softmax(-1)
    entropy = -torch.xlogy(logs.exp(), logs.exp()).sum(-1, keepdim=True)
    ranked = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    far = (-logs - entropy).abs().gather(-1, ranked)
    return _shortest(scores, ranked.gather(-1, torch.sort(far, dim=-1, stable=True).indices), p)


def _top_n_sigma(scores: Tensor, n: Tensor) -> Tensor:
    possible = scores > -torch.inf
    count = possible.sum(-1, keepdim=True)
    mean = torch.where(possible, scores, 0).sum(-1, keepdim=True) / count
    variance = torch.where(possible, scores - mean, 0).square().sum(-1, keepdim=True) / count
    return _only(scores, scores >= scores.amax(-1, keepdim=True) - n * variance.sqrt())


def _epsilon(scores: Tensor, bound: Tensor) -> Tensor:
    return _only(scores, (scores.softmax(-1) >= bound) | _first(scores))


def _shortest(scores: Tensor, order: Tensor, p: Tensor) -> Tensor:
    """The shortest prefix of an order whose mass reaches p of the whole."""
    masses = _weights(scores).gather(-1, order).cumsum(-1)
    before = torch.nn.functional.pad(masses[:, :-1], (1, 0), value=-1.0)
    return _prefix(scores, order, (before < p * masses[:, -1:]) | (p >= 1))


def _prefix(scores: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    return _only(scores, torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, kept.expand(order.shape)))


_STEPS = {
    "temperature": _heat,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "typical_p": _typical_p,
    "top_n_sigma": _top_n_sigma,
    "epsilon": _epsilon,
}
_NOTHING: dict[str, Any] = {field.name: field.default for field in fields(Sampler)}
