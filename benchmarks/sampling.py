"""What choosing a token costs, over vocabularies of real models, beside the other ways to do it, and how exact each is.

Temperature 0.8 and top_p 0.9 of five shapes of logits (`_samplers.py` has their formulas). A cell has the minimum and
the median of ratios to torch.softmax of the same logits. Everyone takes a turn in every round, in one process, on
logits that were written just before; whoever is slow takes part in a tenth of the rounds only. The other filters
follow, and the memory that a call takes. Peers that are installed take part: `pip install onnxruntime-genai onnx
xllamacpp`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from _memory import in_new_process, measured
from _ratios import cell, figure, ratios, verdict
from _rounds import Contest, run
from _samplers import EVENKEEL, NEEDED, SHAPES, TEMPERATURE, TRANSFORMERS, WAYS, Contender, made, nucleus
from rich.console import Console
from rich.table import Table
from torch import Tensor

from evenkeel.functional import Sampler, sample

SOFTMAX = "torch.softmax"
OURS_AT_MOST, THEIRS_AT_LEAST = 2.0, 60.0  # times torch.softmax; times ours
SLOW = 10  # times torch.softmax
DRAWS, SURE = 4096, 20.0  # a group of tokens that is expected so often is drawn
PREVIOUS = 1000
TABLES = ("exactness", "decoding", "filters", "memory")

FILTERS: dict[str, Sampler] = {
    "top_p 0.9, T 0.8": Sampler(top_p=0.9, temperature=0.8),
    "greedy": Sampler(temperature=0),
    "T 0.8": Sampler(temperature=0.8),
    "top_k 50": Sampler(top_k=50),
    "top_k 50, top_p 0.9": Sampler(top_k=50, top_p=0.9),
    "min_p 0.05": Sampler(min_p=0.05),
    "top_n_sigma 1": Sampler(top_n_sigma=1.0),
    "epsilon 3e-4": Sampler(epsilon=3e-4),
    "typical_p 0.9": Sampler(typical_p=0.9),
    "repetition_penalty 1.1": Sampler(repetition_penalty=1.1),
    "llama.cpp's defaults": Sampler(order="llama.cpp", top_k=40, top_p=0.95, min_p=0.05, temperature=0.8),
}

Seconds = dict[str, list[float]]


def entered(logits: Tensor) -> dict[str, Contender]:
    """Every sampler that is installed, on the logits."""
    everyone = ((name, way(logits)) for name, way in WAYS.items())
    return {name: contender for name, contender in everyone if contender is not None}


def differing(kept: Tensor, exact: Tensor, logits: Tensor) -> Tensor:
    """Rows that have not the nucleus' logits; which of equal ones is all the same."""
    own, wanted = (logits.masked_fill(~mask, -torch.inf).sort(-1).values for mask in (kept, exact))
    return (own != wanted).any(-1)


def drawn(contender: Contender, logits: Tensor, exact: Tensor, patience: float) -> Tensor:
    """Rows that so many draws show to be wrong: a token that is not in the nucleus, or a group of it that is not drawn.

    A group is of tokens that follow each other by rank; it counts where it is expected 20 times or more.
    """
    counts = torch.zeros(logits.shape, dtype=torch.int64)
    lowest = logits.masked_fill(~exact, torch.inf).amin(-1, keepdim=True)
    wrong = torch.zeros(len(logits), 1, dtype=torch.bool)
    draws, start = 0, time.perf_counter()
    while draws < DRAWS and not wrong.all() and time.perf_counter() - start < patience:
        contender.ready()
        tokens = torch.as_tensor(contender.sample(), dtype=torch.int64).view(-1, 1)
        counts.scatter_add_(-1, tokens, torch.ones_like(tokens))
        wrong |= logits.gather(-1, tokens) < lowest
        draws += 1
    for row in range(len(logits)):
        order = logits[row].argsort(descending=True, stable=True)[: int(exact[row].sum())]
        expected = draws * (logits[row][order].double() / TEMPERATURE).softmax(-1).numpy()
        group = (np.cumsum(expected) / SURE).astype(int)
        sure = np.bincount(group, expected) >= SURE
        wrong[row] |= bool((np.bincount(group, counts[row][order].numpy())[sure] == 0).any())
    return wrong.squeeze(-1)


def exactness(length: int, rows: int, patience: float) -> Table:
    """How many rows of each sampler have other tokens than the nucleus; fewer rows where draws must show it."""
    table = Table(title=f"rows that are not the float64 sort's nucleus, V = {length:,}", title_justify="left")
    table.add_column("")
    cells: dict[str, list[str]] = {"tokens in the nucleus": []}
    for shape in SHAPES:
        table.add_column(shape, justify="right")
        logits = made(shape, rows, length)
        exact = nucleus(logits)
        cells["tokens in the nucleus"].append(f"{int(exact.sum(-1).median()):,}")
        few = logits[: -(-rows // 8)].clone()
        for name, contender in entered(logits).items():
            if contender.kept is None:
                wrong = drawn(entered(few)[name], few, exact[: len(few)], patience)
            else:
                wrong = differing(contender.kept(), exact, logits)
            cells.setdefault(name, []).append(f"{int(wrong.sum())} of {len(wrong)}")
    for name, texts in cells.items():
        table.add_row(name, *texts)
    return table


def race(contest: Contest, rounds: int) -> Seconds:
    """A tenth of the rounds with everyone, all of them with those who are not slow."""
    seconds = run(contest, rounds // 10 + 1)
    base = min(seconds[SOFTMAX])
    quick = Contest(SOFTMAX, contest.contenders[SOFTMAX], contest.before)
    for name, contender in contest.contenders.items():
        if name != SOFTMAX and min(seconds[name]) < SLOW * base:
            quick.add(name, contender)
    for name, values in run(quick, rounds).items():
        seconds[name] += values
    return seconds


def decoding(logits: Tensor, rounds: int) -> Seconds:
    """Everyone's seconds for a token of each row."""
    contenders = entered(logits)
    written = logits.clone()

    def before() -> None:
        for contender in contenders.values():
            contender.ready()
        logits.copy_(written)

    contest = Contest(SOFTMAX, lambda: logits.softmax(-1), before)
    for name, contender in contenders.items():
        contest.add(name, contender.sample)
    return race(contest, rounds)


def compared(title: str, columns: dict[str, Seconds], names: Iterable[str], bounded: Callable[[str], bool]) -> Table:
    """A row for each name: ratios to torch.softmax, whose milliseconds come first."""
    table = Table(title=f"{title}; load {os.getloadavg()[0]:.1f}", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("bound", justify="right")
    base = [[1e3 * value for value in seconds[SOFTMAX]] for seconds in columns.values()]
    table.add_row(f"{SOFTMAX}, ms", *(cell((min(values), statistics.median(values))) for values in base), "")
    for name in names:
        pairs = [ratios(seconds[name], seconds[SOFTMAX]) for seconds in columns.values()]
        bound = verdict(f"≤ {OURS_AT_MOST}", all(median <= OURS_AT_MOST for _, median in pairs))
        table.add_row(name, *map(cell, pairs), bound if bounded(name) else "")
    return table


def decoding_table(length: int, rows: int, threads: int, rounds: int) -> Table:
    """Every sampler on every shape, and how many times ours transformers takes."""
    columns = {shape: decoding(made(shape, rows, length), rounds) for shape in SHAPES}
    title = f"T 0.8, top_p 0.9: V = {length:,}, B = {rows}, {spoken(threads)}"
    names = [name for name in WAYS if name in columns["peaked"]]
    table = compared(title, columns, names, lambda name: threads == 1 and name.startswith(EVENKEEL))
    times = [ratios(s[TRANSFORMERS], s[EVENKEEL]) for s in columns.values()]
    bound = verdict(f"≥ {THEIRS_AT_LEAST:.0f}", all(pair[1] >= THEIRS_AT_LEAST for pair in times))
    table.add_row(f"{TRANSFORMERS} ÷ {EVENKEEL}", *map(cell, times), bound if threads == 1 else "")
    return table


def filtered(logits: Tensor) -> dict[str, Callable[[], object]]:
    """Ours under every filter."""
    previous = torch.randint(logits.shape[-1], (logits.shape[0], PREVIOUS), generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(logits.shape[0])

    def call(sampler: Sampler, before: Tensor | None) -> Callable[[], object]:
        return lambda: sample(logits, sampler, previous=before, seeds=seeds, position=1)

    penalized = "repetition_penalty 1.1"
    return {name: call(sampler, previous if name == penalized else None) for name, sampler in FILTERS.items()}


def filters_table(length: int, dtype: torch.dtype, threads: int, rounds: int) -> Table:
    """Ours under every filter on every shape, against torch.softmax of the same logits."""
    columns = {}
    for shape in SHAPES:
        logits = made(shape, 1, length).to(dtype)
        written = logits.clone()
        contest = Contest(SOFTMAX, lambda x=logits: x.softmax(-1), lambda x=logits, y=written: x.copy_(y))
        for name, call in filtered(logits).items():
            contest.add(name, call)
        columns[shape] = race(contest, rounds)
    title = f"evenkeel's filters: V = {length:,}, B = 1, {named(dtype)}, {spoken(threads)}"
    return compared(title, columns, FILTERS, lambda name: threads == 1 and name == next(iter(FILTERS)))


def memory_table(length: int, dtypes: list[torch.dtype]) -> Table:
    """KiB that a warm call takes, its result among them, where a byte for each logit would be more than allowed."""
    table = Table(title=f"KiB of a warm call: heavy, V = {length:,}, B = 1, 1 thread", title_justify="left")
    table.add_column("")
    for column in ("torch's peak", "Python's peak", "new pages", "bound"):
        table.add_column(column, justify="right")
    allowed = length / 1024
    for dtype in dtypes:
        logits = made("heavy", 1, length).to(dtype)
        first, together = next(iter(FILTERS)), filtered(made("heavy", 8, length).to(dtype))
        calls = {SOFTMAX: lambda x=logits: x.softmax(-1), **filtered(logits), f"{first}, 8 rows": together[first]}
        for name, call in calls.items():
            sizes = measured(call)
            bound = "" if name == SOFTMAX else verdict(f"< {figure(allowed)}", max(sizes) < allowed)
            table.add_row(f"{named(dtype)}: {name}", *map(figure, sizes), bound)
        table.add_section()
    return table


def named(dtype: torch.dtype) -> str:
    """A dtype's own name."""
    return str(dtype).removeprefix("torch.")


def spoken(threads: int) -> str:
    """So many threads."""
    return f"{threads} thread{'s' * (threads > 1)}"


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[50_257, 128_256, 256_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="rows of logits, B")
    parser.add_argument("--filters", type=int, default=128_256, help="the vocabulary of the other filters")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"], help="of the other filters")
    parser.add_argument("--exactness", type=int, default=32, help="rows whose support is compared")
    parser.add_argument("--patience", type=float, default=8.0, help="seconds to draw from a sampler that shows no more")
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    parser.add_argument("--memory-alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    console = Console(width=100)
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    if arguments.memory_alone:
        torch.set_num_threads(1)
        return console.print(memory_table(arguments.filters, dtypes))
    absent = [pip for name, pip in NEEDED.items() if name not in entered(made("equal", 1, 8))]
    if absent:
        print(f"not installed: {' '.join(absent)}")
    if "exactness" in arguments.only:
        for length in arguments.vocabularies:
            console.print(exactness(length, arguments.exactness, arguments.patience))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if "decoding" in arguments.only:
            for length in arguments.vocabularies:
                for rows in arguments.rows:
                    console.print(decoding_table(length, rows, threads, arguments.rounds))
        if "filters" in arguments.only:
            for dtype in dtypes:
                console.print(filters_table(arguments.filters, dtype, threads, arguments.rounds))
    if "memory" in arguments.only:
        given = ["--filters", str(arguments.filters), "--dtypes", *arguments.dtypes]
        console.print(in_new_process([__file__, "--memory-alone", *given]), highlight=False, markup=False)


if __name__ == "__main__":
    main()
