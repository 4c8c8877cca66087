"""The hottest functions with their slopes, in float32 throughout: for gradients, and for results of 16 bits.

fine: off by less than 2^-21 of the larger of the terms of which a slope is the sum, for float32's gated gradients.
coarse: off by less than 2^-19, where the last bit of the result is 2^-11 (float16) or 2^-8 (bfloat16): 0.501 ulp.
bfloat16 and float32 reach far below e^-88, so e^−z is kept times 2^40 until the end; a value alone, x / (1 + e^z),
costs less when x and the denominator are lowered together, as in activations.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._arithmetic import at_least, at_most, coarse_exp32, coarsely_reduced32, fine_exp32
from ._compile import add_exponent, fma, inline, magnitude


class Formula(NamedTuple):
    """A function's value, its slope, and both together for a kernel that wants both."""

    value: Callable[..., Any]
    slope: Callable[..., Any]
    both: Callable[..., Any]


_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LIFT, _LOWER = _F(2.0**40), _F(2.0**-40)
_FAR = _F(108)
_FAR_LEFT, _LEFT_SCALE, _FAR_RIGHT = _F(-4), _F(2.0**-64), _F(24)
_QUICK = 1.702
_QUICK_HIGH, _QUICK_LOW = _F(_QUICK), _F(_QUICK - float(_F(_QUICK)))
_LINEAR, _CUBIC = 2.0 * 0.7978845608028654, 2.0 * 0.7978845608028654 * 0.044715
_LINEAR_HIGH = _F(int(_LINEAR * 2**18) / 2**18)  # few bits, so that its difference from the sum below is exact
_LINEAR_LOW, _LINEAR32 = _F(_LINEAR - float(_LINEAR_HIGH)), _F(_LINEAR)
_CUBIC_HIGH, _CUBIC_LOW, _THREE_CUBIC = _F(_CUBIC), _F(_CUBIC - float(_F(_CUBIC))), _F(3 * _CUBIC)
_MINUS_HALF, _INVERSE_SQRT_TAU = _F(-0.5), _F(0.3989422804014327)

_COARSE_TAIL = (
    (0.4999997986, 0.3630480056, 0.1201512824, 0.0171948726),
    (1.0, 1.523960694, 0.9564038755, 0.3009813603, 0.04310582272),
)
"""N and D of P(Z <= −a) = e^(−a²/2)·N(a)/D(a), lowest power first: relative error below 2^-21 for a <= 14.6."""


_FINE_TAIL = (
    (0.500000002993, 0.438495429072, 0.183383783583, 0.0406833712367, 0.00412376241304),
    (1.0, 1.67487584443, 1.20312030185, 0.469863075773, 0.101984467316, 0.0103366214018),
)
"""The same to 2^-27."""


def _polynomial(coefficients: Sequence[float]) -> Callable[..., Any]:
    """Horner's rule, lowest power first."""
    first = _F(coefficients[0])
    if len(coefficients) == 1:

        @inline
        def constant(a):
            return first

        return constant
    rest = _polynomial(coefficients[1:])

    @inline
    def horner(a):
        return fma(a, rest(a), first)

    return horner


def _family(exponential: Callable[..., Any], tail: tuple[Sequence[float], Sequence[float]]) -> dict[str, Formula]:
    """silu, quick_gelu, gelu_tanh and gelu on an exponential(high, low, lift) = lift·e^(high + low)."""
    numerator, denominator = (_polynomial(item) for item in tail)

    @inline
    def logistic(x, high, low, swing):
        """(x·σ(z), its slope) from −|z| = high + low and swing = |x·z′|."""
        lifted = exponential(high, low, _LIFT)
        d = _ONE / fma(lifted, _LOWER, _ONE)
        small = lifted * d
        swing = swing * small * d
        if x >= _ZERO:
            return x * d, fma(swing, _LOWER, d)
        return (x * small) * _LOWER, (small - swing) * _LOWER

    @inline
    def silu(x):
        z = at_most(magnitude(x), _FAR)
        return logistic(at_least(x, -_FAR), -z, _ZERO, z)

    @inline
    def quick_gelu(x):
        a = at_most(magnitude(x), _F(63.9))
        z = a * _QUICK_HIGH
        return logistic(at_least(x, _F(-63.9)), -z, -fma(a, _QUICK_LOW, fma(a, _QUICK_HIGH, -z)), z)

    @inline
    def gelu_tanh(x):
        a = at_most(magnitude(x), _F(10.9))
        s = a * a
        factor = fma(_CUBIC_HIGH, s, _LINEAR_HIGH)
        rest = fma(_CUBIC_HIGH, s, _LINEAR_HIGH - factor)
        rest = rest + fma(_CUBIC_HIGH, fma(a, a, -s), fma(_CUBIC_LOW, s, _LINEAR_LOW))
        z = a * factor
        return logistic(
            at_least(x, _F(-10.9)), -z, -fma(a, rest, fma(a, factor, -z)), a * fma(_THREE_CUBIC, s, _LINEAR32)
        )

    @inline
    def gelu(x):
        a = at_most(magnitude(x), _F(14.5))
        s = a * a
        lifted = exponential(_MINUS_HALF * s, _MINUS_HALF * fma(a, a, -s), _LIFT)
        below = lifted * numerator(a) / denominator(a)
        swing = _INVERSE_SQRT_TAU * a * lifted
        x = at_least(x, _F(-14.5))
        if x >= _ZERO:
            above = fma(below, -_LOWER, _ONE)
            return x * above, fma(swing, _LOWER, above)
        return (x * below) * _LOWER, (below - swing) * _LOWER

    return {function.__name__: _formula(function) for function in (silu, quick_gelu, gelu_tanh, gelu)}


def _formula(both: Callable[..., Any]) -> Formula:
    @inline
    def value(x):
        return both(x)[0]

    @inline
    def slope(x):
        return both(x)[1]

    return Formula(value, slope, both)


FINE = _family(fine_exp32, _FINE_TAIL)
"""For the gradients of float32 gates."""


@inline
def _over_one_and_power(x, z):
    """x / (1 + e^z); x < −4 wherever z > 88."""
    t, p = coarsely_reduced32(z)
    scale = _LEFT_SCALE if x < _FAR_LEFT else _ONE
    power = add_exponent(scale, t)
    return (x * scale) / (scale + fma(power, p, power))


@inline
def _silu(x):
    x = at_least(x, -_FAR)
    return _over_one_and_power(x, -at_most(x, _FAR_RIGHT))


@inline
def _quick_gelu(x):
    x = at_least(x, _F(-63.9))
    return _over_one_and_power(x, at_most(x, _FAR_RIGHT) * -_QUICK_HIGH)


@inline
def _gelu_tanh(x):
    x = at_least(x, _F(-10.9))
    c = at_most(x, _F(7))
    return _over_one_and_power(x, -c * fma(_F(_CUBIC), c * c, _LINEAR32))


_VALUES = {"silu": _silu, "quick_gelu": _quick_gelu, "gelu_tanh": _gelu_tanh}
COARSE = {
    name: formula._replace(value=_VALUES.get(name, formula.value))
    for name, formula in _family(coarse_exp32, _COARSE_TAIL).items()
}
"""For results of 16 bits."""
