"""A claim on what activation functions are for: without them a feed-forward is linear (C49)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise
from ._stacks import normal, weight
from ._text import Text

_TOKENS, _WIDTH, _HIDDEN = 64, 32, 128
_ACTIVATIONS: dict[str, Pointwise] = {"identity": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def _departure(layer: Callable[[Tensor], Tensor], stream: torch.Generator) -> float:
    """‖f(a + b) − f(a) − f(b) + f(0)‖ / ‖f(a + b) − f(0)‖: 0 for a linear layer, also with a constant added."""
    first, second = normal(stream, _TOKENS, _WIDTH), normal(stream, _TOKENS, _WIDTH)
    nothing, whole = layer(torch.zeros_like(first)), layer(first + second)
    return ((whole - layer(first) - layer(second) + nothing).norm() / (whole - nothing).norm()).item()


def _departures() -> Iterator[Measurement]:
    stream = torch.Generator().manual_seed(0)
    first, gate = weight(stream, _WIDTH, _HIDDEN), weight(stream, _WIDTH, _HIDDEN)
    second, value = weight(stream, _HIDDEN, _WIDTH), weight(stream, _WIDTH, _WIDTH)
    for name, function in _ACTIVATIONS.items():
        departure = _departure(lambda x, function=function: function(x @ first) @ second, stream)
        yield Measurement(f"{name}.departure", departure, "share of the norm")
    product = _departure(lambda x: F.bilinear(x @ gate, x @ first) @ second, stream)
    yield Measurement("bilinear.departure", product, "share of the norm")
    attention = _departure(lambda x: torch.softmax(x @ x.mT / _WIDTH**0.5, -1) @ (x @ value), stream)
    yield Measurement("attention.departure", attention, "share of the norm")


_NOT_ALONE = Text(
    en="Activation functions are not the only source: a product of two linear maps is nonlinear without any, and so is "
    "attention, whose weights depend on its input.",
    es="Las funciones de activación no son la única fuente: un producto de dos aplicaciones lineales ya es no lineal "
    "sin ninguna, y también la atención, cuyos pesos dependen de su entrada.",
    pt="As funções de ativação não são a única fonte: um produto de duas aplicações lineares já é não linear sem "
    "nenhuma, e também a atenção, cujos pesos dependem da sua entrada.",
)

C49 = Claim(
    id="C49",
    statement=Text(
        en="In a transformer the activation functions bring in the nonlinearity: without them a feed-forward is one "
        "linear map.",
        es="En un transformer las funciones de activación aportan la no linealidad: sin ellas un feed-forward es una "
        "sola aplicación lineal.",
        pt="Em um transformer as funções de ativação trazem a não linearidade: sem elas um feed-forward é uma só "
        "aplicação linear.",
    ),
    method=Text(
        en="How far layers with random weights are from f(a + b) = f(a) + f(b), as a share of the output: two matrices "
        "with nothing between them, and with ReLU, GELU and SiLU; a product of two linear maps; and one attention "
        "head.",
        es="A qué distancia están capas con pesos aleatorios de f(a + b) = f(a) + f(b), como parte de la salida: dos "
        "matrices sin nada en medio, y con ReLU, GELU y SiLU; un producto de dos aplicaciones lineales; y una cabeza "
        "de atención.",
        pt="A que distância camadas com pesos aleatórios estão de f(a + b) = f(a) + f(b), como parte da saída: duas "
        "matrizes sem nada entre elas, e com ReLU, GELU e SiLU; um produto de duas aplicações lineares; e uma cabeça "
        "de atenção.",
    ),
    measure=_departures,
    criterion=(
        Bound(measurement="identity.departure", high=1e-12),
        *(Bound(measurement=f"{name}.departure", low=0.1) for name in ("relu", "gelu", "silu")),
        Bound(measurement="bilinear.departure", high=1e-12, role="caveat", otherwise=_NOT_ALONE),
        Bound(measurement="attention.departure", high=1e-12, role="caveat", otherwise=_NOT_ALONE),
    ),
    ops=("relu", "gelu", "silu", "bilinear", "attention"),
    source="a product of matrices is a matrix; Shazeer 2020 (the bilinear layer)",
)
