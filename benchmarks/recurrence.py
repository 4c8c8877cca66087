"""What an LSTM and a GRU cost, as ratios to torch's own: a whole sequence, forward, and forward and backward.

Every contender takes its turn in every round, in one process, with the same numbers. Beside our modules stands the same
recurrence in eager torch, step by step, each gate by itself. Errors are to the module in float64.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from _rounds import Contest, draw, run
from torch import Tensor, nn

from evenkeel.nn.recurrence import GRU, LSTM

PAIRS: dict[str, tuple[type[nn.Module], Callable[..., nn.Module]]] = {"LSTM": (LSTM, nn.LSTM), "GRU": (GRU, nn.GRU)}


def step_by_step(module: nn.Module, x: Tensor) -> Tensor:
    """One layer's output with a torch call per gate."""
    weight, own = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
    bias, own_bias = module.get_parameter("bias_ih_l0"), module.get_parameter("bias_hh_l0")
    hidden = cell = x.new_zeros(x.shape[1], own.shape[1])
    outputs = []
    for share in nn.functional.linear(x, weight, bias):
        if isinstance(module, nn.LSTM):
            i, f, n, o = (share + nn.functional.linear(hidden, own, own_bias)).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(n)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        else:
            (r, z, n), (to_r, to_z, to_n) = (
                item.chunk(3, -1) for item in (share, nn.functional.linear(hidden, own, own_bias))
            )
            n, z = torch.tanh(n + torch.sigmoid(r + to_r) * to_n), torch.sigmoid(z + to_z)
            hidden = n + z * (hidden - n)
        outputs.append(hidden)
    return torch.stack(outputs)


def contest(name: str, shape: tuple[int, int, int], dtype: torch.dtype, *, backward: bool) -> Contest:
    """Torch's module, ours with its weights, and the steps in eager torch."""
    length, batch, width = shape
    ours, theirs = PAIRS[name]
    torch.manual_seed(0)
    peer = theirs(width, width).to(dtype)
    module = ours(width, width, dtype=dtype)
    module.load_state_dict(peer.state_dict())
    x = torch.randn(length, batch, width).to(dtype)
    upstream = torch.randn(length, batch, width).to(dtype)
    exact = copy.deepcopy(peer).double()(x.double())[0]

    def work(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], object]:
        if backward:
            return lambda: torch.autograd.grad(run(), parameters, upstream)
        return torch.no_grad()(run)

    def error(output: Tensor) -> str:
        return f"{float((output.double() - exact).detach().abs().max()):.1e}"

    contenders: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {
        f"torch.nn.{name}": (lambda: peer(x)[0], peer),
        f"evenkeel.nn.{name}": (lambda: module(x)[0], module),
        "eager torch, step by step": (lambda: step_by_step(peer, x), peer),
    }
    (first, base), *others = ((key, work(run, list(of.parameters()))) for key, (run, of) in contenders.items())
    result = Contest(first, base)
    result.error(error(peer(x)[0]))
    for key, contender in others:
        result.add(key, contender)
        result.error(error(contenders[key][0]()))
    return result


def main() -> None:
    """Run every contest at one and at two threads and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--sizes", nargs="+", default=["1x256", "32x128", "32x512"], help="batch and width")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dtype in (getattr(torch, name) for name in arguments.dtypes):
            for batch, width in (map(int, size.split("x")) for size in arguments.sizes):
                for name in PAIRS:
                    for backward in (False, True):
                        made = contest(name, (arguments.length, batch, width), dtype, backward=backward)
                        title = f"{name}, forward{' and backward' if backward else ''}, {arguments.length} steps"
                        shown = f"{title}, batch {batch}, width {width}, {dtype}, threads: {threads}"
                        draw(made, run(made, arguments.rounds), shown)


if __name__ == "__main__":
    main()
