"""Choosing tokens from logits: penalties, temperature, filters, and one uniform number per row."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels import cpu
from ._filters import charged, filtered, weights
from ._sampler import Sampler, chosen
from ._uniforms import uniforms

_NONE_BEFORE, _NO_LOGPROBS = np.empty((1, 0), np.int64), np.empty(0)


class Sampled(NamedTuple):
    """What was chosen; every field has the logits' shape without the classes."""

    tokens: Tensor
    """Token numbers, int64."""
    support: Tensor
    """How many tokens the filters left, int64."""
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
    as options: see Sampler; a Sampler that is made once saves its checks. previous: token numbers (..., n) that came
    before, negative where there is none; read where a penalty is set. seeds: one number for all rows or one for each
    (...), and position likewise: a row's token depends on its own seed and position only, whatever else is in the batch
    and however many threads there are, so that rows of one seed and position share their uniform number. generator:
    torch's, instead of seeds.
    Tokens stand in the order of their logits, equal ones by their number. Penalties and bias are computed in float64,
    each rounded once to float32 (float64 for float64 logits). Probabilities, their sums and the inverse CDF are
    float64, so that no tail is lost; a CPU kernel uses float32 where its error bound proves the outcome.
    Raises UsageError for options that do not fit, NaN, and a row without a possible token.
    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p), Meister et al. 2023
    (typical), Hewitt et al. 2022 (epsilon), Tang et al. 2024 (top-nσ), Keskar et al. 2019 (repetition penalty).
    """
    sampler = chosen(sampler, options)
    rows, shape = _rows(logits), logits.shape[:-1]
    previous = _checked(logits, sampler, previous)
    numbers = _numbers(shape, seeds, position, generator)
    found = None
    if _has_kernel(rows):
        found = _by_kernel(rows, shape, sampler, previous, numbers, return_logprobs)
    if found is None:  # no kernel, or a row that it refuses
        found = _by_sorting(_scores(rows, shape, sampler, previous), shape, numbers, return_logprobs)
    return found


def distribution(
    logits: Tensor, sampler: Sampler | None = None, *, previous: Tensor | None = None, **options: Any
) -> Tensor:
    """The probabilities that `sample` draws from: float64, of the logits' shape, 0 for what the filters took away.

    Arguments and errors as of `sample`.
    """
    sampler = chosen(sampler, options)
    rows, previous = _rows(logits), _checked(logits, sampler, previous)
    if _has_kernel(rows):
        out = np.empty(logits.shape)
        if _kernels().distribution(rows, _beside(logits.shape[:-1], sampler, previous), out.reshape(rows.shape)):
            return torch.from_numpy(out)
    return _scores(rows, logits.shape[:-1], sampler, previous).softmax(-1).view(logits.shape)


def sorted_distribution(logits: Tensor, sampler: Sampler) -> Tensor:
    """`distribution` in torch alone: slower, and at once where no kernel has been compiled yet."""
    return _scores(_rows(logits), logits.shape[:-1], sampler, None).softmax(-1).view(logits.shape)


def _has_kernel(rows: Tensor) -> bool:
    return cpu.serves(rows) or (rows.dtype == torch.float64 and rows.is_cpu and cpu.unavailable_because() is None)


@cache
def _kernels() -> Any:
    from ..kernels.cpu import sampling

    return sampling


def _rows(logits: Tensor) -> Tensor:
    """Logits as (rows, V), without a copy of what is a stack of rows already."""
    if not logits.is_floating_point() or logits.dim() == 0 or logits.shape[-1] == 0:
        raise UsageError(f"logits are {tuple(logits.shape)} in {logits.dtype}; give floating (..., V) with V > 0")
    return logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])


def _checked(logits: Tensor, sampler: Sampler, previous: Tensor | None) -> Tensor | None:
    """Previous tokens as (rows, n), where they matter."""
    if previous is None and not sampler.logit_bias:
        return None
    shape = logits.shape
    if wrong := [token for token in sampler.bias[0] if not 0 <= token < shape[-1]]:
        raise UsageError(f"logit_bias names token {wrong[0]}, but there are {shape[-1]} tokens")
    if previous is None:
        return None
    if previous.shape[:-1] != shape[:-1] or previous.dtype.is_floating_point or previous.dtype == torch.bool:
        raise UsageError(
            f"previous is {tuple(previous.shape)} in {previous.dtype} and logits {tuple(shape)}; give token numbers "
            f"{(*shape[:-1], 'n')}"
        )
    if not sampler.charges or previous.shape[-1] == 0:
        return None
    tokens = previous.reshape(-1, previous.shape[-1]).to(logits.device, torch.int64)
    if bool((tokens >= shape[-1]).any()):
        raise UsageError(f"previous holds {int(tokens.max())}, but there are {shape[-1]} tokens")
    return tokens


def _numbers(
    shape: torch.Size, seeds: int | Tensor | None, position: int | Tensor, generator: torch.Generator | None
) -> np.ndarray:
    """A uniform number for each row, float64."""
    if seeds is None:
        device = "cpu" if generator is None else generator.device
        return torch.rand(shape.numel(), dtype=torch.float64, device=device, generator=generator).cpu().numpy()
    if generator is not None:
        raise UsageError("seeds and a generator were given; give one of them")
    return uniforms(_per_row("seeds", seeds, shape), _per_row("position", position, shape), shape.numel())


def _per_row(name: str, value: int | Tensor, shape: torch.Size) -> np.ndarray:
    """int64 (1,) or (rows,)."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            raise UsageError(f"{name} are in {value.dtype}; give whole numbers, such as torch.arange({shape.numel()})")
        if value.dim() and value.shape != shape:
            raise UsageError(
                f"{name} has shape {tuple(value.shape)} and the rows of logits {tuple(shape)}; give a number, or one "
                f"for each row: {tuple(shape)}"
            )
        return value.to("cpu", torch.int64).reshape(-1).numpy()
    if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
        raise UsageError(f"{name} is {value}; give a whole number from -2^63 to 2^63 - 1")
    return np.array([value], np.int64)


def _beside(shape: torch.Size, sampler: Sampler, previous: Tensor | None) -> tuple[Any, ...]:
    """What the kernels take beside logits: options, previous tokens, the bias, and whether the temperature is last."""
    tokens = _NONE_BEFORE if previous is None else previous.contiguous().numpy()
    return sampler.table(shape), tokens, *sampler.bias, sampler.order == "llama.cpp"


def _by_kernel(
    rows: Tensor, shape: torch.Size, sampler: Sampler, previous: Tensor | None, numbers: np.ndarray, logs: bool
) -> Sampled | None:
    """None where a row has no possible token, or NaN."""
    tokens, support = np.empty(shape, np.int64), np.empty(shape, np.int64)  # cheaper to make and to see than tensors
    logprobs = np.empty(shape) if logs else _NO_LOGPROBS
    if not _kernels().sample(rows, _beside(shape, sampler, previous), numbers, tokens, support, logprobs):
        return None
    found = torch.from_numpy(tokens), torch.from_numpy(support)
    return Sampled(*found, torch.from_numpy(logprobs) if logs else None)


def _by_sorting(scores: Tensor, shape: torch.Size, numbers: np.ndarray, logs: bool) -> Sampled:
    """From filtered scores (rows, V)."""
    mass = weights(scores).cumsum(-1)
    uniform = torch.from_numpy(numbers).to(scores.device).unsqueeze(-1)
    tokens = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
    logprobs = scores.log_softmax(-1).gather(-1, tokens).view(shape) if logs else None
    return Sampled(tokens.view(shape), (scores > -torch.inf).sum(-1).view(shape), logprobs)


def _scores(rows: Tensor, shape: torch.Size, sampler: Sampler, previous: Tensor | None) -> Tensor:
    """float64 scores (rows, V) after everything; −inf is out."""
    rows = rows.detach()
    _check_rows(rows, "the logits")
    scores = charged(rows, sampler, shape, previous)
    if previous is not None or sampler.logit_bias:
        _check_rows(scores, "the logits after penalties and bias")
    return filtered(scores, sampler, shape)


def _check_rows(rows: Tensor, of: str) -> None:
    """Raises UsageError for a row (of so many) that no token can be chosen from, naming the first."""
    for wrong, what in ((rows.isnan().any(-1), "holds NaN"), ((rows == -torch.inf).all(-1), "is −inf throughout")):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise UsageError(f"row {row} of {of} {what}; a token needs one number above −inf and no NaN")
