"""Exponential and logarithm for kernels, in as much accuracy as a float32 result needs, and not more.

float64 forms: relative error below 2^-37, so that what is computed from them and rounded once to float32 is off by
at most 0.51 ulp. float32 form: for results that may be off by 2 ulp. All are free of branches, so that loops vectorise.
Range reduction: t = x·log2(e) + 1.5·2^m rounds x·log2(e) to the integer k in the low bits of t; r = x − k·ln 2 then
lies within ±0.35, and e^x = 2^k·(1 + p) with p = r + r²·q(r). q is the minimax polynomial for the relative error of p.
"""

from __future__ import annotations

import math

import numpy as np

from ._compile import add_exponent, fma, inline

ROUND64 = 1.5 * 2.0**52
_LOG2E = 1.4426950408889634
_MINUS_LN2 = -0.6931471805599453
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6 = (
    0.5000000000105254,
    0.16666666754134734,
    0.041666665952615172,
    0.0083332890538569971,
    0.0013888985365870005,
    0.00019904909403496478,
    2.4796327761958555e-5,
)
_A0, _A1, _A2, _A3, _A4, _A5, _A6, _A7 = (  # 2·atanh(s)/s in s², s² <= 1/9
    1.9999999999998684,
    0.66666666681691549,
    0.39999997191043464,
    0.28571628101516007,
    0.22215292377035872,
    0.18311506058147067,
    0.14060932862039754,
    0.20094069944624282,
)


@inline
def at_most(x, limit):
    """min(x, limit); NaN stays NaN."""
    return limit if x > limit else x


@inline
def at_least(x, limit):
    """max(x, limit); NaN stays NaN."""
    return limit if x < limit else x


@inline
def _reduced(x):
    """(t, p) with e^x = 2^k·(1 + p), for |x| <= 708."""
    t = fma(x, _LOG2E, ROUND64)
    r = fma(t - ROUND64, _MINUS_LN2, x)
    q = fma(r, _Q6, _Q5)
    q = fma(r, q, _Q4)
    q = fma(r, q, _Q3)
    q = fma(r, q, _Q2)
    q = fma(r, q, _Q1)
    q = fma(r, q, _Q0)
    return t, fma(r * r, q, r)


@inline
def exp64(x):
    """e^x for a float64 |x| <= 708; NaN stays NaN."""
    t, p = _reduced(x)
    return add_exponent(1.0 + p, t)


@inline
def expm1_64(x):
    """e^x − 1 for a float64 |x| <= 708, without loss near 0."""
    t, p = _reduced(x)
    power = add_exponent(1.0, t)
    return fma(power, p, power - 1.0)


_LN2_UPPER = 0.6931471803691238  # 32 bits, so that its products with integers are exact
_LN2_LOWER = 1.9082149292705877e-10
_TAYLOR = tuple(1 / math.factorial(n) for n in range(14))


@inline
def precise_exp64(x):
    """e^x for a float64 −700 <= x <= 700 within 1 ulp."""
    t = fma(x, _LOG2E, ROUND64)
    k = t - ROUND64
    r = fma(k, -_LN2_UPPER, x)
    low = -k * _LN2_LOWER
    r, low = r + low, (r - (r + low)) + low
    q = fma(r, _TAYLOR[13], _TAYLOR[12])
    q = fma(r, q, _TAYLOR[11])
    q = fma(r, q, _TAYLOR[10])
    q = fma(r, q, _TAYLOR[9])
    q = fma(r, q, _TAYLOR[8])
    q = fma(r, q, _TAYLOR[7])
    q = fma(r, q, _TAYLOR[6])
    q = fma(r, q, _TAYLOR[5])
    q = fma(r, q, _TAYLOR[4])
    q = fma(r, q, _TAYLOR[3])
    q = fma(r, q, _TAYLOR[2])
    return add_exponent(1.0 + (r + fma(r * r, q, low)), t)


@inline
def log1p_unit64(x):
    """log(1 + x) for a float64 x in [0, 1], as 2·atanh(x / (2 + x))."""
    s = x / (2.0 + x)
    v = s * s
    a = fma(v, _A7, _A6)
    a = fma(v, a, _A5)
    a = fma(v, a, _A4)
    a = fma(v, a, _A3)
    a = fma(v, a, _A2)
    a = fma(v, a, _A1)
    return s * fma(v, a, _A0)


_F = np.float32
_R0, _R1, _R2, _R3, _R4 = (
    _F(0.49999993433718909),
    _F(0.16666520401933949),
    _F(0.041668390317094195),
    _F(0.008368744962139204),
    _F(0.0013814568877269066),
)


_ROUND32 = _F(1.5 * 2**23)
_LOG2E32 = _F(_LOG2E)
_LN2_HIGH = _F(_MINUS_LN2)
_LN2_LOW = _F(_MINUS_LN2 - float(_LN2_HIGH))


@inline
def reduced32(high, low):
    """(t, p) with e^(high + low) = 2^k·(1 + p) for float32 |high| <= 128, |low| <= 2^-17: p is off by less than 2^-25.

    r = high − k·ln 2 is exact in one fma, since both are multiples of 2^-24; what is below goes beside r²·q, so that
    the only rounding at the size of p is its own.
    """
    t = fma(high, _LOG2E32, _ROUND32)
    k = t - _ROUND32
    r = fma(k, _LN2_HIGH, high)
    low = fma(k, _LN2_LOW, low)
    whole = r + low
    q = fma(whole, _R4, _R3)
    q = fma(whole, q, _R2)
    q = fma(whole, q, _R1)
    q = fma(whole, q, _R0)
    return t, r + fma(whole * whole, q, low)


@inline
def fine_exp32(high, low, lift):
    """lift·e^(high + low) for float32 −128 <= high <= 0, lift a power of two: relative error below 2^-23."""
    t, p = reduced32(high, low)
    return add_exponent(fma(lift, p, lift), t)


_S0, _S1, _S2, _S3 = _F(0.499992302), _F(0.1666711479), _F(0.04189034312), _F(0.008312553824)


@inline
def coarsely_reduced32(z):
    """(t, p) with e^z = 2^k·(1 + p), as reduced32 but off by less than 2^-20, and 2^-17 for the smallest results."""
    t = fma(z, _LOG2E32, _ROUND32)
    r = fma(t - _ROUND32, _LN2_HIGH, z)
    q = fma(r, _S3, _S2)
    q = fma(r, q, _S1)
    q = fma(r, q, _S0)
    return t, fma(r * r, q, r)


@inline
def coarse_exp32(high, low, lift):
    """fine_exp32 without `low`, which cannot be told in 16 bits, by coarsely_reduced32."""
    t, p = coarsely_reduced32(high)
    return add_exponent(fma(lift, p, lift), t)
