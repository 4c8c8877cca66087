"""Claims on what activation functions cost (C40)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise, slope_at
from ._stacks import normal, weight
from ._text import Text

_ELEMENTS = 2**15  # in cache, and too few for torch to share among threads
_TOKENS, _WIDTH, _REPEATS = 64, 512, 40


def _time(run: Callable[[], object]) -> int:
    """Nanoseconds of one run."""
    begin = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - begin


def _cost_ratio(dear: Callable[[], object], cheap: Callable[[], object]) -> tuple[float, float]:
    """How many times as long the first takes, from the shortest of many turns; and the spread of four such ratios."""
    ratios = []
    for run in (dear, cheap):
        _time(run)
    for _ in range(4):
        turns = [(_time(dear), _time(cheap)) for _ in range(_REPEATS)]
        ratios.append(min(turn[0] for turn in turns) / min(turn[1] for turn in turns))
    return sorted(ratios)[1], max(ratios) / min(ratios) - 1


def _layer(function: Pointwise) -> Callable[[], Tensor]:
    """A feed-forward layer of 4 widths in float32, forward only."""
    stream = torch.Generator().manual_seed(0)
    x, first, second = (
        item.float()
        for item in (
            normal(stream, _TOKENS, _WIDTH),
            weight(stream, _WIDTH, 4 * _WIDTH),
            weight(stream, 4 * _WIDTH, _WIDTH),
        )
    )
    return lambda: function(x @ first) @ second


def _costs() -> Iterator[Measurement]:
    relu, gelu = torch.relu, torch.nn.functional.gelu
    values = torch.randn(_ELEMENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.no_grad():
        alone, alone_spread = _cost_ratio(lambda: gelu(values), lambda: relu(values))
        layer, layer_spread = _cost_ratio(_layer(gelu), _layer(relu))
    yield Measurement("alone.gelu_time_over_relu", alone, "ratio")
    yield Measurement("alone.spread", alone_spread, "share")
    yield Measurement("layer.gelu_time_over_relu", layer, "ratio")
    yield Measurement("layer.spread", layer_spread, "share")
    for name, function in (("relu", F.relu), ("gelu", F.gelu)):
        yield Measurement(f"{name}.slope_jump_at_0", slope_at(function, 1e-6) - slope_at(function, -1e-6), "1")
    x = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    by_chance = torch.tensor([value * NormalDist().cdf(value) for value in x.tolist()], dtype=torch.float64)
    yield Measurement("gelu.distance_from_x_times_chance", (F.gelu(x) - by_chance).abs().max().item(), "1")


C40 = Claim(
    id="C40",
    statement=Text(
        en="ReLU is fast and simple; GELU is smooth and has a probabilistic meaning, x·P(Z ≤ x).",
        es="ReLU es rápida y sencilla; GELU es suave y tiene un sentido probabilístico, x·P(Z ≤ x).",
        pt="ReLU é rápida e simples; GELU é suave e tem um sentido probabilístico, x·P(Z ≤ x).",
    ),
    method=Text(
        en="Time of torch's GELU over ReLU in one process, alone on values in cache and inside a feed-forward layer of "
        "width 512; the jump of each slope at 0; the distance of GELU from x times the normal distribution function.",
        es="Tiempo de GELU frente a ReLU de torch en un mismo proceso, solas con valores en caché y dentro de una capa "
        "feed-forward de ancho 512; el salto de cada pendiente en 0; la distancia de GELU a x por la función de "
        "distribución normal.",
        pt="Tempo da GELU em relação à ReLU do torch em um mesmo processo, sozinhas com valores em cache e dentro de "
        "uma camada feed-forward de largura 512; o salto de cada inclinação em 0; a distância da GELU a x vezes a "
        "função de distribuição normal.",
    ),
    measure=_costs,
    criterion=(
        Bound(measurement="alone.spread", high=0.25, role="noise"),
        Bound(measurement="layer.spread", high=0.25, role="noise"),
        Bound(measurement="alone.gelu_time_over_relu", low=1.25),
        Bound(measurement="relu.slope_jump_at_0", low=0.5),
        Bound(measurement="gelu.slope_jump_at_0", low=-1e-3, high=1e-3),
        Bound(measurement="gelu.distance_from_x_times_chance", high=1e-12),
        Bound(
            measurement="layer.gelu_time_over_relu",
            low=1.25,
            role="caveat",
            otherwise=Text(
                en="ReLU's speed is its own: in a feed-forward layer the matrix products decide, and GELU costs little "
                "more.",
                es="La velocidad de ReLU es solo suya: en una capa feed-forward mandan los productos de matrices, y "
                "GELU cuesta poco más.",
                pt="A velocidade da ReLU é só dela: em uma camada feed-forward quem decide são os produtos de "
                "matrizes, e a GELU custa pouco mais.",
            ),
        ),
    ),
    ops=("relu", "gelu"),
    source="Nair and Hinton 2010; Hendrycks and Gimpel 2016; measured on this machine",
)
