"""How exact every pointwise function and slope is: all 2^32 float32 patterns, all 65,536 of bfloat16 and float16.

Results of evenkeel, and on one in 16 float32 patterns those of torch in eager mode and of torch.compile (Inductor), are
compared with the float64 references.
An error is in units in the last place of the exact value; within 2^-6 of a zero of a slope the ulp is at least that of
2^-8. What has been measured is kept, so that a run that was stopped goes on where it was; the finished table goes to
docs/ulp.md.

The references' own error is below 2^-52·(16 + 3·|z|) relative, z the exponent's argument (reference/activations.py),
|z| < 120 wherever the result is not 0 or a limit in float32: less than 2^-43, or 2^-19 ulp.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evenkeel.facts import FACTS
from evenkeel.functional import ACTIVATIONS
from evenkeel.reference.activations import REFERENCES, SLOPES
from evenkeel.testing import ulp_error

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "ulp.md"
CHUNK = 2**21  # patterns in a task
PIECE = 2**15  # patterns measured at a time, so that they stay in cache
FORMATS = {"float32": 2**32 // CHUNK, "bfloat16": 1, "float16": 1}
NEAR_ZERO, FLOOR = 2.0**-6, 2.0**-8
BY_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x * 1,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}

DEPENDS_ON = (
    "functional/_activations.py",
    "kernels/cpu/_arithmetic.py",
    "kernels/cpu/activations.py",
    "kernels/cpu/fast32.py",
    "reference/activations.py",
)
PEERS_EVERY = 16  # of so many float32 chunks torch and Inductor are measured on one
MAKERS = ("evenkeel", "torch", "Inductor")

Score = tuple[float, float, int, int]  # worst ulp, the x where, correctly rounded, patterns


def patterns(dtype: str, chunk: int) -> Tensor:
    """The chunk's bit patterns as numbers: every n-th, so that each chunk meets all magnitudes."""
    if dtype != "float32":
        return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    return (_every_nth() + chunk).view(torch.float32)


@cache
def _every_nth() -> Tensor:
    bits = torch.arange(CHUNK, dtype=torch.int64) * FORMATS["float32"]
    return torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32)


def implementations(name: str, chunk: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The function by each of MAKERS that is measured on a chunk."""
    if chunk % PEERS_EVERY:
        return {MAKERS[0]: ACTIVATIONS[name].function}
    return dict(zip(MAKERS, (ACTIVATIONS[name].function, BY_TORCH[name], _compiled(name)), strict=True))


@cache
def _compiled(name: str) -> Callable[[Tensor], Tensor]:
    torch._dynamo.config.recompile_limit = 1000  # one code object stands for all functions and formats
    return torch.compile(BY_TORCH[name])


def value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and f′(x) as autograd gives it."""
    x = x.detach().requires_grad_()
    y = function(x)
    slope = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    return y.detach(), torch.where(x.isnan(), x, slope)  # at a NaN any slope will do


def floor_of(name: str, x: Tensor) -> Tensor | None:
    """Near a zero of the slope, the size below which an error is not held against anybody."""
    zeros = FACTS[name].derivative_zeros
    if not zeros:
        return None
    near = torch.stack([(x - zero).abs() <= NEAR_ZERO for zero in zeros]).any(0)
    return torch.where(near, FLOOR, 0.0).double()


def measure(task: tuple[str, str, int]) -> tuple[tuple[str, str, int], dict[str, Score]]:
    """One function on one chunk: "value torch" and so on to its score."""
    torch.set_num_threads(1)
    name, dtype, chunk = task
    scores: dict[str, Score] = {}
    for x in patterns(dtype, chunk).split(PIECE):
        exact = x.double()
        wanted = {"value": (REFERENCES[name](exact), None), "slope": (SLOPES[name](exact), floor_of(name, exact))}
        for who, function in implementations(name, chunk).items():
            for what, got in zip(wanted, value_and_slope(function, x), strict=True):
                error = ulp_error(got, wanted[what][0], floor=wanted[what][1])
                score = (error.worst, float(x[error.place]), error.correctly_rounded, error.count)
                key = f"{what} {who}"
                scores[key] = joined(scores[key], score) if key in scores else score
    return task, scores


def joined(a: Score, b: Score) -> Score:
    """The score of both chunks together."""
    worst = a if a[0] >= b[0] else b
    return worst[0], worst[1], a[2] + b[2], a[3] + b[3]


class Progress:
    """Scores so far: one line of JSON per finished task, in a file named by what they depend on."""

    def __init__(self) -> None:
        digest = hashlib.sha256(f"{torch.__version__} {CHUNK} {platform.processor()}".encode())
        for name in DEPENDS_ON:
            digest.update((ROOT / "src" / "evenkeel" / name).read_bytes())
        self.path = ROOT / "build" / "ulp" / f"{digest.hexdigest()[:16]}.jsonl"
        self.done: set[tuple[str, str, int]] = set()
        self.scores: dict[tuple[str, str, str], Score] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                task, scores = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            self._take((task[0], task[1], task[2]), scores)

    def add(self, task: tuple[str, str, int], scores: dict[str, Score]) -> None:
        """Keep a task's scores, on disk first."""
        with self.path.open("a") as file:
            file.write(json.dumps([task, scores]) + "\n")
        self._take(task, scores)

    def _take(self, task: tuple[str, str, int], scores: dict[str, Score]) -> None:
        self.done.add(task)
        for key, score in scores.items():
            place = (task[0], task[1], key)
            found: Score = (score[0], score[1], score[2], score[3])
            self.scores[place] = joined(self.scores[place], found) if place in self.scores else found


def drawn(progress: Progress, total: int) -> Iterator[str]:
    """The table in Markdown."""
    yield "# Units in the last place"
    yield ""
    yield "Made by `make ulp`: the largest error in ulp, the x where it is, the share of results that is the number"
    yield "nearest to the exact one. Within 2⁻⁶ of a zero of a slope the ulp is at least that of 2⁻⁸. `inf` is a wrong"
    yield "NaN, infinity or sign of zero."
    yield ""
    yield f"torch {torch.__version__}, {platform.machine()} CPU; {len(progress.done):,} of {total:,} chunks measured."
    for dtype, chunks in FORMATS.items():
        seen = [
            max(
                (score[3] for place, score in progress.scores.items() if place[1:] == (dtype, f"value {who}")),
                default=0,
            )
            for who in MAKERS[:2]
        ]
        yield ""
        yield f"## {dtype}"
        yield ""
        total_patterns = 2**32 if chunks > 1 else 2**16
        yield f"evenkeel on {seen[0]:,} of {total_patterns:,} patterns, torch and Inductor on {seen[1]:,}."
        yield ""
        yield f"| function | {' | '.join(f'{who}: max ulp | at x | nearest' for who in MAKERS)} |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        for name in ACTIVATIONS:
            for what in ("value", "slope"):
                cells = [f"{name}{'′' if what == 'slope' else ''}"]
                for who in MAKERS:
                    worst, where, correct, count = progress.scores.get(
                        (name, dtype, f"{what} {who}"), (math.nan, 0, 0, 1)
                    )
                    cells += [f"{worst:.4g}", f"{where:.6g}", f"{100 * correct / count:.2f}%"]
                yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure what has not been measured, show progress, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--chunks", type=int, help=f"measure only so many of the {FORMATS['float32']:,} float32 chunks")
    arguments = parser.parse_args()
    names = [name for name in ACTIVATIONS if name in BY_TORCH]
    tasks = [(name, dtype, chunk) for dtype, chunks in FORMATS.items() for chunk in range(chunks) for name in names]
    progress = Progress()
    wanted = [task for task in tasks if arguments.chunks is None or task[2] < arguments.chunks]
    wanted = sorted((task for task in wanted if task not in progress.done), key=lambda task: task[1])
    print(f"{len(progress.done):,} of {len(tasks):,} chunks are measured; {len(wanted):,} to go", file=sys.stderr)
    start, last = time.monotonic(), 0.0
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for count, (task, scores) in enumerate(pool.imap_unordered(measure, wanted, chunksize=1), 1):
            progress.add(task, scores)
            now = time.monotonic()
            if now - last > 5 or count == len(wanted):
                left = (now - start) / count * (len(wanted) - count)
                print(f"{count:,} of {len(wanted):,}, about {left / 60:.0f} minutes left", file=sys.stderr)
                last = now
    TABLE.write_text("\n".join(drawn(progress, len(tasks))) + "\n")
    print(TABLE.read_text())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; run it again to go on")
