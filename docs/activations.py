"""Writes docs/activations.md from evenkeel.facts: python docs/activations.py > docs/activations.md."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evenkeel.facts import FACTS, Facts, ZeroTails

DTYPES = ("float32", "bfloat16", "float16")


def page() -> Iterator[str]:
    """The page, line by line."""
    yield "# Pointwise functions"
    yield ""
    yield "Made by `python docs/activations.py` from `evenkeel.facts`; a test compares the two. Expectations are over"
    yield "x ~ N(0, 1). Mean energy is (E f)² / E f², the share of the output's energy that is its constant mean."
    yield ""
    yield "| function | f(x) | f′(x) | zeros of f′ | E f | E f² | E f′² | mean energy | source |"
    yield "|---|---|---|---|---:|---:|---:|---:|---|"
    for name, facts in FACTS.items():
        zeros = ", ".join(f"{zero:.6g}" for zero in facts.derivative_zeros) or "none"
        moments = (facts.mean, facts.second_moment, facts.slope_second_moment, facts.mean_energy)
        cells = (f"`{facts.formula}`", f"`{facts.derivative}`", zeros, *(f"{item:.4g}" for item in moments))
        yield f"| {name} | {' | '.join(cells)} | {facts.source} |".replace("|x|", "\\|x\\|")
    yield ""
    yield "## Where the gradient is exactly 0"
    yield ""
    yield "Measured on a CPU over every bfloat16 and float16 number and one float32 number in 4,096: torch"
    yield "2.13 and evenkeel's kernels, which lose only what the format cannot hold. An interval is closed, a dash is"
    yield "nowhere. Functions without kernels here have torch's column only."
    yield ""
    yield f"| function | {' | '.join(f'{dtype}, torch | {dtype}, evenkeel' for dtype in DTYPES)} |"
    yield f"|---|{'---|' * 2 * len(DTYPES)}"
    for name, facts in FACTS.items():
        yield f"| {name} | {' | '.join(_zeros(facts))} |"


def _zeros(facts: Facts) -> Iterator[str]:
    for dtype in DTYPES:
        yield _tails(facts.torch_zero[dtype])
        yield "" if facts.evenkeel_zero is None else _tails(facts.evenkeel_zero[dtype])


def _tails(tails: ZeroTails) -> str:
    parts = [f"x ≤ {tails.below:.6g}"] if math.isfinite(tails.below) else []
    parts += [f"x ≥ {tails.above:.6g}"] if math.isfinite(tails.above) else []
    return ", ".join(parts) or "–"


if __name__ == "__main__":
    print("\n".join(page()))
