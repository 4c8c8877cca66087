"""What the softmax family costs and how exact it is, over vocabularies of real models, beside torch's ways to it.

Logits are N(0, 4²). Everyone takes a turn in every round, in one process, and makes a fresh result; errors are relative
to float64, and "sum" is how far a row of probabilities is from summing to 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _rounds import Contest, draw, run
from torch import Tensor

from evenkeel.functional._softmax import log_softmax, logsumexp, softmax, softmax_statistics

Function = Callable[[Tensor], Tensor]


def torch_statistics(x: Tensor) -> Tensor:
    """Log-sum-exp, entropy and participation from torch's probabilities."""
    logs = x.log_softmax(-1)
    p = logs.exp()
    return torch.stack((x.logsumexp(-1), -(p * logs).sum(-1), 1 / p.square().sum(-1)), -1)


def our_statistics(x: Tensor) -> Tensor:
    """The same by our one pass."""
    return torch.stack(softmax_statistics(x), -1)


FORWARD: dict[str, tuple[Function, Function]] = {
    "softmax": (softmax, lambda x: x.softmax(-1)),
    "log_softmax": (log_softmax, lambda x: x.log_softmax(-1)),
    "logsumexp": (logsumexp, lambda x: x.logsumexp(-1)),
    "statistics": (our_statistics, torch_statistics),
}


def accuracy(result: Tensor, exact: Tensor, name: str) -> str:
    """The largest relative error, and for probabilities how far a row is from 1."""
    error = float(((result.double() - exact) / exact).abs().max())
    off = f", sum {float((result.double().sum(-1) - 1).abs().max()):.0e}" if name == "softmax" else ""
    return f"{error:.1e}{off}"


def forward(x: Tensor) -> Contest:
    """One pass; torch's softmax is what all others are compared with."""
    contest = Contest("torch.softmax", lambda: x.softmax(-1))
    for name, (ours, theirs) in FORWARD.items():
        exact = theirs(x.double())
        for who, function in (("evenkeel", ours), ("torch", theirs), ("Inductor", torch.compile(theirs))):
            contest.add(f"{name}: {who}", lambda function=function: function(x))
            contest.error(accuracy(function(x), exact, name))
    return contest


def both_ways(x: Tensor) -> Contest:
    """Forward and backward through autograd."""
    x = x.detach().requires_grad_()

    def step(function: Function) -> Tensor:
        result = function(x)
        return torch.autograd.grad(result, x, torch.ones_like(result))[0]

    contest = Contest("torch.softmax", lambda: step(lambda x: x.softmax(-1)))
    for name, (ours, theirs) in FORWARD.items():
        for who, function in (("evenkeel", ours), ("torch", theirs), ("Inductor", torch.compile(theirs))):
            contest.add(f"{name}: {who}", lambda function=function: step(function))
    return contest


def main() -> None:
    """Run every contest at one and at two threads and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[128_256, 256_000])
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            for length in arguments.vocabularies:
                x = (4 * torch.randn(arguments.rows, length, generator=torch.Generator().manual_seed(0))).to(dtype)
                for title, make in (("forward", forward), ("forward and backward", both_ways)):
                    torch.compiler.reset()  # a change of threads makes everything compile again
                    contest = make(x)
                    size = f"{arguments.rows} x {length:,}, {dtype}, {threads} thread{'s' * (threads > 1)}"
                    draw(contest, run(contest, arguments.rounds), f"{title}, {size}")


if __name__ == "__main__":
    main()
