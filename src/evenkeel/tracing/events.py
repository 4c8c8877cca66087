"""What tracing hands on: the tensors seen at a site, detached, in the dtype the model itself computed with.

Events live for one call only; an instrument that keeps a tensor of an event keeps the model's memory alive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationEvent:
    """An elementwise function was applied: `output = function(input)`, any shape, channels along `channel_dim`.

    fan_in: how many inputs the linear map that leads in has, 0 where none was seen.
    `function` is the model's own implementation and safe to call again (on a detached input, with gradients enabled).
    """

    input: Tensor
    output: Tensor
    function: Callable[[Tensor], Tensor]
    channel_dim: int = -1
    fan_in: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEvent:
    """`product = activated * up`, where `activated` comes from an activation of other values.

    All of one shape, or `activated` is spread over several values of `up`, as one number for all channels of a token.
    """

    activated: Tensor
    up: Tensor
    product: Tensor
    channel_dim: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionEvent:
    """Attention of queries to keys; either `query` and `key` are given (fused call) or `scores` (eager call).

    query (batch, heads, queries, head_dim); key (batch, key_heads, keys, head_dim) with heads a multiple of key_heads;
    mask broadcastable to (batch, heads, queries, keys): bool (True = visible) or additive float;
    scale: what the call multiplies scores by; factor: what queries and keys were multiplied by before it, NaN
    where that was not seen.
    causal is aligned top-left: query i sees keys j <= i.
    softcap: c of c·tanh(score / c), before the mask; window: query i sees keys with |i - j| < window.
    scores (batch, heads, queries, keys): the softmax's own input, scale, mask and soft-cap included, hidden entries
    very negative; `visible` (broadcastable to scores, bool) where the model's mask was seen, else None.
    added: what the product of queries and keys was added to (ALiBi's bias), any shape, where it was seen.
    padded_queries (batch, queries), True where the query is known to be padding.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    scale: float = 1.0
    factor: float = 1.0
    causal: bool = False
    mask: Tensor | None = None
    softcap: float | None = None
    window: int | None = None
    scores: Tensor | None = None
    visible: Tensor | None = None
    added: Tensor | None = None
    padded_queries: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterEvent:
    """Each token chose experts: `chosen` (tokens, k) int64 in [0, experts).

    scores (..., experts): what it chose by, before softmax or sigmoid, where all of them were seen.
    """

    chosen: Tensor
    experts: int
    scores: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEvent:
    """Logits (rows, classes) as they go into the loss, with `targets` (rows,) where they are known.

    before: where the rows are not the first of their call, the target of the row before them, (1,).
    epsilon: the spacing at 1 of the coarsest format that held them on their way; 0 where they only were in their own.
    """

    logits: Tensor
    targets: Tensor | None = None
    ignore_index: int = -100
    before: Tensor | None = None
    epsilon: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidHeadEvent:
    """Logits (rows, classes) of sigmoids that each are a loss of their own; how many classes each row wants (rows,)."""

    logits: Tensor
    wanted: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEvent:
    """How far positions moved when later tokens of their sequence were changed: root mean squares, (positions,).

    earlier: of the positions in front of these tokens; later: from them on; untouched: of a sequence of the same batch
    in which nothing was changed.
    """

    earlier: Tensor
    later: Tensor
    untouched: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEvent:
    """The output of a block (residual site) or of any module (module site).

    Of a block also its input, where that is of the same shape.
    """

    output: Tensor
    input: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """Whether a way of nothing but elementwise functions led from a block's input to its output, or past it.

    It may lead past the block where the sum stands outside, between this block and the next.
    """

    carries_input: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NormEvent:
    """A norm was applied: `output` is (input - mean) / sqrt(variance + epsilon), with any gain and bias.

    size: how many neighbouring values of the input are normalised together; centred: whether their mean is taken out,
    else the variance is the mean square. The output's channels lie along `channel_dim`. reads_stream: whether the
    input is the residual stream of its block, as in front of a branch, and no branch's own output, as behind one.
    """

    input: Tensor
    output: Tensor
    size: int
    epsilon: float
    centred: bool
    channel_dim: int = -1
    reads_stream: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialEvent:
    """A softmax spelled out raised e to these exponents, in this dtype."""

    exponents: Tensor
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientEvent:
    """The loss's gradient with respect to the output of a block or a module; of a block also that output."""

    gradient: Tensor
    output: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputGradientEvent:
    """What a module adds to the gradient of its input; where it has parts, that whole gradient."""

    gradient: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterEvent:
    """A trained parameter: its weight; after the backward pass its gradient; after an optimizer step its update.

    Each may come in an event of its own; a weight that was handed on with its gradient does not come again.
    width: sqrt(inputs * outputs) of a linear map, 0 for what is none. changed: (2,), how many of the elements with a
    gradient other than 0 the step gave another value, and how many there are; moved: the same of a sample, since the
    run's first measured step. optimized: whether the optimizer, or one of several, holds it; learning_rate: that of its
    group, planned_rate: the one its schedule starts from or leads to.
    """

    weight: Tensor | None = None
    gradient: Tensor | None = None
    update: Tensor | None = None
    width: float = 0.0
    changed: Tensor | None = None
    moved: Tensor | None = None
    optimized: bool | None = None
    learning_rate: Tensor | None = None
    planned_rate: Tensor | None = None


Event = (
    ActivationEvent
    | GateEvent
    | AttentionEvent
    | RouterEvent
    | HeadEvent
    | SigmoidHeadEvent
    | ProbeEvent
    | OutputEvent
    | StreamEvent
    | NormEvent
    | ExponentialEvent
    | GradientEvent
    | InputGradientEvent
    | ParameterEvent
)
