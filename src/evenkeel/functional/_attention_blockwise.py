"""Attention and its gradients tile by tile: what runs inside the operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import attention as torch_passes
from ._attention_tiles import Memory, Place, Scores, folded, folded_mask, over, passes_for, product, rows_of, stacked

Options = tuple[float, float | None, int, int, bool]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Attention and, per row, log Σ_j e^s_j (float64; 0 where nothing is visible, and for sigmoids).

    mask: four dimensions. sinks: (batch, heads). options: scale, softcap, before, after, sigmoid: the query at position
    i sees the keys from i − before to i + after.
    """
    *rules, sigmoid = options
    scores = Scores.of(query, key, mask, *rules)
    values, offset = rows_of(value), -math.log(max(1, key.shape[2]))
    output, logsumexp = shaped(query, key, value, mask, sinks, *options)
    group = scores.query.shape[1:3]
    grouped, grouped_logsumexp = output.unflatten(1, group), logsumexp.zero_().unflatten(1, group)
    grouped_sinks = None if sinks is None else sinks.detach().to(values.dtype).unflatten(1, group)
    passes = passes_for(scores.query)

    def work(part: list[Place]) -> None:
        memory = Memory(scores.query)
        for place in part:
            rows = stacked(scores.query, place)
            shape = (rows.shape[0], group[1], -1)
            gathered = rows.new_zeros((*rows.shape[:2], values.shape[3]))
            if grouped_sinks is None:
                maximum = rows.new_full(rows.shape[:2], -torch.inf)
                total = rows.new_zeros(rows.shape[:2], dtype=torch.float64)
            else:
                own = grouped_sinks[place.batch, place.heads].unsqueeze(2)
                maximum = own.expand(*shape[:2], rows.shape[1] // group[1]).flatten(1).clone()
                total = torch.ones_like(maximum, dtype=torch.float64)
            for keys in scores.keys_seen(place.queries):
                tile = scores.tile(place, rows, keys, memory)
                if sigmoid:
                    passes.squash(tile, offset)
                else:
                    passes.weigh(tile, maximum, total, gathered)
                product(tile.scores.flatten(1, 2), values[place.batch, place.heads, keys], gathered, beta=1.0)
            part_of = (place.batch, place.heads, slice(None), place.queries)
            if not sigmoid:
                empty = total == 0
                total.masked_fill_(empty, 1)
                gathered.div_(total.to(gathered.dtype).unsqueeze(2))
                found = (maximum + total.log()).masked_fill_(empty, 0)
                grouped_logsumexp[part_of] = found.view(shape)
            grouped[part_of] = gathered.view(*shape, values.shape[3])

    over(scores.places(), passes, work)
    return output, logsumexp


def shaped(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Empty results of `attend`."""
    output = query.new_empty((*query.shape[:3], value.shape[3]))
    return output, query.new_empty(query.shape[:3], dtype=torch.float64)


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    to_mask: bool,
    *options: Any,
) -> Gradients:
    """Gradients to query, key, value, mask and sinks; those to the last two are empty where they are not wanted."""
    scale, *rules, sigmoid = options
    scores = Scores.of(query, key, mask, scale, *rules)
    group = scores.query.shape[1:3]
    values, slopes = rows_of(value), rows_of(gradient)
    mean_slope = (slopes * output.detach()).sum(3)
    to_sinks = query.new_empty(0)
    if sinks is not None:
        taken = (sinks.detach().double().unsqueeze(2) - logsumexp).exp()
        to_sinks = -(taken * mean_slope).sum(2).to(sinks.dtype)
    grouped = [tensor.unflatten(1, group) for tensor in (slopes, logsumexp, mean_slope)]
    to_query, to_key, to_value = (_zeros(tensor) for tensor in (scores.query, scores.key, values))
    to_bias = None if mask is None or not to_mask else _zeros(mask.to(values.dtype))
    passes = passes_for(scores.query) if to_bias is None else torch_passes
    offset = -math.log(max(1, key.shape[2]))

    def work(part: list[Place]) -> None:
        memory, other = Memory(scores.query), Memory(scores.query)
        for place in (place._replace(queries=queries) for place in part for queries in scores.row_blocks()):
            rows = stacked(scores.query, place)
            own_slopes, own_logsumexp, own_mean = (stacked(tensor, place).contiguous() for tensor in grouped)
            found = torch.zeros_like(rows)
            for keys in scores.keys_seen(place.queries):
                part_of = (place.batch, place.heads, keys)
                tile = scores.tile(place, rows, keys, memory)
                weights = tile.scores.flatten(1, 2)
                inner = other.take(*weights.shape)
                product(own_slopes, values[part_of].mT, inner)
                if sigmoid:
                    bias = passes.differentiate_squashed(tile, inner.view(tile.scores.shape), offset)
                else:
                    bias = passes.differentiate(tile, inner.view(tile.scores.shape), own_logsumexp, own_mean)
                product(weights.mT, own_slopes, to_value[part_of], beta=1.0)
                product(inner.mT, rows, to_key[part_of], scale, beta=1.0)
                product(inner, scores.key[part_of], found, scale, beta=1.0)
                if to_bias is not None:
                    _add_to_mask(to_bias, bias.view(tile.scores.shape), place, keys)
            to_query[place.batch, place.heads, :, place.queries] = found.unflatten(1, (group[1], -1))

    over(scores.places(whole=True), passes, work)
    to_mask_or_none = query.new_empty(0) if mask is None or to_bias is None else to_bias.to(mask.dtype)
    dtype = query.dtype
    return to_query.flatten(1, 2).to(dtype), to_key.to(dtype), to_value.to(dtype), to_mask_or_none, to_sinks


def shaped_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor | None, *rest: Any
) -> Gradients:
    """Empty results of `attend_backward`."""
    tensors = (query, key, value, mask if rest[2] else None, sinks)
    empty = [query.new_empty(0) if item is None else item.new_empty(item.shape) for item in tensors]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _add_to_mask(to_mask: Tensor, bias: Tensor, place: Place, keys: slice) -> None:
    """Add a tile's (heads, group, queries, keys), summed over the dimensions in which the mask has one element."""
    batch, heads, queries, all_keys = to_mask.shape
    one = [heads == 1, heads == 1, queries == 1, all_keys == 1]
    summed = [dim for dim in range(4) if one[dim]]
    bias = bias.sum(summed, keepdim=True) if summed else bias
    first = place.heads.start * bias.shape[1]
    every = slice(None)
    target = to_mask[
        place.batch if batch > 1 else 0,
        every if heads == 1 else slice(first, first + bias.shape[0] * bias.shape[1]),
        every if queries == 1 else place.queries,
        every if all_keys == 1 else keys,
    ]
    target += bias.flatten(0, 1)


def attend_batched(operator: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
    """`attend` over one more batch dimension, which becomes part of the batch."""
    tensors = _folded(info.batch_size, in_dims[:5], inputs[:5], keep_mask=True)
    results = operator(*tensors, *inputs[5:])
    return tuple(item.unflatten(0, (info.batch_size, -1)) for item in results), (0, 0)


def attend_backward_batched(
    operator: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> Any:
    """`attend_backward` over one more batch dimension."""
    size, to_mask, mask, sinks = info.batch_size, inputs[8], inputs[4], inputs[5]
    tensors = _folded(size, in_dims[1:6], inputs[1:6], keep_mask=not to_mask)
    gradient, output, logsumexp = (folded(inputs[place], in_dims[place], size) for place in (0, 6, 7))
    results = operator(gradient, *tensors, output, logsumexp, *inputs[8:])
    wanted = (True, True, True, to_mask, sinks is not None)
    found = [item.unflatten(0, (size, -1)) if own else item for item, own in zip(results, wanted, strict=True)]
    if to_mask and (mask if in_dims[4] is None else mask.select(in_dims[4], 0)).shape[0] == 1:
        found[3] = found[3].sum(1, keepdim=True)
    return tuple(found), tuple(0 if own else None for own in wanted)


def _folded(size: int, dims: tuple[int | None, ...], tensors: Any, keep_mask: bool) -> list[Tensor | None]:
    """Query, key, value, mask and sinks with the extra dimension in their batch."""
    query, key, value, sinks = (folded(tensors[place], dims[place], size) for place in (0, 1, 2, 4))
    mask = folded_mask(tensors[3], dims[3], size, query.shape[0] // size, keep_mask)
    return [query, key, value, mask, sinks]
