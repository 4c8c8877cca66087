"""Claims on zero-centring: how much of an output is its constant mean (C09, C31)."""

from __future__ import annotations

from collections.abc import Iterator

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise, mean_energy, normal_mean, slope_at, slope_second_moment
from ._text import Text

_FUNCTIONS: dict[str, Pointwise] = {
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


def _repair() -> Iterator[Measurement]:
    for name, function in _FUNCTIONS.items():
        yield Measurement(f"{name}.mean_energy", mean_energy(function), "share")
    for name in ("sigmoid", "silu"):
        function = _FUNCTIONS[name]
        yield Measurement(f"{name}.slope_second_moment", slope_second_moment(function), "1")
        yield Measurement(f"{name}.slope_at_10", slope_at(function, 10.0), "1")
        yield Measurement(f"{name}.slope_size_at_minus_10", abs(slope_at(function, -10.0)), "1")


C09 = Claim(
    id="C09",
    statement=Text(
        en="SiLU, x·σ(x), mends what is wrong with the sigmoid: its output is centred and it saturates less.",
        es="SiLU, x·σ(x), corrige los defectos de la sigmoide: su salida está centrada y se satura menos.",
        pt="A SiLU, x·σ(x), corrige os defeitos da sigmoide: sua saída é centrada e ela satura menos.",
    ),
    method=Text(
        en="The share of the output's energy that is its mean, under N(0, 1), for five functions; and the slopes of "
        "sigmoid and SiLU at ±10.",
        es="La parte de la energía de la salida que es su media, bajo N(0, 1), para cinco funciones; y las pendientes "
        "de la sigmoide y de SiLU en ±10.",
        pt="A parte da energia da saída que é a sua média, sob N(0, 1), para cinco funções; e as inclinações da "
        "sigmoide e da SiLU em ±10.",
    ),
    measure=_repair,
    criterion=(
        Bound(measurement="silu.mean_energy", high=0.4),  # less than half of the sigmoid's 0.85
        Bound(measurement="silu.slope_at_10", low=0.5),
        Bound(measurement="silu.slope_second_moment", low=0.1),  # more than twice the sigmoid's 0.045
        Bound(
            measurement="silu.mean_energy",
            high=0.01,
            role="caveat",
            otherwise=Text(
                en="SiLU is much closer to zero-centred than the sigmoid, but not centred: its mean still holds a "
                "noticeable share of its energy.",
                es="SiLU está mucho más cerca de estar centrada en cero que la sigmoide, pero no lo está: su media "
                "todavía contiene una parte apreciable de su energía.",
                pt="A SiLU está muito mais perto de ser centrada em zero do que a sigmoide, mas não é: sua média ainda "
                "contém uma parte perceptível da energia.",
            ),
        ),
        Bound(
            measurement="silu.slope_size_at_minus_10",
            low=0.01,
            role="caveat",
            otherwise=Text(
                en="Only the positive side no longer saturates; far to the left SiLU's slope goes to 0 as the "
                "sigmoid's does.",
                es="Solo el lado positivo deja de saturarse; muy a la izquierda la pendiente de SiLU tiende a 0 como "
                "la de la sigmoide.",
                pt="Só o lado positivo deixa de saturar; bem à esquerda a inclinação da SiLU tende a 0 como a da "
                "sigmoide.",
            ),
        ),
    ),
    ops=("silu", "sigmoid"),
    source="Elfwing, Uchibe and Doya 2017; moments by quadrature",
)


def _centres() -> Iterator[Measurement]:
    for name, function in _FUNCTIONS.items():
        yield Measurement(f"{name}.mean", normal_mean(function), "1")
        yield Measurement(f"{name}.mean_energy", mean_energy(function), "share")


C31 = Claim(
    id="C31",
    statement=Text(
        en="tanh and GELU are zero-centred functions.",
        es="tanh y GELU son funciones centradas en cero.",
        pt="tanh e GELU são funções centradas em zero.",
    ),
    method=Text(
        en="The mean of the output under N(0, 1), and the share of the output's energy that it makes up.",
        es="La media de la salida bajo N(0, 1) y la parte de la energía de la salida que representa.",
        pt="A média da saída sob N(0, 1) e a parte da energia da saída que ela representa.",
    ),
    measure=_centres,
    criterion=(
        Bound(measurement="tanh.mean_energy", high=0.01),
        Bound(
            measurement="gelu.mean_energy",
            high=0.01,
            otherwise=Text(
                en="tanh is zero-centred, GELU is not: nearly a fifth of its output's energy is a positive mean.",
                es="tanh está centrada en cero, GELU no: casi una quinta parte de la energía de su salida es una media "
                "positiva.",
                pt="tanh é centrada em zero, GELU não: quase um quinto da energia de sua saída é uma média positiva.",
            ),
        ),
    ),
    ops=("tanh", "gelu"),
    source="tanh is odd; E GELU(Z) = 1/(2√π) = 0.282 by Stein's identity",
)
