"""The small trainer: text to batches of bytes, AdamW, warm-up and cosine, clipping; the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import UsageError
from .watching import Watch

Progress = Callable[[int, int, float], None]

_WARMUP_SHARE = 0.1
_FINAL_SHARE = 0.1
_LARGEST_NORM = 1.0


def byte_batches(text: str | bytes, *, context: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless random windows of a text's UTF-8 bytes: (size, context) int64 in [0, 256).

    Raises UsageError for a text shorter than one window.
    """
    data = torch.frombuffer(bytearray(text.encode() if isinstance(text, str) else text), dtype=torch.uint8)
    if data.numel() < context:
        raise UsageError(f"the text has {data.numel()} bytes and a window needs {context}; give more text")
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(context)
    while True:
        starts = torch.randint(data.numel() - context + 1, (size, 1), generator=generator)
        yield data[starts + offsets].long()


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float = 0.1) -> AdamW:
    """AdamW with β = (0.9, 0.95) that decays matrices and leaves norms and biases alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [item for item in trained if item.dim() >= 2], "weight_decay": weight_decay},
        {"params": [item for item in trained if item.dim() < 2], "weight_decay": 0.0},
    ]
    # Fused, since for small models the passes over each tensor cost more than the arithmetic.
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Tensor],
    *,
    steps: int,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train on next-token loss for a number of steps and return each step's loss in nats per token.

    model: `model(input_ids, labels)` gives an output with `.loss`. The optimizer's learning rate is the peak: it is
    reached after a tenth of the steps and falls to a tenth of itself along a cosine. Gradients are clipped to norm 1.
    watch: measures its due steps. progress: called with (steps done, steps in all, loss).
    """
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    model.train()
    losses: list[float] = []
    for batch in islice(batches, steps):
        losses.append(training_step(model, optimizer, batch, watch).item())
        schedule.step()
        if progress is not None:
            progress(len(losses), steps, losses[-1])
    return losses


def training_step(model: nn.Module, optimizer: Optimizer, batch: Tensor, watch: Watch | None = None) -> Tensor:
    """One step on next-token loss, with gradients clipped to norm 1; the loss before it, in nats per token, ()."""
    with watch.step() if watch is not None else nullcontext():
        loss = model(batch, labels=batch).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.log(loss=loss, gradient_norm=norm, batch=batch)
    return loss.detach()


def learning_rate_share(step: int, steps: int, warmup_share: float = _WARMUP_SHARE) -> float:
    """The share of the peak learning rate at a step, from 0: up in a line, then down along a cosine to a tenth."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def one_thread() -> Iterator[None]:
    """For small models: not slowed by other work on the machine, and sums do not depend on its cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
