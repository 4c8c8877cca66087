"""A claim on what q·k measures (C54)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._stacks import normal, rms_norm
from ._text import Text

_VECTORS, _DIM = 512, 64


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, along the last dimension, averaged over the rows."""
    ranks = (item.argsort(-1).argsort(-1).double() for item in (first, second))
    first, second = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    return ((first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))).mean().item()


def _resemblance() -> Iterator[Measurement]:
    stream = torch.Generator().manual_seed(0)
    query, directions = (rms_norm(normal(stream, _VECTORS, _DIM)) for _ in range(2))
    lengths = {"equal": torch.ones(_VECTORS, 1), "unequal": torch.exp(normal(stream, _VECTORS, 1))}
    cosine = torch.nn.functional.cosine_similarity(query[:, None], directions, dim=-1)
    for name, length in lengths.items():
        key = directions * length
        itself_first = ((key @ key.mT).argmax(-1) == torch.arange(_VECTORS)).double().mean().item()
        yield Measurement(
            f"{name}_lengths.rank_correlation_with_cosine", _rank_correlation(query @ key.mT, cosine), "1"
        )
        yield Measurement(f"{name}_lengths.itself_first", itself_first, "share")


C54 = Claim(
    id="C54",
    statement=Text(
        en="The dot product of a query and a key measures how alike they are.",
        es="El producto escalar de una query y una key mide cuánto se parecen.",
        pt="O produto escalar de uma query e uma key mede o quanto elas se parecem.",
    ),
    method=Text(
        en="512 random queries and keys, d_k 64, of equal lengths and with lengths e^z, z normal: the rank correlation "
        "of q·k with the cosine over the keys; and how often, among vectors of these lengths, a vector has its largest "
        "product with itself.",
        es="512 queries y keys aleatorias, d_k 64, de longitudes iguales y con longitudes e^z, z normal: la "
        "correlación de rangos de q·k con el coseno sobre las keys; y cuántas veces, entre vectores de esas "
        "longitudes, un vector tiene su producto mayor consigo mismo.",
        pt="512 queries e keys aleatórias, d_k 64, de comprimentos iguais e com comprimentos e^z, z normal: a "
        "correlação de postos de q·k com o cosseno sobre as keys; e quantas vezes, entre vetores desses comprimentos, "
        "um vetor tem seu maior produto consigo mesmo.",
    ),
    measure=_resemblance,
    criterion=(
        Bound(measurement="equal_lengths.rank_correlation_with_cosine", low=0.9999),
        Bound(measurement="equal_lengths.itself_first", low=1.0),
        Bound(measurement="unequal_lengths.rank_correlation_with_cosine", low=0.5),
        Bound(
            measurement="unequal_lengths.itself_first",
            low=0.99,
            role="caveat",
            otherwise=Text(
                en="It is likeness times both lengths: a long key can win over the very vector that is asked for. Only "
                "with a norm on queries and keys, as in Qwen3 and Gemma 3, is it likeness alone.",
                es="Es el parecido por ambas longitudes: una key larga puede ganar al mismo vector que se busca. Solo "
                "con una normalización de queries y keys, como en Qwen3 y Gemma 3, es solo parecido.",
                pt="É a semelhança vezes os dois comprimentos: uma key longa pode ganhar do próprio vetor que se "
                "procura. Só com uma normalização de queries e keys, como no Qwen3 e no Gemma 3, é só semelhança.",
            ),
        ),
    ),
    ops=("attention",),
    source="q·k = ‖q‖ ‖k‖ cos θ; Dehghani et al. 2023 and Yang et al. 2025 (Qwen3) on norms of queries and keys",
)
