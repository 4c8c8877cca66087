"""What watching costs: one training step of a GPT, bare and under each way of looking inside, as ratios to bare.

All ways take turns in one process on the same model and batch, so that they share whatever the machine is doing. A
second table says what each instrument has of the cost of a measured step.

`--rounds N` sets the repetitions; the other options (see `--help`) make the model smaller.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
import wandb
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import evenkeel as ek
from evenkeel.instruments import INSTRUMENTS
from evenkeel.measuring import Measurement

THREADS = 2
PERIOD = 50

Step = Callable[[], None]
Way = Callable[["Training"], Iterator[Step]]


class Training:
    """A model, its optimizer and a batch; `step()` is one training step."""

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=arguments.layers,
            n_embd=arguments.width,
            n_head=arguments.heads,
            vocab_size=arguments.vocabulary,
            n_positions=arguments.tokens,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        self.directory = directory
        self.model = GPT2LMHeadModel(config).train()
        self.model.set_attn_implementation("sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.tokens = torch.randint(arguments.vocabulary, (arguments.batch, arguments.tokens))

    def step(self, **options: bool) -> None:
        """Forward, backward, optimizer step."""
        loss = self.model(input_ids=self.tokens, labels=self.tokens, **options).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def bare(training: Training) -> Iterator[Step]:
    """Nothing but the step."""
    yield training.step


def watched(training: Training, *, measured: bool, updates: bool) -> Iterator[Step]:
    """Under `evenkeel.watch`, in a record on disk: a measured step, or one that is not due."""
    path = training.directory / f"{measured}-{updates}.sqlite"
    optimizer = training.optimizer if updates else None
    with ek.watch(training.model, optimizer=optimizer, every=1 if measured else 10**9, record=path) as watch:
        if not measured:
            with watch.step():
                pass  # the first step is always due

        def step() -> None:
            with watch.step():
                training.step()

        yield step


def under_wandb(training: Training) -> Iterator[Step]:
    """Under `wandb.watch(log="all")`, histograms of gradients and parameters logged in every step, offline."""
    run = wandb.init(mode="offline", dir=training.directory, settings=wandb.Settings(silent=True))
    run.watch(training.model, log="all", log_freq=1)

    def step() -> None:
        training.step()
        run.log({})

    try:
        yield step
    finally:
        run.unwatch(training.model)
        run.finish()


def under_eager_hooks(training: Training) -> Iterator[Step]:
    """By hand: eager attention, which returns its weights, and hooks: their entropy, three numbers of every module."""
    model, seen = training.model, []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                flat = tensor.detach()
                seen.append(torch.stack([flat.mean(), flat.std(), flat.abs().amax()]))

    def entropies(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        seen.append(torch.special.entr(output[1].detach()).sum(-1).mean((0, 2)))

    def step() -> None:
        training.step(output_attentions=True)
        torch.cat(seen).tolist()
        seen.clear()

    with ExitStack() as stack:  # transformers' own hooks for output_attentions stay behind, idle until it is asked for
        stack.callback(model.set_attn_implementation, "sdpa")
        model.set_attn_implementation("eager")
        for name, module in model.named_modules():
            hook = entropies if name.endswith(".attn") else look
            stack.callback(module.register_forward_hook(hook).remove)
        yield step


MEASURED = "evenkeel.watch, every step"
NOT_DUE = "evenkeel.watch, a step not due"
WAYS: dict[str, Way] = {
    "bare": bare,
    MEASURED: lambda training: watched(training, measured=True, updates=False),
    f"{MEASURED}, with update ratios": lambda training: watched(training, measured=True, updates=True),
    NOT_DUE: lambda training: watched(training, measured=False, updates=False),
    'wandb.watch(log="all"), every step': under_wandb,
    "eager, output_attentions, hooks": under_eager_hooks,
}


def measure(training: Training, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step under each way, one per round; an untimed step goes before each timed one."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds):
        for name, way in WAYS.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            with contextmanager(way)(training) as step:
                step()
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Shares:
    """Seconds spent in each instrument, and in reading them all, while a step is measured."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens inside; the classes are as they were afterwards."""
        places = [(name, instrument, "observe") for name, instrument in INSTRUMENTS.items()]
        with ExitStack() as stack:
            for name, owner, method in (*places, ("reading them", Measurement, "readings")):
                original = getattr(owner, method)
                stack.callback(setattr, owner, method, original)
                setattr(owner, method, self._timed(name, original))
            yield

    def _timed(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


def measure_shares(training: Training, rounds: int) -> tuple[Shares, dict[str, list[float]]]:
    """A bare step and a measured one with update ratios in turn, with what each instrument takes of the second."""
    shares = Shares()
    seconds: dict[str, list[float]] = {"bare": [], "measured": []}
    with contextmanager(watched)(training, measured=True, updates=True) as step:
        step()
        for _ in range(rounds):
            for name, contender in (("bare", training.step), ("measured", step)):
                with shares.counted() if contender is step else nullcontext():
                    start = time.perf_counter()
                    contender()
                    seconds[name].append(time.perf_counter() - start)
    return shares, seconds


def draw_shares(shares: Shares, seconds: dict[str, list[float]]) -> None:
    """Print mean milliseconds a step and their share of a bare step."""
    bare_step, measured = (statistics.mean(seconds[name]) for name in ("bare", "measured"))
    rounds = len(seconds["measured"])
    spent = {name: total / rounds for name, total in sorted(shares.seconds.items(), key=lambda item: -item[1])}
    spent["tracing, copies of weights, the record"] = measured - bare_step - sum(spent.values())
    table = Table(title="what a measured step with update ratios takes beyond a bare one, means", title_justify="left")
    table.add_column("instrument")
    table.add_column("ms", justify="right")
    table.add_column("of a bare step", justify="right")
    for name, value in {**spent, "all": measured - bare_step}.items():
        table.add_row(name, f"{value * 1e3:.1f}", f"{value / bare_step:.1%}")
    Console(width=120).print(table)


def draw(seconds: dict[str, list[float]], title: str) -> None:
    """Print seconds and ratios to bare; the ratio of a round is taken within the round."""
    share = 1 / PERIOD
    seconds = {
        **seconds,
        f"evenkeel.watch, every {PERIOD} steps*": [
            share * due + (1 - share) * other for due, other in zip(seconds[MEASURED], seconds[NOT_DUE], strict=True)
        ],
    }
    table = Table(title=title, title_justify="left")
    table.add_column("training step")
    for column in ("minimum s", "median s", "minimum / bare", "median of ratios"):
        table.add_column(column, justify="right")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["bare"], strict=True)]
        table.add_row(
            name,
            f"{min(values):.3f}",
            f"{statistics.median(values):.3f}",
            f"{min(values) / min(seconds['bare']):.2f}",
            f"{statistics.median(ratios):.2f}",
        )
    Console(width=120).print(table)
    print(f"* computed: one step in {PERIOD} as the measured one above, the others as the one not due")


def main() -> None:
    """Parse the sizes, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=THREADS)
    sizes = {"rounds": 5, "layers": 6, "width": 512, "heads": 8, "vocabulary": 50257, "tokens": 512, "batch": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        training = Training(arguments, Path(directory))
        seconds = measure(training, arguments.rounds)
        shares = measure_shares(training, arguments.rounds)
    title = (
        f"GPT, {arguments.layers} layers, d={arguments.width}, {arguments.heads} heads, "
        f"vocabulary {arguments.vocabulary:,}, T={arguments.tokens}, batch {arguments.batch}, float32, AdamW; "
        f"{arguments.rounds} rounds\n"
        f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    draw(seconds, title)
    draw_shares(*shares)


if __name__ == "__main__":
    main()
