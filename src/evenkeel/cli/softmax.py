"""`evenkeel softmax 10 5 --temperature 0.5`: what softmax, temperature and filters make of numbers typed by hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ..schema import encode_number
from .filters import add_sampler_options, chosen_sampler, given
from .output import show
from .probabilities import Spread, bar

SUMMARY = "probabilities, entropy and gain of logits typed by hand, after temperature and filters"

_BAR = 24


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("logits", nargs="+", type=float, metavar="LOGIT", help="the numbers (-inf after --)")
    add_sampler_options(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(arguments: argparse.Namespace) -> int:
    """Print a row per logit and what the distribution is like; raises UsageError for what sample refuses."""
    found = _examined(arguments)
    if arguments.format == "json":
        print(json.dumps(found, indent=2))
    else:
        show(lambda width, color: "\n".join(_drawn(found)))
    return 0


def _examined(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ..functional._sampling import sorted_distribution  # a kernel would have to be compiled for a few numbers

    p = sorted_distribution(torch.tensor(arguments.logits, dtype=torch.float64), chosen_sampler(arguments))
    spread = Spread.of(p)
    return {
        "temperature": arguments.temperature,
        "order": arguments.order,
        "filters": {name: encode_number(value) for name, value in given(arguments).items()},
        "logits": [encode_number(value) for value in arguments.logits],
        "probabilities": p.tolist(),
        "entropy_nats": spread.entropy,
        "effective_count": spread.effective_count,
        "support": spread.support,
        "softmax_gain": 1 - float(p.square().sum()),
    }


def _drawn(found: dict[str, Any]) -> Iterator[str]:
    largest = max(found["probabilities"])
    rows = [("logit", "probability", "of the largest", "")]
    for logit, p in zip(found["logits"], found["probabilities"], strict=True):
        text = f"{logit:g}" if isinstance(logit, float) else str(logit).replace("Infinity", "inf")
        ratio = f"{p / largest:.3g}" if p else "out"
        rows.append((text, f"{p:.6f}" if p == 0 or p >= 1e-4 else f"{p:.3g}", ratio, bar(p, _BAR)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}").rstrip()
    yield ""
    yield (
        f"entropy {found['entropy_nats']:.4g} nats: as {found['effective_count']:.4g} equal ones of "
        f"{len(found['logits'])}, {found['support']} kept"
    )
    yield f"gain of the gradient, 1 − Σp²: {found['softmax_gain']:.3g} (0 where one takes all)"
