"""What the statistics of a tensor cost beside its sum, and beside the torch passes that give the same numbers.

Contenders walk through tensors that together are larger than any cache, so that each reads from memory. Everyone takes
a turn in every round, in one process. The error is that of the fourth central moment, the hardest to get right.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from _rounds import Contest, draw, run
from torch import Tensor

from evenkeel.functional._statistics import tensor_statistics
from evenkeel.functional._sums import sizes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHES = 2**28  # bytes


def in_torch(x: Tensor, dim: int | None) -> tuple[Tensor, ...]:
    """The same numbers in torch, in the tensor's dtype, as one would write it: mean, moments, extremes, NaN, Inf."""
    dims = () if dim is None else (dim,)
    mean = x.mean(dims)
    centred = x - mean
    square = centred.square()
    return (
        mean,
        square.sum(dims),
        (square * centred).sum(dims),
        square.square().sum(dims),
        x.amin(dims),
        x.amax(dims),
        x.isnan().sum(dims),
        x.isinf().sum(dims),
    )


def contest(shape: tuple[int, int], dtype: torch.dtype, dim: int | None) -> Contest:
    """Statistics of each column (dim 0) or of all elements (dim None), against the sum."""
    generator = torch.Generator().manual_seed(0)
    first = (torch.randn(shape, generator=generator) + 3).to(dtype)
    tensors = [first, *(first.clone() for _ in range(min(100, CACHES // first.nbytes)))]
    wide = first.double()
    exact = (wide - wide.mean(() if dim is None else dim)).pow(4).sum(() if dim is None else dim)

    def error(fourth: Tensor) -> str:
        return f"{float((fourth / exact - 1).abs().max()):.1e}"

    def walking(function: Callable[[Tensor], object]) -> Callable[[], object]:
        following = itertools.cycle(tensors)
        return lambda: function(next(following))

    channel_dim = None if dim is None else 1
    inductor = torch.compile(lambda x: in_torch(x, dim))
    result = Contest("x.sum()", walking(torch.sum))
    result.add("evenkeel", walking(lambda x: tensor_statistics(x, channel_dim=channel_dim)))
    result.error(error(tensor_statistics(first, channel_dim=channel_dim).fourth))
    result.add("evenkeel, two bounds", walking(lambda x: tensor_statistics(x, channel_dim=channel_dim, bounds=(0, 4))))
    result.add("the same in torch", walking(lambda x: in_torch(x, dim)))
    result.error(error(in_torch(first, dim)[3]))
    result.add("the same by Inductor", walking(inductor))
    result.error(error(inductor(first)[3]))
    result.add("torch.var_mean alone", walking(lambda x: torch.var_mean(x, dim)))
    result.add("evenkeel: Σx², max |x|, not finite alone", walking(sizes))
    return result


def main() -> None:
    """Print one table per number of threads, dtype and kind of statistics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shape", type=int, nargs=2, default=[2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    arguments = parser.parse_args()
    rows, columns = arguments.shape
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtype:
            for dim, kind in ((0, "per channel"), (None, "of all elements")):
                entered = contest((rows, columns), DTYPES[name], dim)
                draw(entered, run(entered, arguments.rounds), f"{kind}: {rows}×{columns} {name}, threads: {threads}")


if __name__ == "__main__":
    main()
