"""Ratios of contenders that took turns, as cells of a table."""

from __future__ import annotations

import statistics


def ratios(values: list[float], base: list[float]) -> tuple[float, float]:
    """The ratio of the minima, and the median of ratios within a round; values: of the first rounds, or of all."""
    shared = base[: len(values)]
    within = [value / other for value, other in zip(values, shared, strict=True)]
    return min(values) / min(shared), statistics.median(within)


def figure(number: float) -> str:
    """Three figures or all the digits before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def cell(pair: tuple[float, float]) -> str:
    """A minimum and a median."""
    return f"{figure(pair[0])} {figure(pair[1])}"


def verdict(text: str, held: bool) -> str:
    """A bound, and whether it held."""
    return f"{text} {'✓' if held else '✗'}"
