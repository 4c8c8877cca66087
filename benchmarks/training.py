"""How fast a study's trials train: tokens per second of one config under several trainers, taking turns.

The config is LLaMA's in small: pre-norm with RMS norms, rotary positions, SwiGLU, bytes. Each trainer makes the same
number of steps with fused AdamW on windows of the same text, with gradients clipped to norm 1.

What is timed is a step of training with all that its trainer does around it: reading the batch, the schedule, hashes,
callbacks, and in the plain loops the loss read as a number. Of a trial and of a Trainer that is the time from the end
of one step to the end of the next; of a plain loop, from the batch to the loss, which flatters it a little. What lies
between two steps of a trial where it is evaluated does not count, nor do the first steps of any. Each round takes the
median over a trainer's steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import evenkeel as ek
from evenkeel.studies.comparison import ArmPlan
from evenkeel.studies.points import Point
from evenkeel.studies.study import Arm
from evenkeel.studies.trials.corpus import Corpus, read_corpus
from evenkeel.studies.trials.language import LanguageTrials, evaluation_steps
from evenkeel.studies.trials.objectives import Session
from evenkeel.training import byte_batches

ROWS, LEARNING_RATE = 16, 2e-3
UNCOUNTED = 5

Timed = Callable[[], list[float]]
"""Trains anew and gives the seconds of each step."""


def main() -> None:
    """Time every trainer in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=60, help=f"of each trainer in a round; {UNCOUNTED} at first do not count"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = ek.TransformerConfig(depth=arguments.depth, d_model=arguments.width)
    corpus = read_corpus("", context=config.context)
    trainers = contenders(config, corpus, arguments.steps)
    paces: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(arguments.rounds):
        for name, train in trainers.items():
            paces[name].append(statistics.median(train()[UNCOUNTED:]))
    draw(paces, ROWS * config.context, arguments)


def contenders(config: ek.TransformerConfig, corpus: Corpus, steps: int) -> dict[str, Timed]:
    """The trainers by name; ours first."""
    return {
        "a trial of a study": lambda: in_a_study(config, corpus, steps),
        "plain loop, our Transformer": lambda: in_a_loop(ek.Transformer(config), corpus, config.context, steps),
        "plain loop, transformers' Llama": lambda: in_a_loop(llama(config), corpus, config.context, steps),
        "transformers' Trainer, our Transformer": lambda: in_trainer(Wrapped(config), corpus, config.context, steps),
        "transformers' Trainer, its Llama": lambda: in_trainer(llama(config), corpus, config.context, steps),
    }


def in_a_study(config: ek.TransformerConfig, corpus: Corpus, steps: int) -> list[float]:
    """A tuning trial as a study runs it, less the intervals in which it was evaluated."""
    plan = ArmPlan(arm=Arm(name="swiglu", choices={}), config=config.to_dict())
    trials = LanguageTrials({"swiglu": plan}, corpus, ROWS, steps)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        session = Session(Path(directory, "trial.pt"), progress=lambda share: ends.append(time.perf_counter()))
        trials(Point("swiglu", "tuning", LEARNING_RATE, 0), session)
    evaluated = evaluation_steps(steps)  # after a step of that number, and before the next
    return [taken for step, taken in enumerate(between(ends), start=1) if step not in evaluated]


def between(ends: list[float]) -> list[float]:
    """Seconds from the end of each step to that of the next."""
    return [after - before for before, after in pairwise(ends)]


def in_a_loop(model: nn.Module, corpus: Corpus, context: int, steps: int) -> list[float]:
    """What one would write by hand."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    batches = byte_batches(corpus.training, context=context, size=ROWS, seed=0)
    model.train()
    seconds = []
    for batch in islice(batches, steps):
        begun = time.perf_counter()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - begun)
    return seconds


def in_trainer(model: nn.Module, corpus: Corpus, context: int, steps: int) -> list[float]:
    """transformers' Trainer with its defaults, less what writes and logs."""
    with tempfile.TemporaryDirectory() as directory:
        choices = TrainingArguments(
            directory,
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        clock = Clock()
        Trainer(model=model, args=choices, train_dataset=Windows(corpus, context), callbacks=[clock]).train()
    return between(clock.ends)


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class Windows(IterableDataset[dict[str, Tensor]]):
    """The same windows one by one, as a Trainer wants them."""

    def __init__(self, corpus: Corpus, context: int) -> None:
        self.corpus, self.context = corpus, context

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in byte_batches(self.corpus.training, context=self.context, size=ROWS, seed=0):
            for row in batch:
                yield {"input_ids": row, "labels": row}


class Wrapped(nn.Module):
    """Our Transformer as a Trainer takes it: the loss under its name, and no logits."""

    def __init__(self, config: ek.TransformerConfig) -> None:
        super().__init__()
        self.model = ek.Transformer(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor | None]:
        return {"loss": self.model(input_ids, labels=labels).loss}


def llama(config: ek.TransformerConfig) -> LlamaForCausalLM:
    """transformers' model of the same sizes and choices."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.depth,
            num_attention_heads=config.attention.heads,
            max_position_embeddings=config.context,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def draw(paces: dict[str, list[float]], tokens: int, arguments: argparse.Namespace) -> None:
    """Tokens per second of each trainer, and its step's time as a ratio to ours within each round."""
    table = Table(
        title=f"{arguments.depth} x {arguments.width}, {ROWS} rows, threads {arguments.threads}; "
        f"load {os.getloadavg()[0]:.1f}",
        title_justify="left",
    )
    for column in ("trainer", "tokens/s, best", "tokens/s, median", "ours is faster by, min", "median"):
        table.add_column(column, justify="left" if column == "trainer" else "right")
    ours = next(iter(paces.values()))
    for name, values in paces.items():
        ratios = [value / own for value, own in zip(values, ours, strict=True)]
        table.add_row(
            name,
            f"{tokens / min(values):,.0f}",
            f"{tokens / statistics.median(values):,.0f}",
            f"{min(values) / min(ours):.2f}",
            f"{statistics.median(ratios):.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
