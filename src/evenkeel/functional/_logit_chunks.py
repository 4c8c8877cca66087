"""The logits of an output head, a chunk of tokens at a time: made, used for losses and gradients, and overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import cpu
from ..kernels import losses as torch_passes
from ..kernels.cpu._threads import as_called_here, in_parallel
from ._dtypes import summing_dtype, widened
from ._losses import check_target, token_losses

_CHUNK = 12 * 2**20  # logits that exist at a time: 48 MiB of float32; more tokens in each mean fewer passes over dW
_TILE = 1024  # columns of a tile, which with a chunk's tokens about fills a core's cache

Options = tuple[float, float, float, float, int]  # temperature, softcap (0: none), smoothing, z-loss, ignored
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, weight and bias


class Head(NamedTuple):
    """An output head and what its loss is, as every step of the walk needs them."""

    weight: Tensor
    bias: Tensor | None
    options: Options


def _in_parts(function: Callable[[int, int], object], count: int, device: torch.device) -> None:
    """Whole tiles on each thread: a product that all threads share would have them wait for each other every time."""
    if device.type == "cpu":
        in_parallel(as_called_here(function), count)
    else:
        function(0, count)


def _passes(x: Tensor) -> Any:
    if not cpu.serves(x):
        return torch_passes
    from ..kernels.cpu import losses

    return losses


class _Chunk:
    """Some tokens' scores, tile by tile of the vocabulary; they lie in `memory` until the next chunk's."""

    def __init__(self, rows: Tensor, targets: Tensor, head: Head, memory: Tensor, passes: Any) -> None:
        self.rows, self.targets, self.head, self.memory = rows, targets, head, memory
        self.passes = passes
        self.width = _TILE if rows.device.type == "cpu" else max(1, head.weight.shape[0])
        self.count = -(-head.weight.shape[0] // self.width)

    def tile(self, number: int) -> tuple[slice, Tensor, Tensor]:
        """Its classes, the rows of the weight that belong to them, and the memory of its scores."""
        first, tokens = number * self.width, self.rows.shape[0]
        classes = slice(first, min(first + self.width, self.head.weight.shape[0]))
        weight = self.head.weight[classes].to(self.rows.dtype)
        return classes, weight, self.memory[first * tokens : classes.stop * tokens].view(tokens, weight.shape[0])

    def score(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make the scores; return losses, maxima and log Σe^((x − max)/T)."""
        temperature, softcap, smoothing, z_loss, ignored = self.head.options
        tokens, vocabulary = self.rows.shape[0], self.head.weight.shape[0]
        sums = self.rows.new_zeros((4, self.count, tokens), dtype=summing_dtype(self.rows))

        def part(start: int, stop: int) -> None:
            for number in range(start, stop):
                classes, weight, scores = self.tile(number)
                torch.mm(self.rows, weight.mT, out=scores)
                if self.head.bias is not None:
                    scores += self.head.bias[classes]
                if softcap:
                    scores.div_(softcap).tanh_().mul_(softcap)
                self.passes.gather(
                    scores,
                    self.targets,
                    *sums[:, number],
                    first=classes.start,
                    temperature=temperature,
                    smooth=smoothing > 0,
                )

        _in_parts(part, self.count, self.rows.device)
        maxima, log_totals, below = _joined(sums[0], sums[1], sums[2], vocabulary, self.width, temperature)
        options = (temperature, smoothing, z_loss)
        losses = token_losses(maxima, log_totals, sums[3].sum(0), below, vocabulary, options)
        return torch.where(self.targets != ignored, losses, 0), maxima, log_totals

    def differentiate(
        self, maxima: Tensor, log_totals: Tensor, share: Tensor, gradients: Gradients, is_first: bool
    ) -> None:
        """Turn the scores into slopes; set the gradient of these rows, and add to those of weight and bias."""
        temperature, softcap, smoothing, z_loss, _ = self.head.options
        to_rows, to_weight, to_bias = gradients
        kept = 0 if is_first else 1
        found: dict[int, Tensor] = {}

        def part(start: int, stop: int) -> None:
            total = found[start] = torch.empty_like(self.rows)
            for number in range(start, stop):
                classes, weight, slopes = self.tile(number)
                self.passes.differentiate_tile(
                    slopes,
                    self.targets,
                    maxima,
                    log_totals,
                    share,
                    first=classes.start,
                    vocabulary=self.head.weight.shape[0],
                    temperature=temperature,
                    smoothing=smoothing,
                    z_loss=z_loss,
                    inverse_cap=1 / softcap if softcap else 0.0,
                )
                if to_rows is not None:
                    torch.addmm(total, slopes, weight, beta=int(number > start), out=total)
                if to_weight is not None:
                    target = to_weight[classes]
                    torch.addmm(target, slopes.mT, self.rows, beta=kept, out=target)
                if to_bias is not None:
                    to_bias[classes] = slopes.sum(0) + (to_bias[classes] if kept else 0)

        _in_parts(part, self.count, self.rows.device)
        if to_rows is not None:
            torch.sum(torch.stack([found[start] for start in sorted(found)]), 0, out=to_rows)


def _joined(
    maxima: Tensor, log_totals: Tensor, below: Tensor, vocabulary: int, width: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, log Σe^((x − max)/T) and Σ(x − max) of all tiles, from those of each."""
    top = maxima.amax(0)
    step = torch.where(maxima == top, 0, maxima - top)  # 0 where both are infinite
    widths = (vocabulary - width * torch.arange(len(maxima), device=top.device)).clamp(max=width).unsqueeze(1)
    return top, (log_totals + step / temperature).logsumexp(0), (below + widths * step).sum(0)


@torch.no_grad()
def walk(x: Tensor, head: Head, target: Tensor, share: Tensor | None, needed: list[bool]) -> tuple[Tensor, Gradients]:
    """The losses (N,) of x (N, D) and target (N,), and the gradients of Σ share·losses that are needed.

    Gradients are summed, and returned, in the dtype to compute in.
    """
    vocabulary, count = head.weight.shape[0], x.shape[0]
    check_target(target, vocabulary, head.options[-1])
    target, rows = target.long(), widened(x)
    losses = rows.new_empty(count)
    make = rows.new_empty if count else rows.new_zeros
    to_x, to_weight, to_bias = (
        make(item.shape) if wanted and item is not None else None
        for item, wanted in zip((x, head.weight, head.bias), needed, strict=True)
    )
    size = -(-count // max(1, -(-count * vocabulary // _CHUNK)))
    memory = rows.new_empty(size * vocabulary)
    for start in range(0, count, max(1, size)):
        tokens = slice(start, min(count, start + size))
        chunk = _Chunk(rows[tokens], target[tokens], head, memory, _passes(x))
        losses[tokens], maxima, log_totals = chunk.score()
        if share is not None:
            gradients = (None if to_x is None else to_x[tokens], to_weight, to_bias)
            chunk.differentiate(maxima, log_totals, share[tokens], gradients, start == 0)
    return losses, (to_x, to_weight, to_bias)
