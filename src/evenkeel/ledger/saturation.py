"""Claims on saturation: where functions go flat and gradients vanish, and what range is left (C01, C03, C50)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise, slope, slope_at, slope_second_moment, zero_slope_from
from ._stacks import plain_gradient_ratio
from ._text import Text

_FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_IN_TORCH: dict[str, Pointwise] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}
_OURS: dict[str, Pointwise] = {"sigmoid": F.sigmoid, "tanh": F.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
_IMPLEMENTATIONS = {"torch": _IN_TORCH, "evenkeel": _OURS}


def _zero_slopes(name: str, side: str) -> Iterator[Measurement]:
    sign = 1 if side == "above" else -1
    for implementation, functions in _IMPLEMENTATIONS.items():
        for dtype_name, dtype in _FORMATS.items():
            size = zero_slope_from(functions[name], dtype, sign=sign)
            yield Measurement(f"{implementation}.{name}.{dtype_name}.zero_slope_{side}", sign * size, "input")


def _saturation() -> Iterator[Measurement]:
    sigmoid = _OURS["sigmoid"]
    ten = torch.tensor(10.0, dtype=torch.float64)
    yield Measurement("sigmoid.output_at_10", sigmoid(ten).item(), "1")
    yield Measurement("sigmoid.output_at_minus_10", sigmoid(-ten).item(), "1")
    yield Measurement("sigmoid.slope_at_0", slope_at(sigmoid, 0.0), "1")
    yield Measurement("sigmoid.slope_at_10", slope_at(sigmoid, 10.0), "1")
    yield Measurement("sigmoid.slope_at_minus_10", slope_at(sigmoid, -10.0), "1")
    yield Measurement("sigmoid.slope_at_20", slope_at(sigmoid, 20.0), "1")
    yield from _zero_slopes("sigmoid", "above")
    yield from _zero_slopes("tanh", "above")


C01 = Claim(
    id="C01",
    statement=Text(
        en="The sigmoid saturates at both ends, and there its derivative σ(1 − σ) goes to 0.",
        es="La sigmoide se satura en ambos extremos, y allí su derivada σ(1 − σ) tiende a 0.",
        pt="A sigmoide satura nas duas extremidades, e ali sua derivada σ(1 − σ) tende a 0.",
    ),
    method=Text(
        en="Output and derivative in float64 at 0, ±10 and 20; and, in each format, the input from which "
        "backpropagation returns exactly 0.",
        es="Salida y derivada en float64 en 0, ±10 y 20; y, en cada formato, la entrada a partir de la cual la "
        "retropropagación devuelve exactamente 0.",
        pt="Saída e derivada em float64 em 0, ±10 e 20; e, em cada formato, a entrada a partir da qual a "
        "retropropagação devolve exatamente 0.",
    ),
    measure=_saturation,
    criterion=(
        Bound(measurement="sigmoid.output_at_10", low=0.9999, high=1.0),
        Bound(measurement="sigmoid.output_at_minus_10", low=0.0, high=1e-4),
        Bound(measurement="sigmoid.slope_at_10", low=0.0, high=1e-4),
        Bound(measurement="sigmoid.slope_at_minus_10", low=0.0, high=1e-4),
        Bound(measurement="sigmoid.slope_at_20", low=0.0, high=1e-8),
    ),
    ops=("sigmoid", "tanh"),
    source="σ' = σ(1 − σ) by the quotient rule; the peak is 1/4 at 0, and σ'(x) < e^−|x|",
)


def _flow() -> Iterator[Measurement]:
    negative = -torch.randn(2**16, generator=torch.Generator().manual_seed(0), dtype=torch.float32).abs()
    for name in ("relu", "gelu", "silu"):
        share = (slope(_IN_TORCH[name], negative) == 0).double().mean().item()
        yield Measurement(f"{name}.zero_slope_share_of_negatives", share, "share")
    yield from _zero_slopes("gelu", "below")
    yield from _zero_slopes("silu", "below")
    sigmoid_moment = slope_second_moment(_OURS["sigmoid"])
    sigmoid_ratio = plain_gradient_ratio(_IN_TORCH["sigmoid"])
    for name in ("relu", "gelu", "silu"):
        moment, ratio = slope_second_moment(_OURS[name]), plain_gradient_ratio(_IN_TORCH[name])
        yield Measurement(f"{name}.slope_second_moment", moment, "1")
        yield Measurement(f"{name}.slope_second_moment_over_sigmoid", moment / sigmoid_moment, "ratio")
        yield Measurement(f"{name}.gradient_after_24_layers_over_sigmoid", ratio / sigmoid_ratio, "ratio")


C03 = Claim(
    id="C03",
    statement=Text(
        en="ReLU and GELU do not saturate fully for negative inputs, so gradients flow better than through a sigmoid.",
        es="ReLU y GELU no se saturan del todo con entradas negativas, así que los gradientes fluyen mejor que a "
        "través de una sigmoide.",
        pt="ReLU e GELU não saturam por completo em entradas negativas, e assim os gradientes fluem melhor do que "
        "por uma sigmoide.",
    ),
    method=Text(
        en="The share of negative standard normal inputs whose gradient is exactly 0; the input below which all of "
        "them are; the mean square of the slope under N(0, 1); and the gradient left after a plain stack of 24 "
        "layers, each over the sigmoid's.",
        es="La proporción de entradas negativas de una normal estándar cuyo gradiente es exactamente 0; la entrada por "
        "debajo de la cual lo es siempre; la media del cuadrado de la pendiente bajo N(0, 1); y el gradiente que "
        "queda tras una pila simple de 24 capas, ambos frente a los de la sigmoide.",
        pt="A proporção de entradas negativas de uma normal padrão cujo gradiente é exatamente 0; a entrada abaixo da "
        "qual ele sempre o é; a média do quadrado da inclinação sob N(0, 1); e o gradiente que resta após uma "
        "pilha simples de 24 camadas, ambos em relação aos da sigmoide.",
    ),
    measure=_flow,
    criterion=(
        Bound(measurement="gelu.zero_slope_share_of_negatives", high=0.01),
        Bound(measurement="silu.zero_slope_share_of_negatives", high=0.01),
        Bound(measurement="relu.slope_second_moment_over_sigmoid", low=2.0),
        Bound(measurement="gelu.slope_second_moment_over_sigmoid", low=2.0),
        Bound(measurement="relu.gradient_after_24_layers_over_sigmoid", low=1e3),
        Bound(measurement="gelu.gradient_after_24_layers_over_sigmoid", low=1e3),
        Bound(
            measurement="relu.zero_slope_share_of_negatives",
            high=0.5,
            role="caveat",
            otherwise=Text(
                en="ReLU's gradient is exactly 0 for every negative input: on that side it is fully saturated, and a "
                "unit that stays there is dead. Its better flow comes from the positive side.",
                es="El gradiente de ReLU es exactamente 0 para toda entrada negativa: de ese lado está saturada del "
                "todo, y una unidad que se queda ahí está muerta. Su mejor flujo viene del lado positivo.",
                pt="O gradiente da ReLU é exatamente 0 para toda entrada negativa: desse lado ela está totalmente "
                "saturada, e uma unidade que fica ali está morta. O fluxo melhor vem do lado positivo.",
            ),
        ),
        Bound(
            measurement="torch.gelu.float32.zero_slope_below",
            high=-20.0,
            role="caveat",
            otherwise=Text(
                en="In torch GELU's gradient, too, is exactly 0 a little below −6, in every format (in evenkeel's "
                "float32 only below −14); SiLU's lasts much longer.",
                es="En torch también el gradiente de GELU es exactamente 0 poco por debajo de −6, en todos los "
                "formatos (en el float32 de evenkeel, solo por debajo de −14); el de SiLU dura mucho más.",
                pt="No torch o gradiente da GELU também é exatamente 0 pouco abaixo de −6, em todos os formatos (no "
                "float32 do evenkeel, só abaixo de −14); o da SiLU dura muito mais.",
            ),
        ),
    ),
    ops=("relu", "gelu", "silu", "sigmoid"),
    source="Nair and Hinton 2010 (ReLU); Hendrycks and Gimpel 2016 (GELU, SiLU); slope moments as in the facts of "
    "each function",
)


def _reached_from(function: Pointwise, end: float, dtype: torch.dtype) -> float:
    """The smallest size |x|, to 1/64, from which on the output is exactly 0 or 1; infinite where it is not at 1024."""
    sizes = (torch.arange(1, 64 * 1024 + 1, dtype=torch.float64) / 64).to(dtype)
    inside = (function(sizes if end == 1 else -sizes) != end).nonzero()
    first = 0 if inside.numel() == 0 else int(inside.max()) + 1
    return math.inf if first == sizes.numel() else sizes[first].item()


def _range() -> Iterator[Measurement]:
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    for name, functions in _IMPLEMENTATIONS.items():
        sigmoid = functions["sigmoid"]
        values = sigmoid(x)
        distance = (values - 1 / (1 + torch.exp(-x))).abs().max().item()
        yield Measurement(f"{name}.distance_from_formula", distance, "1")
        yield Measurement(f"{name}.smallest_output", values.min().item(), "1")
        yield Measurement(f"{name}.largest_output_below_1", (1 - values).min().item(), "1")
        for dtype_name, dtype in _FORMATS.items():
            yield Measurement(f"{name}.{dtype_name}.one_from", _reached_from(sigmoid, 1, dtype), "input")
            yield Measurement(f"{name}.{dtype_name}.zero_below", -_reached_from(sigmoid, 0, dtype), "input")


C50 = Claim(
    id="C50",
    statement=Text(
        en="The sigmoid, 1/(1 + e^−x), squeezes every input into the open interval from 0 to 1: its output is always "
        "positive.",
        es="La sigmoide, 1/(1 + e^−x), lleva toda entrada al intervalo abierto de 0 a 1: la salida es siempre "
        "positiva.",
        pt="A sigmoide, 1/(1 + e^−x), leva toda entrada ao intervalo aberto de 0 a 1: sua saída é sempre positiva.",
    ),
    method=Text(
        en="From −30 to 30 in float64, the distance from the formula, the smallest output, and how far the largest "
        "stays below 1; and, in each format, the inputs from which the output is exactly 1 and exactly 0.",
        es="De −30 a 30 en float64, la distancia a la fórmula, la salida menor y cuánto le falta a la mayor para "
        "llegar a 1; y, en cada formato, las entradas desde las que la salida es exactamente 1 y exactamente 0.",
        pt="De −30 a 30 em float64, a distância da fórmula, a menor saída e quanto falta à maior para chegar a 1; e, "
        "em cada formato, as entradas a partir das quais a saída é exatamente 1 e exatamente 0.",
    ),
    measure=_range,
    criterion=(
        *(
            bound
            for name in _IMPLEMENTATIONS
            for bound in (
                Bound(measurement=f"{name}.distance_from_formula", high=1e-15),
                Bound(measurement=f"{name}.smallest_output", low=1e-14),
                Bound(measurement=f"{name}.largest_output_below_1", low=1e-14),
            )
        ),
        Bound(
            measurement="torch.float32.one_from",
            low=1000.0,
            role="caveat",
            otherwise=Text(
                en="True of real numbers; in floating point the upper end is reached: from about 17 on in float32, and "
                "sooner in shorter formats, the output is exactly 1.",
                es="Cierto en números reales; en coma flotante el extremo superior se alcanza: a partir de unos 17 en "
                "float32, y antes en formatos más cortos, la salida es exactamente 1.",
                pt="Verdade em números reais; em ponto flutuante o extremo superior é alcançado: a partir de uns 17 em "
                "float32, e antes em formatos mais curtos, a saída é exatamente 1.",
            ),
        ),
    ),
    ops=("sigmoid",),
    source="by definition; 1 − σ(x) < e^−x, and what is below half a unit in the last place of 1 is rounded away",
)
