"""Floating-point formats as data, without torch: sizes, ranges and spacings.

Source: IEEE 754-2019 for float16, float32 and float64; the OCP 8-bit floating point specification (2023) for the
float8 formats; bfloat16 is float32 cut to its upper 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: 1 sign bit, `exponent_bits`, `mantissa_bits`, and its largest finite value."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    maximum: float

    @property
    def bytes(self) -> int:
        return (1 + self.exponent_bits + self.mantissa_bits) // 8

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger value: 2^(-mantissa_bits)."""
        return 2.0**-self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with a full mantissa: 2^(2 - 2^(exponent_bits - 1))."""
        return 2.0 ** (2 - 2 ** (self.exponent_bits - 1))

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value: smallest_normal * epsilon."""
        return self.smallest_normal * self.epsilon


def _ieee(name: str, exponent_bits: int, mantissa_bits: int) -> FloatFormat:
    maximum = (2.0 - 2.0**-mantissa_bits) * 2.0 ** (2 ** (exponent_bits - 1) - 1)
    return FloatFormat(name, exponent_bits, mantissa_bits, maximum)


FORMATS: dict[str, FloatFormat] = {
    item.name: item
    for item in (
        _ieee("float64", 11, 52),
        _ieee("float32", 8, 23),
        _ieee("bfloat16", 8, 7),
        _ieee("float16", 5, 10),
        _ieee("float8_e5m2", 5, 2),
        FloatFormat("float8_e4m3fn", 4, 3, 448.0),  # no infinities: all exponents but one code are finite values
    )
}
"""Formats by the names that torch gives them."""

COMPUTE_FORMATS = ("float32", "bfloat16", "float16", "float64")
"""The formats that a model can run in as a whole."""
