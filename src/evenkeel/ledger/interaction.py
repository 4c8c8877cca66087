"""Claims on what gates can compute and plain activations cannot: products of features (C46)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise
from ._stacks import normal
from ._text import Text
from ._training import SEEDS, interval, networks

_FEATURES, _TOKENS = 8, 2048
_GATED_HIDDEN, _PLAIN_HIDDEN = 15, 25  # 300 weights in three matrices and in two
_STEPS, _RATES = 400, (0.01, 0.03)

_ARMS: dict[str, tuple[Pointwise, bool]] = {
    "bilinear": (lambda x: x, True),
    "swiglu": (torch.nn.functional.silu, True),
    "relu": (torch.relu, False),
    "gelu": (torch.nn.functional.gelu, False),
    "silu": (torch.nn.functional.silu, False),
    "relu2": (F.relu2, False),
}
_PLAIN = ("relu", "gelu", "silu")


def _products(x: Tensor) -> Tensor:
    """Each feature of the first half times its partner in the second."""
    first, second = x.chunk(2, -1)
    return first * second


def _fit(function: Pointwise, gated: bool) -> Tensor:
    """The mean squared error for each seed, after training, on tokens of its own; the products' variance is 1."""
    hidden = _GATED_HIDDEN if gated else _PLAIN_HIDDEN
    start = networks(_RATES, *((_FEATURES, hidden),) * (2 if gated else 1), (hidden, _FEATURES // 2))
    stream = torch.Generator().manual_seed(1)

    def losses(tokens: int) -> Tensor:
        x = start.for_each(normal(stream, SEEDS, tokens, _FEATURES))
        inner = function(x @ start.parameters[0])
        inner = inner * (x @ start.parameters[1]) if gated else inner
        return (inner @ start.parameters[-1] - _products(x)).square().mean((1, 2))

    start.train(lambda: losses(64), _STEPS)
    with torch.no_grad():
        found = losses(_TOKENS)
    return start.best(found, found)[0]


def _interaction() -> Iterator[Measurement]:
    found = {name: _fit(*arm) for name, arm in _ARMS.items()}
    for name, losses in found.items():
        yield Measurement(f"{name}.loss", losses.mean().item(), "mean squared error")
    for name in (*_PLAIN, "relu2"):
        yield from interval(f"loss_of_{name}_over_swiglu", found[name] / found["swiglu"], "ratio")


C46 = Claim(
    id="C46",
    statement=Text(
        en="Gating gives a network a multiplicative interaction that plain activations lack.",
        es="La compuerta da a la red una interacción multiplicativa que las activaciones simples no tienen.",
        pt="A porta dá à rede uma interação multiplicativa que as ativações simples não têm.",
    ),
    method=Text(
        en="Feed-forwards with 300 weights, gated and plain, trained to multiply features in pairs, 8 seeds, the "
        "better of two learning rates: the mean squared error (the products' variance is 1), and each plain one's over "
        "SwiGLU's with a 95% interval.",
        es="Feed-forward con 300 pesos, con compuerta y simples, entrenados para multiplicar rasgos de dos en dos, 8 "
        "semillas, la mejor de dos tasas de aprendizaje: el error cuadrático medio (la varianza de los productos es 1) "
        "y el de cada uno simple entre el de SwiGLU con un intervalo del 95%.",
        pt="Feed-forwards com 300 pesos, com porta e simples, treinados para multiplicar atributos dois a dois, 8 "
        "sementes, a melhor de duas taxas de aprendizado: o erro quadrático médio (a variância dos produtos é 1) e o "
        "de cada um simples sobre o da SwiGLU com um intervalo de 95%.",
    ),
    measure=_interaction,
    criterion=(
        *(Bound(measurement=f"loss_of_{name}_over_swiglu.low", low=2) for name in _PLAIN),
        Bound(
            measurement="loss_of_relu2_over_swiglu.low",
            low=2,
            role="caveat",
            otherwise=Text(
                en="ReLU² has it without a gate: a product is a difference of squares, "
                "x·y = ((x + y)² − (x − y)²) / 4.",
                es="ReLU² la tiene sin compuerta: un producto es una diferencia de cuadrados, "
                "x·y = ((x + y)² − (x − y)²) / 4.",
                pt="A ReLU² tem isso sem porta: um produto é uma diferença de quadrados, "
                "x·y = ((x + y)² − (x − y)²) / 4.",
            ),
        ),
    ),
    ops=("swiglu", "bilinear", "relu", "gelu", "silu", "relu2"),
    source="Dauphin et al. 2017; So et al. 2021 (ReLU²); measured here",
)
