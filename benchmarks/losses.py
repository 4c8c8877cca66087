"""What the cross-entropy of an output head costs in time and memory, forward and backward, beside torch's ways to it.

torch's full logits are what all others are compared with; "chunked" is what is written by hand against their memory:
checkpointed chunks of 128 tokens. Everyone takes a turn in every round, in one process. Memory is the growth of the
resident set above what it was, less the gradients that are returned, in a process of its own; errors are those of the
weight's gradient, relative to its largest element in float64.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _rounds import Contest, draw, run
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evenkeel.functional._linear_losses import linear_cross_entropy
from evenkeel.functional._losses import cross_entropy
from evenkeel.functional._sigmoid_losses import sigmoid_cross_entropy

HEADS = ((1024, 512, 50_257), (1024, 256, 128_256))
CHUNK = 128

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def full(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(x, weight), target)


def chunked(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """A chunk of tokens at a time, whose logits are made again on the way back."""
    parts = zip(x.split(CHUNK), target.split(CHUNK), strict=True)

    def part(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight), target, reduction="sum")

    losses = [checkpoint(part, x, target, use_reentrant=False) for x, target in parts]
    return torch.stack(losses).sum() / x.shape[0]


def capped(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All logits at once, with Gemma's softcap, smoothed labels and a z-loss."""
    logits = 30 * torch.tanh(F.linear(x, weight) / 30)
    return F.cross_entropy(logits, target, label_smoothing=0.1) + 1e-4 * logits.logsumexp(-1).square().mean()


def our_capped(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The same by our head."""
    return linear_cross_entropy(x, weight, target, softcap=30.0, label_smoothing=0.1, z_loss=1e-4)


WAYS: dict[str, Head] = {
    "torch, full logits": full,
    "evenkeel": linear_cross_entropy,
    "evenkeel, full logits": lambda x, weight, target: cross_entropy(F.linear(x, weight), target),
    "torch, chunked": chunked,
    "torch, all options": capped,
    "evenkeel, all options": our_capped,
}


def made(tokens: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs whose logits are N(0, 4²)."""
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, width), torch.empty(classes, width).normal_(std=4 / width**0.5)
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(classes, (tokens,))


def step(way: Head, x: Tensor, weight: Tensor, target: Tensor) -> None:
    """Forward and backward, into gradients that are not there yet."""
    x.grad = weight.grad = None
    way(x, weight, target).backward()


def error(way: Head, definition: Head, x: Tensor, weight: Tensor, target: Tensor) -> str:
    """The largest error of the weight's gradient for 64 tokens, over its largest element."""
    few = x[:64].detach()
    exact_weight = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(definition(few.double(), exact_weight, target[:64]), exact_weight)
    (found,) = torch.autograd.grad(way(few, weight, target[:64]), weight)
    return f"{float((found - exact).abs().max() / exact.abs().max()):.1e}"


def memory(name: str, shape: tuple[int, int, int], threads: int) -> str:
    """MiB beyond the gradients, from a process of its own."""
    if sys.platform != "linux":
        return "MiB: Linux only"
    command = [sys.executable, __file__, "--measure", name, *map(str, (threads, *shape))]
    return f"{float(subprocess.run(command, capture_output=True, text=True, check=True).stdout):.0f} MiB"


def measure(name: str, threads: int, tokens: int, width: int, classes: int) -> None:
    """Print the memory of one step; a small one before it fills torch's own pools and loads kernels."""
    torch.set_num_threads(threads)
    x, weight, target = made(tokens, width, classes)
    step(WAYS[name], *made(64, width, 2000))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    step(WAYS[name], x, weight, target)
    print(resident("VmHWM") - before - (x.numel() + weight.numel()) * 4 / 2**20)


def resident(field: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def heads(shape: tuple[int, int, int], threads: int, compiled: bool) -> Contest:
    """Every way to a head's loss and its gradients."""
    inputs = made(*shape)
    contest: Contest | None = None
    for name, way in WAYS.items():
        if contest is None:
            contest = Contest(name, lambda way=way: step(way, *inputs))
        else:
            contest.add(name, lambda way=way: step(way, *inputs))
        definition = capped if name.endswith("options") else full
        contest.error(f"{error(way, definition, *inputs)}, {memory(name, shape, threads)}")
    assert contest is not None
    if compiled:
        way = torch.compile(full)
        contest.add("Inductor, full logits", lambda: step(way, *inputs))
        contest.error(error(way, full, *inputs))
    return contest


def over_logits(rows: int, classes: int) -> Contest:
    """Losses of logits that exist, forward and backward."""
    logits = (4 * torch.randn(rows, classes)).requires_grad_()
    target = torch.randint(classes, (rows,))
    yes = F.one_hot(target, classes).float()
    ways: dict[str, Callable[[], Tensor]] = {
        "cross_entropy: torch": lambda: F.cross_entropy(logits, target),
        "cross_entropy: evenkeel": lambda: cross_entropy(logits, target),
        "sigmoids: torch": lambda: F.binary_cross_entropy_with_logits(logits, yes, reduction="sum") / rows,
        "sigmoids: evenkeel": lambda: sigmoid_cross_entropy(logits, target),
    }
    first, *others = ways.items()
    contest = Contest(first[0], lambda: torch.autograd.grad(first[1](), logits))
    for name, way in others:
        contest.add(name, lambda way=way: torch.autograd.grad(way(), logits))
    return contest


def main() -> None:
    """Run every contest at one and at two threads and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shape", type=int, nargs=3, action="append", help="tokens, width and classes of a head")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *numbers = arguments.measure
        return measure(name, *map(int, numbers))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for shape in arguments.shape or HEADS:
            torch.compiler.reset()
            tokens, width, classes = shape
            contest = heads((tokens, width, classes), threads, not arguments.no_compile)
            size = f"N={tokens}, D={width}, V={classes:,}, float32, {threads} thread{'s' * (threads > 1)}"
            draw(contest, run(contest, arguments.rounds), f"a head's loss and gradients, {size}")
            contest = over_logits(tokens // 8, classes)
            draw(contest, run(contest, 4 * arguments.rounds), f"losses of {tokens // 8} x {classes:,} logits, {size}")


if __name__ == "__main__":
    main()
