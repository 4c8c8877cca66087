"""`evenkeel softmax 10 5 --temperature 0.5`: what softmax, temperature and filters make of numbers typed by hand."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

from .output import show

SUMMARY = "probabilities, entropy and gain of logits typed by hand, after temperature and filters"

_BAR = 24
_FILTERS = {
    "top-k": (int, "K", "keep the K most probable"),
    "top-p": (float, "P", "keep the shortest prefix whose mass reaches P"),
    "min-p": (float, "P", "keep what has at least this share of the largest probability"),
    "typical-p": (float, "P", "keep the most typical ones whose mass reaches P"),
    "top-n-sigma": (float, "N", "keep logits within N standard deviations of the largest"),
    "epsilon": (float, "P", "keep probabilities of at least this size"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("logits", nargs="+", type=float, metavar="LOGIT", help="the numbers (-inf after --)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="divide logits by it (default: 1)")
    for name, (kind, letter, text) in _FILTERS.items():
        parser.add_argument(f"--{name}", type=kind, metavar=letter, help=text)
    parser.add_argument(
        "--order", choices=("transformers", "llama.cpp"), default="transformers", help="temperature first, or last"
    )
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

    from ..functional import Sampler, distribution

    chosen = {name.replace("-", "_"): getattr(arguments, name.replace("-", "_")) for name in _FILTERS}
    filters = {name: value for name, value in chosen.items() if value is not None}
    logits = torch.tensor(arguments.logits, dtype=torch.float64)
    p = distribution(logits, Sampler(temperature=arguments.temperature, order=arguments.order, **filters))
    kept = p[p > 0]
    entropy = -float((kept * kept.log()).sum()) + 0.0
    gain = 1 - float(kept.square().sum())
    return {
        "temperature": arguments.temperature,
        "order": arguments.order,
        "filters": filters,
        "logits": [_number(value) for value in arguments.logits],
        "probabilities": p.tolist(),
        "entropy_nats": entropy,
        "effective_count": math.exp(entropy),
        "support": len(kept),
        "softmax_gain": gain,
    }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def _drawn(found: dict[str, Any]) -> Iterator[str]:
    largest = max(found["probabilities"])
    rows = [("logit", "probability", "of the largest", "")]
    for logit, p in zip(found["logits"], found["probabilities"], strict=True):
        text = f"{logit:g}" if isinstance(logit, float) else str(logit).replace("Infinity", "inf")
        ratio = f"{p / largest:.3g}" if p else "out"
        rows.append((text, f"{p:.6f}" if p == 0 or p >= 1e-4 else f"{p:.3g}", ratio, _bar(p)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}").rstrip()
    yield ""
    yield (
        f"entropy {found['entropy_nats']:.4g} nats: as {found['effective_count']:.4g} equal ones of "
        f"{len(found['logits'])}, {found['support']} kept"
    )
    yield f"gain of the gradient, 1 − Σp²: {found['softmax_gain']:.3g} (0 where one takes all)"


def _bar(p: float) -> str:
    """A share of _BAR columns, in eighths."""
    eighths = round(p * _BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
