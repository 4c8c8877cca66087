"""Choosing a token per row: weights, filters, and one uniform number through the inverse CDF, in the order of tokens.

A row is done with float32 weights, and once more with float64 weights where a filter, or the token, is in doubt: what
comes out is what float64 says, at float32's cost. Whatever a row needs lies in its thread's part of a workspace.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from ._compile import as_array, inline, widen, woven
from ._spread import spread
from ._threads import Division, divided
from .filters import (
    FREQUENCY,
    HEAT,
    NOTHING_BESIDE_ONE,
    PRESENCE,
    REPETITION,
    SLACK,
    ends,
    fast,
    filtered,
    log_share,
    precise,
    typical,
    undecided,
)
from .prefixes import BLOCK, room

_F = np.float32
_NOTHING, _ALL = _F(-np.inf), _F(np.inf)
_WORTH_A_THREAD = 2**15  # elements


@woven
def _drawn(row, weights, sums, mass, number, end, uniform, slack):
    """(The first place whose mass, with all before it, exceeds a share of the whole; whether that is in doubt).

    What lies below a number, or at it behind its end, is out.
    """
    target = uniform * mass
    block, before, final, last = 0, 0.0, sums.size - 1, 0
    while final > 0 and sums[final] == 0:
        final -= 1
    while block < final and before + sums[block] <= target:
        before += sums[block]
        block += 1
    for i in range(block * BLOCK, weights.size):
        x, weight = widen(row[i]), np.float64(weights[i])
        if weight > 0 and (x > number or (x == number and i <= end)):
            last = i
            if before + weight > target:
                break
            before += weight
    doubt = slack * 2 * uniform * (1 - uniform) * mass
    return last, min(target - before, before + np.float64(weights[last]) - target) <= doubt and doubt > 0


@woven
def _chosen(row, low, top, weights, sums, options, last, whole, weigh, slack, find_typical, work, uniform, logs):
    """(token, support, log-probability if logs, mass, whether these are in doubt) of a row of finite maximum."""
    mass, count, number, end, doubt = filtered(
        row, low, top, weights, sums, options, last, whole or logs, weigh, slack, find_typical, work
    )
    token, logprob = 0, 0.0
    if not doubt:
        token, doubt = _drawn(row, weights, sums, mass, number, end, uniform, slack)
    if logs and count > 1 and not doubt:
        logprob = log_share(row, weights, token, options[HEAT])
    return token, count, logprob, mass, doubt


@inline
def _with_charges(copy, previous, counts, options, bias_tokens, bias):
    """Charge tokens for having come before, and add the bias; each in float64, rounded once."""
    for token in previous:
        if token >= 0:
            counts[token] += 1
    for token in previous:
        if token >= 0 and counts[token] > 0:
            x = np.float64(copy[token])
            x = x / options[REPETITION] if x > 0 else x * options[REPETITION]
            copy[token] = x - (options[PRESENCE] + options[FREQUENCY] * counts[token])
            counts[token] = 0
    for i in range(bias_tokens.size):
        copy[bias_tokens[i]] = np.float64(copy[bias_tokens[i]]) + bias[i]


@inline
def _finite(copy):
    """Put 0 where a row holds +inf, and −inf elsewhere."""
    for i in range(copy.size):
        copy[i] = 0.0 if copy[i] == _ALL else -np.inf


@woven
def _ready(row, copy, previous, counts, options, bias_tokens, bias):
    """(Whether a token can be chosen, whether `copy` stands for the row: charged, and finite above; its ends)."""
    low, top = ends(row)
    if not top > _NOTHING or (previous.size == 0 and bias_tokens.size == 0 and top < _ALL):
        return top > _NOTHING, False, low, top
    _copy(row, copy)
    _with_charges(copy, previous, counts, options, bias_tokens, bias)
    low, top = ends(copy)
    if top == _ALL:
        _finite(copy)
        low, top = ends(copy)
    return top > _NOTHING, True, low, top


@inline
def _copy(row, copy):
    for i in range(row.size):
        copy[i] = widen(row[i])


@woven
def _cut(workspace, size):
    """A thread's weights, block sums, copy of a row, and where typical and prefixes work, all of 64 bits."""
    keys, masses, apart = workspace[size : 2 * size], workspace[2 * size : 3 * size], workspace[3 * size : 4 * size]
    copy, rest = workspace[4 * size : 5 * size], workspace[5 * size :]
    sample, blocks = room(size), (size + BLOCK - 1) // BLOCK
    few, few_masses = rest[:sample], rest[sample : 2 * sample]
    sums, marks = rest[2 * sample : 2 * sample + blocks], rest[2 * sample + blocks : 2 * sample + 2 * blocks]
    space = keys.view(np.uint64), masses, marks.view(np.int64), few.view(np.uint64), few_masses
    return workspace[:size], sums, copy, apart, space


@woven
def _with_32_bits(space):
    """The space of prefixes with keys of 32 bits, and with masses of as many."""
    keys, masses, marks, few, few_masses = space
    keys, few = keys.view(np.uint32), few.view(np.uint32)
    return (keys, masses, marks, few, few_masses), (keys, masses.view(_F), marks, few, few_masses.view(_F))


@woven
def _write(chosen, weights, r, out):
    """What was chosen of a row; its probabilities where these are asked for, from weights in float64."""
    _, tokens, support, logprobs, shares = out
    tokens[r], support[r] = chosen[0], chosen[1]
    if len(logprobs):
        logprobs[r] = chosen[2]
    if len(shares):
        _write_shares(weights, chosen[3], shares[r])


@inline
def _write_shares(weights, mass, out):
    for i in range(weights.size):
        out[i] = weights[i] / mass if weights[i] > NOTHING_BESIDE_ONE else 0.0


@spread
def _sample_32(start, stop, logits, stride, size, rows, parts, beside, workspaces, counts, out, trouble):
    """beside and out are those of `_run`; for logits of up to 32 bits."""
    table, previous, bias_tokens, bias, last = beside
    uniforms, _, _, logprobs, shares = out
    logs, whole = len(logprobs) > 0, len(shares) > 0
    for work in range(start, stop):
        weights, sums, copy, apart, space = _cut(workspaces[work], size)
        half, copy = weights.view(_F)[:size], copy.view(_F)[:size]
        wider, smaller = _with_32_bits(space)
        wide, narrow = (apart, wider, space), (apart, smaller, space)
        for r in range(work, rows, parts):
            row, options, uniform = logits[r * stride : r * stride + size], table[r % len(table)], uniforms[r]
            fit, copied, low, top = _ready(
                row, copy, previous[r % len(previous)], counts[work], options, bias_tokens, bias
            )
            if not fit:
                trouble[0] = 1
                continue
            if whole:
                chosen = 0, 0, 0.0, 0.0, True
            elif copied:
                chosen = _chosen(
                    copy, low, top, half, sums, options, last, False, fast, SLACK, undecided, narrow, uniform, logs
                )
            else:
                chosen = _chosen(
                    row, low, top, half, sums, options, last, False, fast, SLACK, undecided, narrow, uniform, logs
                )
            if chosen[4]:
                if not copied:
                    _copy(row, copy)
                chosen = _chosen(
                    copy, low, top, weights, sums, options, last, whole, precise, 0.0, typical, wide, uniform, logs
                )
            _write(chosen, weights, r, out)


@spread
def _sample_64(start, stop, logits, stride, size, rows, parts, beside, workspaces, counts, out, trouble):
    """`_sample_32` for float64."""
    table, previous, bias_tokens, bias, last = beside
    uniforms, _, _, logprobs, shares = out
    logs, whole = len(logprobs) > 0, len(shares) > 0
    for work in range(start, stop):
        weights, sums, copy, apart, space = _cut(workspaces[work], size)
        for r in range(work, rows, parts):
            row, options = logits[r * stride : r * stride + size], table[r % len(table)]
            fit, copied, low, top = _ready(
                row, copy, previous[r % len(previous)], counts[work], options, bias_tokens, bias
            )
            if not fit:
                trouble[0] = 1
                continue
            row, at = copy if copied else row, (apart, space, space)
            chosen = _chosen(
                row, low, top, weights, sums, options, last, whole, precise, 0.0, typical, at, uniforms[r], logs
            )
            _write(chosen, weights, r, out)


class _Workspace(threading.local):
    """Memory that a thread's calls share, so that decoding allocates nothing per token.

    It stays: 44 bytes per class of the largest vocabulary so far, for each thread of torch; most calls touch a third.
    """

    def __init__(self) -> None:
        self.parts = self.size = 0
        self.memory = np.empty((0, 0))
        self.counts = np.empty((0, 0), np.int32)
        self.trouble = np.empty(1, np.int64)

    def of(self, parts: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For so many parts with rows up to a size: (parts, room for a row), zeros (parts, size), and one number."""
        if self.parts < parts or self.size < size:
            parts, size = max(parts, self.parts), max(size, self.size)
            self.memory = np.empty((parts, 5 * size + 2 * room(size) + 2 * -(-size // BLOCK)))
            self.counts = np.zeros((parts, size), np.int32)
            self.parts, self.size = parts, size
        return self.memory, self.counts, self.trouble


_WORKSPACE = _Workspace()
_NO_SHARES = np.empty((0, 0))


def sample(
    logits: Tensor,
    beside: tuple[Any, ...],
    uniforms: np.ndarray,
    tokens: np.ndarray,
    support: np.ndarray,
    logprobs: np.ndarray,
) -> bool:
    """Fill tokens, support and logprobs, the last unless empty; whether each row has a possible token and no NaN.

    logits: (rows, V). beside: options (rows or 1, 10), previous tokens (rows or 1, n), the tokens of a bias and
    what is added to each, and whether the temperature comes last. uniforms: (rows,). The rest: a number for each row.
    """
    out = uniforms, tokens.reshape(-1), support.reshape(-1), logprobs.reshape(-1), _NO_SHARES
    return _run(logits, beside, out)


def distribution(logits: Tensor, beside: tuple[Any, ...], shares: np.ndarray) -> bool:
    """Fill shares (rows, V) with what `sample` draws from, float64; the rest as of `sample`."""
    rows = len(logits)
    unused = np.full(rows, 0.5), np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(0)
    return _run(logits, beside, (*unused, shares))


def _run(logits: Tensor, beside: tuple[Any, ...], out: tuple[np.ndarray, ...]) -> bool:
    """With a part for each thread."""
    rows, size = logits.shape
    array = as_array(logits)
    if logits.is_contiguous():
        stride, flat = size, array.reshape(-1)
    elif array.strides[1] == array.itemsize and array.strides[0] >= 0:
        stride = array.strides[0] // array.itemsize
        flat = _spanned(array, stride)
    else:
        stride, flat = size, np.ascontiguousarray(array).reshape(-1)
    threads = divided(rows, max(1, _WORTH_A_THREAD // size)).threads if rows > 1 else 1
    parts = min(rows, threads)
    memory, counts, trouble = _WORKSPACE.of(parts, size)
    trouble[0] = 0
    kernel = _sample_64 if logits.dtype == torch.float64 else _sample_32
    kernel.on_arrays(Division(parts, 1, threads), flat, stride, size, rows, parts, beside, memory, counts, out, trouble)
    return not trouble[0]


def _spanned(array: np.ndarray, stride: int) -> np.ndarray:
    """The memory from the first row to the last, whatever lies between rows."""
    return as_strided(array, ((array.shape[0] - 1) * stride + array.shape[1],), (array.itemsize,))
