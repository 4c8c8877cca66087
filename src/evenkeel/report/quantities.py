"""Numbers as people read them: three significant digits, shares in percent, spans from lowest to highest."""

from __future__ import annotations

import math
from collections.abc import Sequence

_COUNTS = ("channels", "rows")


def number(value: float) -> str:
    """At most three significant digits: 0.0123, 4.5, 12,300, 1.23e-5, NaN, inf."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def digits(value: float) -> str:
    """Exactly three significant digits, for numbers that stand below each other: 0.0123, 4.50, 12,300, 1.23e-5."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    mantissa, exponent = f"{value:.2e}".split("e")
    rounded = float(f"{mantissa}e{exponent}")
    if rounded and not -3 <= int(exponent) < 5:
        return f"{mantissa}e{int(exponent)}"
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 or rounded == 0 else f"{rounded:#.3g}".rstrip(".")


def share(value: float) -> str:
    """A share as a percentage that is 0% or 100% only where it is exactly that."""
    percent = 100 * value
    if not math.isfinite(value):
        return number(value)
    if 0 < percent < 0.1:
        return "<0.1%"
    if 99.9 < percent < 100:
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) or 10 <= percent < 99.5 else f"{percent:.1f}%"


def quantity(value: float, unit: str) -> str:
    """A number with its unit; a "share of x" is a percentage of x, "1" is no unit, and counts have all their digits."""
    if unit == "probability":
        return share(value)
    if unit.startswith("share"):
        return share(value) + unit.removeprefix("share")
    if unit in _COUNTS and math.isfinite(value):
        return f"{value:,.0f} {unit}"
    return number(value) if unit in ("", "1") else f"{number(value)} {unit}"


def largest(values: Sequence[float]) -> str:
    """The largest of some numbers; NaN where one is NaN."""
    return digits(_ends(values)[1])


def span(values: Sequence[float]) -> str:
    """Lowest to highest; NaN where one is NaN."""
    return _span([digits(value) for value in _ends(values)])


def share_span(values: Sequence[float]) -> str:
    """Lowest to highest share; NaN where one is NaN."""
    return _span([share(value) for value in _ends(values)])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))


def _span(ends: Sequence[str]) -> str:
    low, high = ends
    return high if low == high else f"{low.removesuffix('%')}–{high}"


def count(amount: int, singular: str, plural: str = "") -> str:
    """An amount with its noun: 1 error, 2 errors, 3 blocks."""
    return f"{amount:,} {singular if amount == 1 else plural or singular + 's'}"


def parameters(amount: int) -> str:
    """A model's size: 812 parameters, 22.7 M parameters."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if amount >= size:
            return f"{amount / size:.3g} {letter} parameters"
    return count(amount, "parameter")
