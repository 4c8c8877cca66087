"""Claims on the formulas of gated feed-forwards (C33, C56)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Citation, Claim, Measurement, count_citations
from ._stacks import normal, weight
from ._text import Text

_TOKENS, _WIDTH, _HIDDEN = 64, 32, 96


def _evaluates(formula: Callable[[], object]) -> float:
    """1 where a formula can be computed as it is written, 0 where its types do not allow it."""
    try:
        formula()
    except TypeError:
        return 0.0
    return 1.0


def _two_formulas() -> Iterator[Measurement]:
    stream = torch.Generator().manual_seed(0)
    x, first, third = (
        normal(stream, _TOKENS, _WIDTH),
        weight(stream, _WIDTH, _HIDDEN),
        weight(stream, _WIDTH, _HIDDEN),
    )
    expected = F.swiglu(x @ first, x @ third)

    def distance(formula: Tensor) -> float:
        return ((formula - expected).norm() / expected.norm()).item()

    silu: Any = F.silu  # as written, the function itself is a factor
    yield Measurement("first_formula.evaluates", _evaluates(lambda: (x @ first * silu) * (x @ third)), "1")
    product = (x @ first) * F.silu(x @ first) * (x @ third)
    yield Measurement("first_formula.read_as_product.distance", distance(product), "share of the norm")
    second = F.silu(x @ first) * (x @ third)
    yield Measurement("second_formula.distance", distance(second), "share of the norm")


C33 = Claim(
    id="C33",
    statement=Text(
        en="SwiGLU(x) = (x·W1·SiLU) ⊗ (x·W3): the input times W1 times SiLU, gated by the input times W3.",
        es="SwiGLU(x) = (x·W1·SiLU) ⊗ (x·W3): la entrada por W1 por SiLU, con la entrada por W3 como compuerta.",
        pt="SwiGLU(x) = (x·W1·SiLU) ⊗ (x·W3): a entrada vezes W1 vezes SiLU, com a entrada vezes W3 como porta.",
    ),
    method=Text(
        en="Whether the formula can be computed as written; how far its reading as a product, and the same document's "
        "second formula SiLU(W1·x) ⊗ W3·x (sentence 9), are from SwiGLU as released models compute it.",
        es="Si la fórmula puede calcularse tal como está escrita; a qué distancia quedan su lectura como producto y la "
        "segunda fórmula del mismo documento, SiLU(W1·x) ⊗ W3·x (frase 9), de la SwiGLU que calculan los modelos "
        "publicados.",
        pt="Se a fórmula pode ser calculada como está escrita; a que distância ficam sua leitura como produto e a "
        "segunda fórmula do mesmo documento, SiLU(W1·x) ⊗ W3·x (frase 9), da SwiGLU que os modelos publicados "
        "calculam.",
    ),
    measure=_two_formulas,
    criterion=(
        Bound(
            measurement="first_formula.evaluates",
            low=1.0,
            otherwise=Text(
                en="The formula is malformed: SiLU is a function, not a factor. The second formula of the document, "
                "SiLU(W1·x) ⊗ W3·x, is the right one.",
                es="La fórmula está mal escrita: SiLU es una función, no un factor. La correcta es la segunda del "
                "documento, SiLU(W1·x) ⊗ W3·x.",
                pt="A fórmula está malformada: SiLU é uma função, não um fator. A correta é a segunda do documento, "
                "SiLU(W1·x) ⊗ W3·x.",
            ),
        ),
        Bound(
            measurement="first_formula.read_as_product.distance",
            high=1e-6,
            otherwise=Text(
                en="Read as a product, with SiLU applied to x·W1, it is another function.",
                es="Leída como producto, con SiLU aplicada a x·W1, es otra función.",
                pt="Lida como produto, com SiLU aplicada a x·W1, é outra função.",
            ),
        ),
    ),
    ops=("swiglu", "silu"),
    source="Shazeer 2020, equation 6: FFN_SwiGLU(x) = (Swish(x W) ⊗ x V) W2",
)


_FAMILY: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "glu": (F.glu, torch.sigmoid),
    "reglu": (F.reglu, torch.relu),
    "geglu": (F.geglu, torch.nn.functional.gelu),
    "swiglu": (F.swiglu, torch.nn.functional.silu),
}


def _one_family() -> Iterator[Measurement]:
    yield from count_citations(C56.citations)
    stream = torch.Generator().manual_seed(0)
    gate, up = normal(stream, _TOKENS, _HIDDEN), normal(stream, _TOKENS, _HIDDEN)

    def distance(found: Tensor, expected: Tensor) -> float:
        return ((found - expected).norm() / expected.norm()).item()

    outputs = {name: product(gate, up) for name, (product, _) in _FAMILY.items()}
    for name, (_, activation) in _FAMILY.items():
        yield Measurement(f"{name}.distance_from_formula", distance(outputs[name], activation(gate) * up), "share")
    in_torch = torch.nn.functional.glu(torch.cat([up, gate], -1))
    yield Measurement("torch_glu.distance_from_glu", distance(in_torch, outputs["glu"]), "share")
    apart = min(distance(outputs[one], outputs[other]) for one, other in permutations(outputs, 2))
    yield Measurement("smallest_distance_between_two", apart, "share")


C56 = Claim(
    id="C56",
    statement=Text(
        en="SwiGLU is one of a family of gates that differ in one function: GLU has the sigmoid, ReGLU ReLU, GeGLU "
        "GELU and SwiGLU SiLU.",
        es="SwiGLU es una de una familia de compuertas que difieren en una función: GLU tiene la sigmoide, ReGLU "
        "ReLU, GeGLU GELU y SwiGLU SiLU.",
        pt="SwiGLU é uma de uma família de portas que diferem em uma função: GLU tem a sigmoide, ReGLU a ReLU, GeGLU a "
        "GELU e SwiGLU a SiLU.",
    ),
    method=Text(
        en="Each gate of evenkeel beside torch's activation times the other projection, GLU also beside torch's own; "
        "the smallest distance between two of the four; and what the papers that introduced them say.",
        es="Cada compuerta de evenkeel junto a la activación de torch por la otra proyección, y GLU también junto a la "
        "de torch; la menor distancia entre dos de las cuatro; y lo que dicen los artículos que las introdujeron.",
        pt="Cada porta do evenkeel ao lado da ativação do torch vezes a outra projeção, e a GLU também ao lado da do "
        "torch; a menor distância entre duas das quatro; e o que dizem os artigos que as introduziram.",
    ),
    measure=_one_family,
    criterion=(
        *(Bound(measurement=f"{name}.distance_from_formula", high=1e-12) for name in _FAMILY),
        Bound(measurement="torch_glu.distance_from_glu", high=1e-12),
        Bound(measurement="smallest_distance_between_two", low=0.01),
        Bound(measurement="cited.decisive", low=1, role="noise"),
        Bound(measurement="cited.against", high=0),
    ),
    ops=("glu", "reglu", "geglu", "swiglu"),
    source="the sources cited, and torch's own functions",
    citations=(
        Citation(
            source="Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks, section 2",
            says=Text(
                en="The original gate: one projection times the sigmoid of another.",
                es="La compuerta original: una proyección por la sigmoide de otra.",
                pt="A porta original: uma projeção vezes a sigmoide de outra.",
            ),
            stance="says so",
        ),
        Citation(
            source="Shazeer 2020, GLU Variants Improve Transformer, section 2",
            says=Text(
                en="Defines ReGLU, GEGLU and SwiGLU by putting ReLU, GELU and Swish in the sigmoid's place.",
                es="Define ReGLU, GEGLU y SwiGLU poniendo ReLU, GELU y Swish en el lugar de la sigmoide.",
                pt="Define ReGLU, GEGLU e SwiGLU pondo ReLU, GELU e Swish no lugar da sigmoide.",
            ),
            stance="says so",
        ),
    ),
)
