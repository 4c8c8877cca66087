"""What gated products and pointwise functions cost, as ratios: to the traffic they cannot avoid, and to their peers.

The floor of a forward pass is a three-tensor torch.add: two tensors read, one written. Every contender takes its turn
in every round, in one process, right after such an addition that is not timed, so that all find the same in the caches;
forward passes write into memory that is there, except where a fresh tensor is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _rounds import Contest, draw, run
from torch import Tensor

from evenkeel.functional import gated
from evenkeel.kernels.cpu import gates
from evenkeel.reference.gates import GATES

BY_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def relative_error(result: Tensor, name: str, gate: Tensor, up: Tensor) -> str:
    """The largest error over the exact value, and where the exact value is below the smallest normal number, none."""
    exact = GATES[name].product(gate.double(), up.double())
    error = (result.double() - exact).abs() / exact.abs().clamp(min=2.0**-126)
    return f"{float(error.max()):.1e}"


def forward(shape: tuple[int, int], dtype: torch.dtype) -> Contest:
    """One pass over the numbers, everyone into memory that is there; and each with a fresh result."""
    gate, up, out = (torch.randn(shape).to(dtype) for _ in range(3))
    add = partial(torch.add, gate, up, out=out)
    contest = Contest("torch.add of three tensors", add, before=add)
    contest.add("torch.add, fresh result", lambda: torch.add(gate, up))
    for name, function in BY_TORCH.items():
        compiled = torch.compile(lambda g, u, function=function: function(g) * u)
        kernel = gates.forward(name, dtype)
        contest.add(f"{name}: evenkeel", lambda kernel=kernel: gates.over_rows(kernel, 2**14, gate, up, out))
        contest.error(relative_error(gated(gate, up, name), name, gate, up))
        contest.add(f"{name}: evenkeel, fresh result", lambda name=name: gated(gate, up, name))
        contest.add(f"{name}: Inductor, fresh result", lambda compiled=compiled: compiled(gate, up))
        contest.error(relative_error(compiled(gate, up), name, gate, up))
        contest.add(f"{name}: eager, fresh result", lambda function=function: function(gate) * up)
        contest.error(relative_error(function(gate) * up, name, gate, up))
    return contest


def both_ways(shape: tuple[int, int], dtype: torch.dtype) -> Contest:
    """Forward and backward through autograd, fresh results everywhere."""
    gate, up = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    gradient = torch.randn(shape).to(dtype)
    add = partial(torch.add, gate.detach(), up.detach())
    contest = Contest("torch.add of three tensors", add, before=add)

    def step(product: Callable[[Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(product(gate, up), (gate, up), gradient)

    for name, function in BY_TORCH.items():
        compiled = torch.compile(lambda g, u, function=function: function(g) * u)
        contest.add(f"{name}: evenkeel", lambda name=name: step(lambda g, u: gated(g, u, name)))
        contest.add(f"{name}: Inductor", lambda compiled=compiled: step(compiled))
        contest.add(f"{name}: eager", lambda function=function: step(lambda g, u: function(g) * u))
    return contest


def main() -> None:
    """Run every contest at one and at two threads and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shape", type=int, nargs=2, default=[512, 11008], help="rows and columns")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            for title, make in (("forward", forward), ("forward and backward", both_ways)):
                torch.compiler.reset()  # a change of threads makes everything compile again
                contest = make(tuple(arguments.shape), dtype)
                seconds = run(contest, arguments.rounds)
                shown = " x ".join(map(str, arguments.shape))
                draw(contest, seconds, f"{title}, {shown}, {dtype}, threads: {threads}")


if __name__ == "__main__":
    main()
