"""Continuing token rows with a Transformer: keys and values kept, tokens chosen by the sampler."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..functional import Sampled, Sampler, sample
from .caches import Cache

if TYPE_CHECKING:
    from .transformer import Transformer


class Step(NamedTuple):
    """One token for each row. logits: (batch, vocabulary), as the model gave them; sampled: what was chosen."""

    logits: Tensor
    sampled: Sampled


def steps(
    model: Transformer,
    input_ids: Tensor,
    sampler: Sampler | None = None,
    *,
    max_new_tokens: int | None = None,
    seeds: int | Tensor = 0,
    attention_mask: Tensor | None = None,
) -> Iterator[Step]:
    """Choose one token after another for rows (batch, length) int64: so many, or without end.

    sampler: greedy by default. seeds: of the sampler, one or (batch,); a row's n-th token depends on its own seed and
    on n. attention_mask: (batch, length), 0 for padding, which stands on the left. Of a prompt longer than its context
    a model is shown the end; once the context is full it goes on with the last half of it.
    Raises UsageError for padding on the right, and for rows without a token.
    """
    check_rows(input_ids)
    if input_ids.shape[1] == 0:
        raise UsageError("input_ids have no tokens; give at least one, for instance the one that starts a text")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise UsageError(
            "attention_mask has padding at the end of a row; pad on the left, so that every row ends in text"
        )
    sampler = Sampler(temperature=0.0) if sampler is None else sampler
    context = model.config.context
    cache, shown, tokens, visible = None, context, input_ids, attention_mask
    for position in count() if max_new_tokens is None else range(max_new_tokens):
        if cache is None or cache.length == context:
            left = context if max_new_tokens is None else max_new_tokens - position
            chunk, seen = tokens[:, -shown:], None if visible is None else visible[:, -shown:]
            cache = _new_cache(model, len(tokens), min(context, chunk.shape[1] + left))
            shown = context - context // 2
        else:
            chunk, seen = tokens[:, -1:], None
        with torch.inference_mode():  # less to do for each of hundreds of small calls
            hidden = model.hidden(chunk, attention_mask=seen, cache=cache)[:, -1]
        with torch.no_grad():
            logits = model.head(hidden, model.embedding.weight)
            odds = model.head.log_odds(logits)
            previous = tokens if visible is None else tokens.masked_fill(visible == 0, -1)
            sampled = sample(odds, sampler, previous=previous, seeds=seeds, position=position)
        tokens = torch.cat([tokens, sampled.tokens[:, None]], dim=1)
        visible = None if visible is None else torch.cat([visible, visible.new_ones(len(tokens), 1)], dim=1)
        yield Step(logits, sampled)


def check_rows(input_ids: Tensor) -> None:
    """Raises UsageError for what are no rows of token ids."""
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        raise UsageError(
            f"input_ids are {input_ids.dtype} of shape {tuple(input_ids.shape)} and must be int64 rows (batch, "
            "length); convert with .long(), and make one row of a sequence with [None]"
        )


def _new_cache(model: Transformer, batch: int, capacity: int) -> Cache:
    """Room for keys and values of so many tokens in each row."""
    weight = model.embedding.weight
    return Cache(model.config, batch=batch, capacity=capacity, dtype=weight.dtype, device=weight.device)


def generate(
    model: Transformer,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    seeds: int | Tensor = 0,
    attention_mask: Tensor | None = None,
    stop_tokens: Collection[int] = (),
) -> Tensor:
    """Rows (batch, length) with at most so many tokens more: (batch, length + new) int64.

    The other arguments as in `steps`. stop_tokens: a row ends with the first of them, and repeats it where others go
    on.
    Raises UsageError for what `steps` refuses, and for max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens} and must be at least 1")
    stops = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=input_ids.device)
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    columns = [input_ids]
    for step in steps(
        model, input_ids, sampler, max_new_tokens=max_new_tokens, seeds=seeds, attention_mask=attention_mask
    ):
        tokens = step.sampled.tokens
        tokens = torch.where(ended, columns[-1][:, -1], tokens) if stop_tokens else tokens
        columns.append(tokens[:, None])
        if stop_tokens:
            ended |= torch.isin(tokens, stops)
            if bool(ended.all()):
                break
    return torch.cat(columns, dim=1)
