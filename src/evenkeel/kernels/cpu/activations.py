"""Pointwise functions and their slopes, one element at a time and fused with a gate's product.

A function's `value` and `slope` take a float32. Most compute in float64 and are rounded once, at the end: off by at
most 0.53 ulp. silu, gelu_tanh and quick_gelu, which models run hottest, compute their value in float32 with the two
places that would lose bits (the exponent's argument and the denominator) kept exact: off by less than 2 ulp. Results of
16 bits need less: see fast32.
Inputs are clamped where the result has long reached its limit, which also answers for infinities; comparisons are
written so that a NaN passes through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from ._arithmetic import at_least, at_most, exp64, expm1_64, log1p_unit64, reduced32
from ._compile import add_exponent, fma, in_256_bits, inline, magnitude, narrow, widen, with_sign
from ._spread import spread
from .fast32 import COARSE, FINE, Formula

_FAR = 120.0  # e^-120 rounds to 0 in float32; its square is still a normal float64
_F = np.float32
_FAR32 = _F(_FAR)
_ZERO, _ONE, _TWO = _F(0), _F(1), _F(2)


# identity, relu, relu2, leaky_relu: exact, or one rounding.


@inline
def identity(x):
    """x."""
    return x


@inline
def identity_slope(x):
    """1, and NaN for NaN."""
    return x if x != x else _ONE


@inline
def relu(x):
    """max(x, 0)."""
    return _ZERO if x <= _ZERO else x


@inline
def relu_slope(x):
    """1 above 0, else 0."""
    return _ZERO if x <= _ZERO else (_ONE if x > _ZERO else x)


@inline
def relu2(x):
    """max(x, 0)²."""
    y = _ZERO if x <= _ZERO else x
    return y * y


@inline
def relu2_slope(x):
    """2·max(x, 0)."""
    return _TWO * (_ZERO if x <= _ZERO else x)


@inline
def leaky_relu(x):
    """x above 0, else 0.01·x."""
    return x if x > _ZERO else 0.01 * x


@inline
def leaky_relu_slope(x):
    """1 above 0, else 0.01."""
    return 1.0 if x > _ZERO else (0.01 if x <= _ZERO else np.float64(x))


# sigmoid, tanh, elu, softplus, mish: from e^-|x| or e^x - 1 in float64.


@inline
def _logistic(z):
    """(σ(−z), σ(z)) for a float64 z in [0, 240]: e/(1 + e) and 1/(1 + e) with e = e^−z, so that neither cancels."""
    e = exp64(-z)
    d = 1.0 / (1.0 + e)
    return e * d, d


@inline
def sigmoid(x):
    """1 / (1 + e^−x), from the side on which e^−|x| <= 1."""
    small, large = _logistic(at_most(np.float64(magnitude(x)), _FAR))
    return large if x >= _ZERO else small


@inline
def sigmoid_slope(x):
    """σ(x)·σ(−x)."""
    small, large = _logistic(at_most(np.float64(magnitude(x)), _FAR))
    return small * large


@inline
def tanh(x):
    """−m / (2 + m), m = e^−2|x| − 1 without cancellation, with the sign of x."""
    m = expm1_64(-2.0 * at_most(np.float64(magnitude(x)), _FAR))
    return with_sign(m / (2.0 + m), np.float64(x))


@inline
def tanh_slope(x):
    """4·σ(2x)·σ(−2x)."""
    small, large = _logistic(2.0 * at_most(np.float64(magnitude(x)), _FAR))
    return 4.0 * small * large


@inline
def elu(x):
    """x above 0, else e^x − 1."""
    below = expm1_64(np.float64(at_most(at_least(x, -_FAR32), _ZERO)))
    return np.float64(x) if x > _ZERO else with_sign(below, np.float64(x))


@inline
def elu_slope(x):
    """1 above 0, else e^x."""
    return exp64(np.float64(at_most(at_least(x, -_FAR32), _ZERO)))


@inline
def softplus(x):
    """max(x, 0) + log(1 + e^−|x|)."""
    e = exp64(-at_most(np.float64(magnitude(x)), _FAR))
    return log1p_unit64(e) + np.float64(relu(x))


@inline
def mish(x):
    """x·n / (n + 2), n = w·(w + 2), w = e^x: tanh(log(1 + w)) as a quotient."""
    c = np.float64(at_least(x, -_FAR32))
    w = exp64(at_most(c, 50.0))
    n = w * (w + 2.0)
    return c * (n / (n + 2.0))


@inline
def mish_slope(x):
    """w·((w + 2)(n + 2) + 4x(1 + w)) / (n + 2)², with n and w as in mish."""
    c = at_most(np.float64(at_least(x, -_FAR32)), 50.0)
    w = exp64(c)
    m = w * (w + 2.0) + 2.0
    return w * ((w + 2.0) * m + 4.0 * c * (1.0 + w)) / (m * m)


# x·σ(z): the value in float32, the slope in float64.
#
# x·σ(z) = x·s / (s + s·2^k·(1 + p)) with e^−z = 2^k·(1 + p); s is 1, or 2^−64 where 2^k would overflow, so that
# results reach down to the smallest subnormal with one rounding. In the denominator s + s·2^k is kept exact, so that it
# is rounded once at its own size; that rounding (1 unit of 2^-24), what comes before it (0.7 units) and the quotient's
# rounding stay below 2 ulp.

_FAR_LEFT, _LEFT_SCALE = _F(-4), _F(2.0**-64)


@inline
def _times_logistic(x, high, low):
    """x / (1 + e^(high + low)); x < −4 wherever high > 88."""
    t, p = reduced32(high, low)
    scale = _LEFT_SCALE if x < _FAR_LEFT else _ONE
    power = add_exponent(scale, t)
    both = scale + power
    lost = scale - (both - power)
    return (x * scale) / (both + fma(power, p, lost))


@inline
def silu(x):
    """x / (1 + e^−x)."""
    x = at_least(x, _F(-128))
    return _times_logistic(x, -at_most(x, _F(40)), _ZERO)


@inline
def _both(x, z, swing):
    """(x·σ(z), its slope) from |z| and swing = |x·z′|, in float64."""
    small, large = _logistic(z)
    swing = swing * small * large
    return (x * large, large + swing) if x >= 0.0 else (x * small, small - swing)


@inline
def silu_both(x):
    """x·σ(x), and σ(x)·(1 + x·σ(−x))."""
    z = at_most(np.float64(magnitude(x)), _FAR)
    return _both(np.float64(at_least(x, -_FAR32)), z, z)


@inline
def silu_slope(x):
    """σ(x)·(1 + x·σ(−x))."""
    return silu_both(x)[1]


_QUICK = 1.702
_QUICK_HIGH = _F(-_QUICK)
_QUICK_LOW = _F(-_QUICK - float(_QUICK_HIGH))


@inline
def quick_gelu(x):
    """x / (1 + e^−1.702x), the product in two float32."""
    x = at_least(x, _F(-75))
    c = at_most(x, _F(24))
    high = c * _QUICK_HIGH
    return _times_logistic(x, high, fma(c, _QUICK_LOW, fma(c, _QUICK_HIGH, -high)))


@inline
def quick_gelu_both(x):
    """x·σ(z), and σ(z)·(1 + z·σ(−z)), z = 1.702x."""
    z = at_most(_QUICK * np.float64(magnitude(x)), _FAR)
    return _both(np.float64(at_least(x, -_FAR32)), z, z)


@inline
def quick_gelu_slope(x):
    """σ(z)·(1 + z·σ(−z)), z = 1.702x."""
    return quick_gelu_both(x)[1]


_TANH_LINEAR = 2.0 * 0.7978845608028654  # 2·√(2/π)
_TANH_CUBIC = _TANH_LINEAR * 0.044715
_LINEAR_HIGH = _F(int(_TANH_LINEAR * 2**18) / 2**18)  # few bits, so that its difference from the sum below is exact
_LINEAR_LOW = _F(_TANH_LINEAR - float(_LINEAR_HIGH))
_CUBIC_HIGH = _F(_TANH_CUBIC)
_CUBIC_LOW = _F(_TANH_CUBIC - float(_CUBIC_HIGH))


@inline
def gelu_tanh(x):
    """x / (1 + e^−z), z = 2√(2/π)·(x + 0.044715x³) = x·(a + b·x²), of which a + b·x² is kept in two float32."""
    x = at_least(x, _F(-11.5))
    c = at_most(x, _F(7))
    s = c * c
    factor = fma(_CUBIC_HIGH, s, _LINEAR_HIGH)
    rest = fma(_CUBIC_HIGH, s, _LINEAR_HIGH - factor)
    rest = rest + fma(_CUBIC_HIGH, fma(c, c, -s), fma(_CUBIC_LOW, s, _LINEAR_LOW))
    high = c * factor
    return _times_logistic(x, -high, -fma(c, rest, fma(c, factor, -high)))


@inline
def gelu_tanh_both(x):
    """x·σ(z), and σ(z) + x·z′·σ(z)·σ(−z)."""
    a = at_most(np.float64(magnitude(x)), 12.0)
    square = a * a
    z = a * fma(_TANH_CUBIC, square, _TANH_LINEAR)
    return _both(np.float64(at_least(x, _F(-12))), z, a * fma(3.0 * _TANH_CUBIC, square, _TANH_LINEAR))


@inline
def gelu_tanh_slope(x):
    """σ(z) + x·z′·σ(z)·σ(−z)."""
    return gelu_tanh_both(x)[1]


# gelu: P(Z <= −a) = e^(−a²/2)·N(a)/D(a), relative error below 2^-33 for a <= 14.6, beyond which float32 ends. All
# coefficients are positive, so nothing cancels.

_N0, _N1, _N2, _N3, _N4, _N5 = (
    0.49999999995824856,
    0.5074849487287345,
    0.25052604980333654,
    0.071289290315876,
    0.011638920434093886,
    0.0008890801248940016,
)
_D1, _D2, _D3, _D4, _D5, _D6 = (
    1.8128544502574602,
    1.447500799720825,
    0.6570506734878886,
    0.18092992978282352,
    0.02917426051930298,
    0.00222859615295731,
)
_INVERSE_SQRT_TAU = 0.3989422804014327


@inline
def _normal_tail(a):
    """(P(Z <= −a), e^(−a²/2)) for a float64 a in [0, 16]."""
    e = exp64(-0.5 * a * a)
    n = fma(a, _N5, _N4)
    n = fma(a, n, _N3)
    n = fma(a, n, _N2)
    n = fma(a, n, _N1)
    n = fma(a, n, _N0)
    d = fma(a, _D6, _D5)
    d = fma(a, d, _D4)
    d = fma(a, d, _D3)
    d = fma(a, d, _D2)
    d = fma(a, d, _D1)
    d = fma(a, d, 1.0)
    return e * n / d, e


@inline
def gelu_both(x):
    """x·P(Z <= x), and P(Z <= x) + x·e^(−x²/2)/√(2π)."""
    a = at_most(np.float64(magnitude(x)), 16.0)
    tail, e = _normal_tail(a)
    swing = _INVERSE_SQRT_TAU * a * e
    x = np.float64(at_least(x, _F(-16)))
    return (x * (1.0 - tail), 1.0 - tail + swing) if x >= 0.0 else (x * tail, tail - swing)


@inline
def gelu(x):
    """x·P(Z <= x)."""
    return gelu_both(x)[0]


@inline
def gelu_slope(x):
    """P(Z <= x) + x·e^(−x²/2)/√(2π)."""
    return gelu_both(x)[1]


def _separate(value: Callable[..., Any], slope: Callable[..., Any]) -> Formula:
    @inline
    def both(x):
        return value(x), slope(x)

    return Formula(value, slope, both)


FORMULAS = {
    "identity": _separate(identity, identity_slope),
    "sigmoid": _separate(sigmoid, sigmoid_slope),
    "tanh": _separate(tanh, tanh_slope),
    "relu": _separate(relu, relu_slope),
    "relu2": _separate(relu2, relu2_slope),
    "leaky_relu": _separate(leaky_relu, leaky_relu_slope),
    "elu": _separate(elu, elu_slope),
    "softplus": _separate(softplus, sigmoid),
    "mish": _separate(mish, mish_slope),
    "gelu": Formula(gelu, gelu_slope, gelu_both),
    "gelu_tanh": Formula(gelu_tanh, gelu_tanh_slope, gelu_tanh_both),
    "quick_gelu": Formula(quick_gelu, quick_gelu_slope, quick_gelu_both),
    "silu": Formula(silu, silu_slope, silu_both),
}
"""Every function that has a kernel."""


@cache
def forward(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The kernel (division, x, out): out = f(x), of flat tensors."""
    value, choose_vectors = formula(name, dtype).value, vectors_for(name)

    @spread(name=f"{name}-{dtype}")
    def pointwise(start, stop, x, out):
        choose_vectors()
        a, y = x[start:stop], out[start:stop]
        for i in range(y.size):
            y[i] = narrow(value(widen(a[i])), out)

    return pointwise


@cache
def backward(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The kernel (division, gradient, x, out): out = gradient·f′(x), of flat tensors."""
    slope, choose_vectors = formula(name, dtype).slope, vectors_for(name)

    @spread(name=f"{name}-{dtype}")
    def pointwise_backward(start, stop, gradient, x, out):
        choose_vectors()
        g, a, y = gradient[start:stop], x[start:stop], out[start:stop]
        for i in range(y.size):
            y[i] = narrow(widen(g[i]) * slope(widen(a[i])), out)

    return pointwise_backward


@inline
def _as_llvm_chooses():
    pass


def vectors_for(name: str) -> Callable[[], None]:
    """What a kernel calls first: functions that only wait for memory wait less in vectors of 256 bits (Zen 4)."""
    return in_256_bits if name in ("identity", "relu", "relu2", "leaky_relu") else _as_llvm_chooses


def formula(name: str, dtype: torch.dtype) -> Formula:
    """How a function is computed for results of a format; value and slope together are for gradients of gates."""
    if name not in FINE:
        return FORMULAS[name]
    return FORMULAS[name]._replace(both=FINE[name].both) if dtype == torch.float32 else COARSE[name]
