"""What is known of each pointwise function, as data: no torch here, so that rules and reports can use it.

Expectations are over x ~ N(0, 1), computed by quadrature to 1e-9. The zeros of gradients are measured: on a CPU, torch
2.13 and evenkeel's kernels, every float16 and bfloat16 value and a grid of float32 values with |x| <= 65504.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class ZeroTails:
    """Where a gradient is exactly 0: at every x <= `below` and every x >= `above` (an infinity: nowhere)."""

    below: float = -math.inf
    above: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A pointwise function f.

    formula, derivative: f and f' as text. range: infimum and supremum of f. saturates: towards which end f' goes to 0.
    derivative_zeros: isolated x with f'(x) = 0. flat: intervals on which f' = 0 by definition.
    max_slope: supremum of |f'|. mean, second_moment: E f, E f². slope_second_moment: E f'².
    small_slope_share: P(|f'| < 0.01·max_slope); where the slope has no maximum, P(f' = 0).
    torch_zero: by dtype, where torch's gradient is exactly 0, which is more than `flat` because f' is rounded; with
    AVX-512, since some of torch's kernels differ between instruction sets (of bfloat16's GELU on AVX2: from -13.8).
    evenkeel_zero: the same of evenkeel.functional, which loses only what the dtype cannot hold.
    """

    formula: str
    derivative: str
    range: tuple[float, float]
    saturates: Literal["neither", "left", "right", "both"]
    derivative_zeros: tuple[float, ...] = ()
    flat: tuple[tuple[float, float], ...] = ()
    max_slope: float
    mean: float
    second_moment: float
    slope_second_moment: float
    small_slope_share: float
    torch_zero: Mapping[str, ZeroTails]
    evenkeel_zero: Mapping[str, ZeroTails] | None = None
    source: str

    @property
    def bounded(self) -> bool:
        """Whether f stays within finite limits on both sides."""
        return all(math.isfinite(limit) for limit in self.range)

    @property
    def mean_energy(self) -> float:
        """(E f)² / E f²: the share of the output's energy that is its constant mean, in [0, 1]."""
        return self.mean**2 / self.second_moment


def _zero(
    *, float32: tuple[float, float], float16: tuple[float, float], bfloat16: tuple[float, float]
) -> dict[str, ZeroTails]:
    return {"float32": ZeroTails(*float32), "float16": ZeroTails(*float16), "bfloat16": ZeroTails(*bfloat16)}


def _zero_by_definition(below: float = -math.inf, above: float = math.inf) -> dict[str, ZeroTails]:
    return dict.fromkeys(("float32", "float16", "bfloat16"), ZeroTails(below, above))


_INFINITY = math.inf

FACTS: Catalogue[Facts] = Catalogue("pointwise function")

FACTS.add(
    "identity",
    Facts(
        formula="x",
        derivative="1",
        range=(-_INFINITY, _INFINITY),
        saturates="neither",
        max_slope=1.0,
        mean=0.0,
        second_moment=1.0,
        slope_second_moment=1.0,
        small_slope_share=0.0,
        torch_zero=_zero_by_definition(),
        evenkeel_zero=_zero_by_definition(),
        source="by definition",
    ),
)
FACTS.add(
    "sigmoid",
    Facts(
        formula="1 / (1 + exp(-x))",
        derivative="f(x) f(-x)",
        range=(0.0, 1.0),
        saturates="both",
        max_slope=0.25,
        mean=0.5,
        second_moment=0.293379035858,
        slope_second_moment=0.0448362413502,
        small_slope_share=2.14476155443e-9,
        torch_zero=_zero(float32=(-88.73, 16.64), float16=(-17.34375, 8.3203125), bfloat16=(-89.0, 6.25)),
        evenkeel_zero=_zero(float32=(-103.97208, 103.97208), float16=(-17.34375, 17.34375), bfloat16=(-93.0, 93.0)),
        source="Cox 1958; as a unit of neural networks: Rumelhart, Hinton and Williams 1986",
    ),
)
FACTS.add(
    "tanh",
    Facts(
        formula="(exp(x) - exp(-x)) / (exp(x) + exp(-x))",
        derivative="1 - f(x)^2",
        range=(-1.0, 1.0),
        saturates="both",
        max_slope=1.0,
        mean=0.0,
        second_moment=0.394294490398,
        slope_second_moment=0.464402902448,
        small_slope_share=0.00276048105522,
        torch_zero=_zero(float32=(-9.012, 9.012), float16=(-4.5078125, 4.5078125), bfloat16=(-3.46875, 3.46875)),
        evenkeel_zero=_zero(float32=(-52.679188, 52.679188), float16=(-9.359375, 9.359375), bfloat16=(-47.25, 47.25)),
        source="LeCun, Bottou, Orr and Mueller 1998, Efficient BackProp",
    ),
)
FACTS.add(
    "relu",
    Facts(
        formula="max(x, 0)",
        derivative="1 if x > 0 else 0",
        range=(0.0, _INFINITY),
        saturates="left",
        flat=((-_INFINITY, 0.0),),
        max_slope=1.0,
        mean=0.398942280401,
        second_moment=0.5,
        slope_second_moment=0.5,
        small_slope_share=0.5,
        torch_zero=_zero_by_definition(below=0.0),
        evenkeel_zero=_zero_by_definition(below=0.0),
        source="Nair and Hinton 2010",
    ),
)
FACTS.add(
    "relu2",
    Facts(
        formula="max(x, 0)^2",
        derivative="2 max(x, 0)",
        range=(0.0, _INFINITY),
        saturates="left",
        flat=((-_INFINITY, 0.0),),
        max_slope=_INFINITY,
        mean=0.5,
        second_moment=1.5,
        slope_second_moment=2.0,
        small_slope_share=0.5,
        torch_zero=_zero_by_definition(below=0.0),
        evenkeel_zero=_zero_by_definition(below=0.0),
        source="So et al. 2021, Primer",
    ),
)
FACTS.add(
    "relu6",
    Facts(
        formula="min(max(x, 0), 6)",
        derivative="1 if 0 < x < 6 else 0",
        range=(0.0, 6.0),
        saturates="both",
        flat=((-_INFINITY, 0.0), (6.0, _INFINITY)),
        max_slope=1.0,
        mean=0.398942280245,
        second_moment=0.499999998075,
        slope_second_moment=0.499999999013,
        small_slope_share=0.500000000987,
        torch_zero=_zero_by_definition(below=0.0, above=6.0),
        source="Krizhevsky 2010, Convolutional deep belief networks on CIFAR-10",
    ),
)
FACTS.add(
    "leaky_relu",
    Facts(
        formula="x if x > 0 else 0.01 x",
        derivative="1 if x > 0 else 0.01",
        range=(-_INFINITY, _INFINITY),
        saturates="neither",
        max_slope=1.0,
        mean=0.394952857597,
        second_moment=0.50005,
        slope_second_moment=0.50005,
        small_slope_share=0.0,
        torch_zero=_zero_by_definition(),
        evenkeel_zero=_zero_by_definition(),
        source="Maas, Hannun and Ng 2013",
    ),
)
FACTS.add(
    "elu",
    Facts(
        formula="x if x > 0 else exp(x) - 1",
        derivative="1 if x > 0 else exp(x)",
        range=(-1.0, _INFINITY),
        saturates="left",
        max_slope=1.0,
        mean=0.160520572267,
        second_moment=0.644945417493,
        slope_second_moment=0.668102001223,
        small_slope_share=2.06064339597e-6,
        torch_zero=_zero(float32=(-103.98, _INFINITY), float16=(-17.34375, _INFINITY), bfloat16=(-93.0, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-103.97208, _INFINITY), float16=(-17.34375, _INFINITY), bfloat16=(-93.0, _INFINITY)
        ),
        source="Clevert, Unterthiner and Hochreiter 2016",
    ),
)
FACTS.add(
    "selu",
    Facts(
        formula="1.0507 (x if x > 0 else 1.67326 (exp(x) - 1))",
        derivative="1.0507 if x > 0 else 1.7581 exp(x)",
        range=(-1.7580993408473766, _INFINITY),
        saturates="left",
        max_slope=1.7580993408473766,
        mean=0.0,
        second_moment=1.0,
        slope_second_moment=1.07157499246,
        small_slope_share=2.06064339597e-6,
        torch_zero=_zero(float32=(-103.98, _INFINITY), float16=(-17.90625, _INFINITY), bfloat16=(-93.5, _INFINITY)),
        source="Klambauer, Unterthiner, Mayr and Hochreiter 2017",
    ),
)
FACTS.add(
    "softplus",
    Facts(
        formula="log(1 + exp(x))",
        derivative="sigmoid(x)",
        range=(0.0, _INFINITY),
        saturates="left",
        max_slope=1.0,
        mean=0.806059183347,
        second_moment=0.921245908859,
        slope_second_moment=0.293379035858,
        small_slope_share=2.16250304083e-6,
        torch_zero=_zero(float32=(-103.98, _INFINITY), float16=(-17.34375, _INFINITY), bfloat16=(-93.0, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-103.97208, _INFINITY), float16=(-17.34375, _INFINITY), bfloat16=(-93.0, _INFINITY)
        ),
        source="Dugas et al. 2001",
    ),
)
FACTS.add(
    "softsign",
    Facts(
        formula="x / (1 + |x|)",
        derivative="1 / (1 + |x|)^2",
        range=(-1.0, 1.0),
        saturates="both",
        max_slope=1.0,
        mean=0.0,
        second_moment=0.183014021267,
        slope_second_moment=0.227671340422,
        small_slope_share=2.25717681191e-19,
        torch_zero=_zero(float32=(-_INFINITY, _INFINITY), float16=(-4096.0, 4096.0), bfloat16=(-512.0, 512.0)),
        source="Bergstra, Desjardins, Lamblin and Bengio 2009",
    ),
)
FACTS.add(
    "mish",
    Facts(
        formula="x tanh(log(1 + exp(x)))",
        derivative="tanh(s) + x sigmoid(x) (1 - tanh(s)^2), s = log(1 + exp(x))",
        range=(-0.30884341317, _INFINITY),
        saturates="left",
        derivative_zeros=(-1.19243121452,),
        max_slope=1.08849816125,
        mean=0.240403888375,
        second_moment=0.452342192376,
        slope_second_moment=0.479083758374,
        small_slope_share=0.0159848389058,
        torch_zero=_zero(float32=(-102.9, _INFINITY), float16=(-20.296875, _INFINITY), bfloat16=(-93.0, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-108.65098, _INFINITY), float16=(-20.296875, _INFINITY), bfloat16=(-97.5, _INFINITY)
        ),
        source="Misra 2019",
    ),
)
FACTS.add(
    "gelu",
    Facts(
        formula="x P(Z <= x), Z ~ N(0, 1)",
        derivative="P(Z <= x) + x exp(-x^2/2) / sqrt(2 pi)",
        range=(-0.16997120747, _INFINITY),
        saturates="left",
        derivative_zeros=(-0.751791524694,),
        max_slope=1.12890414519,
        mean=0.282094791774,
        second_moment=0.42522148257,
        slope_second_moment=0.455850865649,
        small_slope_share=0.017002761057,
        torch_zero=_zero(float32=(-6.152, _INFINITY), float16=(-6.03515625, _INFINITY), bfloat16=(-6.15625, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-14.541349, _INFINITY), float16=(-6.03125, _INFINITY), bfloat16=(-13.8125, _INFINITY)
        ),
        source="Hendrycks and Gimpel 2016",
    ),
)
FACTS.add(
    "gelu_tanh",
    Facts(
        formula="x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))",
        derivative="sigmoid(z) + x z' sigmoid(z) sigmoid(-z), z = 2 sqrt(2/pi) (x + 0.044715 x^3)",
        range=(-0.17004075057, _INFINITY),
        saturates="left",
        derivative_zeros=(-0.752461422071,),
        max_slope=1.12899306866,
        mean=0.282038588079,
        second_moment=0.425193711033,
        slope_second_moment=0.455817845963,
        small_slope_share=0.017088124895,
        torch_zero=_zero(float32=(-5.062, _INFINITY), float16=(-5.0625, _INFINITY), bfloat16=(-5.0625, _INFINITY)),
        evenkeel_zero=_zero(float32=(-10.894539, _INFINITY), float16=(-5.5625, _INFINITY), bfloat16=(-10.5, _INFINITY)),
        source="Hendrycks and Gimpel 2016",
    ),
)
FACTS.add(
    "quick_gelu",
    Facts(
        formula="x / (1 + exp(-1.702 x))",
        derivative="sigmoid(z) (1 + z sigmoid(-z)), z = 1.702 x",
        range=(-0.16361018964, _INFINITY),
        saturates="left",
        derivative_zeros=(-0.751154255441,),
        max_slope=1.09983932013,
        mean=0.282330552813,
        second_moment=0.421952806897,
        slope_second_moment=0.449549200479,
        small_slope_share=0.0180291523026,
        torch_zero=_zero(float32=(-52.14, _INFINITY), float16=(-10.1875, _INFINITY), bfloat16=(-52.25, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-63.837234, _INFINITY), float16=(-11.921875, _INFINITY), bfloat16=(-57.5, _INFINITY)
        ),
        source="Hendrycks and Gimpel 2016",
    ),
)
FACTS.add(
    "silu",
    Facts(
        formula="x / (1 + exp(-x))",
        derivative="sigmoid(x) (1 + x sigmoid(-x))",
        range=(-0.27846454276, _INFINITY),
        saturates="left",
        derivative_zeros=(-1.27846454276,),
        max_slope=1.09983932013,
        mean=0.206620964142,
        second_moment=0.355775519817,
        slope_second_moment=0.379482351633,
        small_slope_share=0.0177967031307,
        torch_zero=_zero(float32=(-88.73, _INFINITY), float16=(-20.296875, _INFINITY), bfloat16=(-89.0, _INFINITY)),
        evenkeel_zero=_zero(
            float32=(-108.65098, _INFINITY), float16=(-20.296875, _INFINITY), bfloat16=(-97.5, _INFINITY)
        ),
        source="Elfwing, Uchibe and Doya 2017",
    ),
)
FACTS.add(
    "hardsigmoid",
    Facts(
        formula="min(max(x/6 + 1/2, 0), 1)",
        derivative="1/6 if -3 < x < 3 else 0",
        range=(0.0, 1.0),
        saturates="both",
        flat=((-_INFINITY, -3.0), (3.0, _INFINITY)),
        max_slope=1 / 6,
        mean=0.5,
        second_moment=0.277639091057,
        slope_second_moment=0.0277027834427,
        small_slope_share=0.00269979606326,
        torch_zero=_zero_by_definition(below=-3.0, above=3.0),
        source="Howard et al. 2019, MobileNetV3",
    ),
)
FACTS.add(
    "hardswish",
    Facts(
        formula="x min(max(x/6 + 1/2, 0), 1)",
        derivative="0 if x < -3, 1 if x > 3, else x/3 + 1/2",
        range=(-0.375, _INFINITY),
        saturates="left",
        derivative_zeros=(-1.5,),
        flat=((-_INFINITY, -3.0),),
        max_slope=1.5,
        mean=0.166216700656,
        second_moment=0.331567375138,
        slope_second_moment=0.358531517179,
        small_slope_share=0.01301139709728,
        torch_zero=_zero_by_definition(below=-3.0),
        source="Howard et al. 2019, MobileNetV3",
    ),
)
FACTS.add(
    "logsigmoid",
    Facts(
        formula="-log(1 + exp(-x))",
        derivative="sigmoid(-x)",
        range=(-_INFINITY, 0.0),
        saturates="right",
        max_slope=1.0,
        mean=-0.806059183347,
        second_moment=0.921245908859,
        slope_second_moment=0.293379035858,
        small_slope_share=2.16250304083e-6,
        torch_zero=_zero(float32=(-_INFINITY, 103.98), float16=(-_INFINITY, 17.34375), bfloat16=(-_INFINITY, 93.0)),
        source="log of the sigmoid, by definition",
    ),
)
