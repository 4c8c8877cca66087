"""`evenkeel demo`: trains a healthy and a sick transformer under watch, and shows what the difference looks like."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..schema import DataInfo, Document, clean_name, in_one_line
from .output import file_argument, show, write

if TYPE_CHECKING:
    from ..nn import Transformer, TransformerConfig
    from ..training import Progress

SUMMARY = "train a healthy and a sick small transformer under watch, and show both side by side"

STEPS = 200
"""Of each model by default; in this many every fault of the sick one shows."""

SICK_SHOWS = {
    "ACT101": "sigmoid feed-forwards whose inputs no norm holds near 0 saturate",
    "ACT103": "a sigmoid's output is never centred",
    "ATT303": "unscaled scores grow without limit",
    "ATT304": "unscaled scores of unit-variance queries and keys spread by sqrt(d_k)",
    "GRD501": "without residual branches every block passes on a part of its gradient",
}
"""The rules that the sick model breaks in every run of the default length, by cause; the healthy one breaks none."""

_EVERY = 20
_ROWS = 12
_LEARNING_RATE = 2e-3


def healthy_config() -> TransformerConfig:
    """A decoder as the field builds them today: pre-norm, SwiGLU, scores scaled by 1/√d_k."""
    from ..nn import AttentionConfig, TransformerConfig

    return TransformerConfig(depth=6, d_model=96, attention=AttentionConfig(heads=4))


def sick_config() -> TransformerConfig:
    """The same width and depth: no norm, sigmoid feed-forwards without residual branches, unscaled scores."""
    from ..nn import AttentionConfig, FeedForwardConfig, NormConfig, TransformerConfig

    return TransformerConfig(
        depth=6,
        d_model=96,
        attention=AttentionConfig(heads=2, scale="none"),
        feedforward=FeedForwardConfig(activation="sigmoid", gated=False, residual=False),
        norm=NormConfig(placement="none"),
    )


def train_watched(
    config: TransformerConfig, *, seed: int, steps: int, progress: Progress | None = None
) -> tuple[Transformer, Document]:
    """Train a model on the bytes of Python's standard library under watch; the model and its diagnosis."""
    from ..data import standard_library_text
    from ..nn import Transformer
    from ..training import adamw, byte_batches, one_thread, train
    from ..watching import watch

    model = Transformer(config, seed=seed)
    optimizer = adamw(model, learning_rate=_LEARNING_RATE)
    batches = byte_batches(standard_library_text(), context=config.context, size=_ROWS, seed=seed)
    with one_thread(), watch(model, optimizer=optimizer, every=_EVERY) as watched:
        tokens = steps * _ROWS * config.context
        watched.record.set_data(DataInfo(source="Python's standard library", kind="text", tokens=tokens))
        train(model, optimizer, batches, steps=steps, watch=watched, progress=progress)
        return model, watched.diagnose()


def unexpected(healthy: Document, sick: Document) -> list[str]:
    """What the two diagnoses show other than intended, a sentence each."""
    wrong = [f"the healthy model has {item.code}" for item in healthy.findings if item.severity != "info"]
    shown = {finding.code for finding in sick.findings}
    return wrong + [
        f"the sick model does not show {code} ({cause})" for code, cause in SICK_SHOWS.items() if code not in shown
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel demo`."""
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights and batches (default: 0)")
    parser.add_argument(
        "--steps", metavar="N", type=int, default=STEPS, help=f"training steps of each model (default: {STEPS})"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=file_argument,
        default="demo-report.json",
        help="where both diagnoses go as JSON (default: demo-report.json)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train both models, show and write their diagnoses, keep the healthy model; 0 where all came as intended."""
    from ..architectures import demo_directory
    from ..report.text import render_findings, render_side_by_side

    if arguments.steps < 1:
        raise UsageError(f"--steps is {arguments.steps} and must be at least 1; {STEPS} show every fault")
    with _bars(arguments.steps) as (first, second):
        model, healthy = train_watched(healthy_config(), seed=arguments.seed, steps=arguments.steps, progress=first)
        _, sick = train_watched(sick_config(), seed=arguments.seed, steps=arguments.steps, progress=second)

    def draw(width: int | None, color: bool) -> str:
        compared = render_side_by_side(healthy, sick, ("healthy", "sick"), width=width, color=color)
        findings = render_findings(sick, width=width, color=color)
        return "\n".join((_opening(arguments.steps, arguments.seed), compared, "The sick model:\n", findings))

    show(draw)
    write(arguments.out, json.dumps({"healthy": healthy.to_dict(), "sick": sick.to_dict()}, indent=2, allow_nan=False))
    _keep(model, demo_directory())
    wrong = unexpected(healthy, sick)
    show(lambda width, color: _closing(arguments.out, wrong, arguments.steps))
    return int(bool(wrong))


def _opening(steps: int, seed: int) -> str:
    return (
        "healthy: pre-norm, SwiGLU, scores scaled by 1/sqrt(d_k)\n"
        "sick: no norm, sigmoid feed-forwards without residual branches, unscaled scores\n"
        f"both: {steps} steps on the bytes of Python's standard library, seed {seed}\n"
    )


def _closing(out: Path, wrong: list[str], steps: int) -> str:
    lines = [f"\nBoth diagnoses are in {clean_name(out.name)}.", "The healthy model is kept: evenkeel inspect demo"]
    if wrong:
        remedy = f"; {STEPS} steps show every fault" if steps < STEPS else ""
        lines.append(f"Not as intended: {', '.join(wrong)}{remedy}.")
    return "\n".join(lines)


def _keep(model: Transformer, directory: Path) -> None:
    """Save the model, whole or not at all, in place of one that was kept before."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".demo-", dir=directory.parent) as scratch:
            fresh = Path(scratch, "fresh")
            model.save(fresh)
            if directory.exists():
                directory.rename(Path(scratch, "old"))
            fresh.rename(directory)
    except OSError as error:
        raise UsageError(
            f"the healthy model cannot be kept in {clean_name(str(directory))} ({in_one_line(error)}); set "
            "EVENKEEL_CACHE to a directory that can be written"
        ) from error


@contextmanager
def _bars(steps: int) -> Iterator[tuple[Progress, Progress]]:
    """A progress bar per model on stderr, where somebody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("step {task.completed} of {task.total}, loss {task.fields[loss]:.2f}"),
        TimeRemainingColumn(),
    )
    terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal) as bars:
        first, second = (bars.add_task(name, total=steps, loss=float("nan")) for name in ("healthy", "sick"))
        yield (
            lambda done, total, loss: bars.update(first, completed=done, loss=loss),
            lambda done, total, loss: bars.update(second, completed=done, loss=loss),
        )
