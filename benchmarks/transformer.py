"""A training step and decoding: evenkeel's Transformer beside the same model in transformers.

A LLaMA of four layers, width 256, with the same random weights on both sides: a step is forward and backward on batches
of 8 x 256 tokens; decoding is greedy, one row, with keys and values kept. Then what decoding waits for most: one row
times a matrix, torch's product beside evenkeel.functional.linear, on matrices that were not read just before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _memory import torch_peak
from _ratios import figure, ratios, verdict
from _rounds import Contest, draw, run
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from evenkeel import Transformer
from evenkeel.functional import linear

THEIRS, OURS = "transformers", "evenkeel"
MATRICES = (256, 256), (688, 256), (256, 688), (32_000, 256), (4096, 4096)
MEMORY = 2**27  # bytes of matrices that take turns: more than caches hold
STEP_BOUND, SPEED_BOUND = 1.0, 2.0


def built(arguments: argparse.Namespace) -> tuple[Any, Transformer]:
    """The same model twice."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        max_position_embeddings=max(arguments.length, arguments.prompt + arguments.tokens),
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).train()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, Transformer.from_directory(directory).train()


def training(theirs: Any, ours: Transformer, arguments: argparse.Namespace) -> None:
    """Print milliseconds, ratios and the most memory of a step."""
    ids = torch.randint(arguments.vocabulary, (arguments.batch, arguments.length))

    def step(model: Any) -> float:
        loss = model(ids, labels=ids).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    contest = Contest(THEIRS, lambda: step(theirs))
    contest.add(OURS, lambda: step(ours))
    contest.error(f"loss {abs(step(ours) - step(theirs)):.0e}")
    seconds = run(contest, arguments.rounds)
    size = f"{arguments.batch} x {arguments.length}, V = {arguments.vocabulary:,}"
    draw(contest, seconds, f"training step, {size}, {threads_now()}")
    peaks = {name: torch_peak(call) / 2**20 for name, call in contest.contenders.items()}
    held = ratios(seconds[OURS], seconds[THEIRS])[0] <= STEP_BOUND and peaks[OURS] <= peaks[THEIRS]
    print(", ".join(f"{name} {peak:.0f} MiB at most" for name, peak in peaks.items()), verdict("bound 1.0", held))


def decoding(theirs: Any, ours: Transformer, arguments: argparse.Namespace) -> None:
    """Print tokens per second."""
    ids = torch.randint(arguments.vocabulary, (1, arguments.prompt))
    count = {"max_new_tokens": arguments.tokens}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    contest = Contest(THEIRS, lambda: theirs.eval().generate(**inputs, **count))
    contest.add(OURS, lambda: ours.eval().generate(ids, **count))
    same = torch.equal(*(call() for call in contest.contenders.values()))  # pyright: ignore[reportArgumentType]
    seconds = run(contest, arguments.rounds)
    table = Table(title=f"decoding, {threads_now()}; load {os.getloadavg()[0]:.1f}", title_justify="left")
    for column in ("", "most tokens/s", "speed: min ratio", "median ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in seconds.items():
        speeds = (1 / ratio for ratio in ratios(values, seconds[THEIRS]))
        table.add_row(name, figure(arguments.tokens / min(values)), *map(figure, speeds))
    Console(width=100).print(table)
    held = ratios(seconds[THEIRS], seconds[OURS])[0] >= SPEED_BOUND
    print("the same tokens" if same else "other tokens", verdict("bound 2.0", held))


def products(arguments: argparse.Namespace) -> None:
    """Print microseconds of a few rows times matrices."""
    table = Table(
        title=f"few rows times a matrix, {threads_now()}; load {os.getloadavg()[0]:.1f}", title_justify="left"
    )
    for column in ("", "torch µs", "evenkeel µs", "min ratio", "median ratio"):
        table.add_column(column, justify="right" if column else "left")
    few = [(torch.float32, 1), (torch.float32, 2), (torch.float32, 4), (torch.bfloat16, 1)]
    for (dtype, rows), (width, columns) in itertools.product(few, MATRICES):
        count = max(1, min(64, MEMORY // (width * columns * dtype.itemsize)))
        matrices = [torch.randn(width, columns).to(dtype) for _ in range(count)]
        seconds = run(product_contest(torch.randn(rows, 1, columns).to(dtype), matrices), max(5, arguments.rounds))
        times = (figure(min(values) / count * 1e6) for values in seconds.values())
        name = f"{str(dtype).removeprefix('torch.')}, {rows} x {columns} x {width:,}"
        table.add_row(name, *times, *map(figure, ratios(seconds[OURS], seconds[THEIRS])))
    Console(width=100).print(table)


def product_contest(x: Tensor, matrices: list[Tensor]) -> Contest:
    """All matrices, one after the other."""

    def each(product: Callable[..., Tensor]) -> Callable[[], object]:
        return torch.no_grad()(lambda: [product(x, matrix) for matrix in matrices])

    contest = Contest(THEIRS, each(F.linear))
    contest.add(OURS, each(linear))
    return contest


def threads_now() -> str:
    """How many threads torch has."""
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)}"


def main() -> None:
    """Print the tables for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-products", action="store_true")
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        theirs, ours = built(arguments)
        training(theirs, ours, arguments)
        decoding(theirs, ours, arguments)
        if not arguments.no_products:
            products(arguments)


if __name__ == "__main__":
    main()
