"""Claims on the formula of the gated feed-forward (C33)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement, Text
from ._documents import sentences_of
from ._stacks import normal, weight

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
    passages=sentences_of("swiglu", 2),
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
