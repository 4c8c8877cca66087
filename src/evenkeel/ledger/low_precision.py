"""Claims on attention scores in 16-bit formats (C18)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..functional import Scale, scale_factor
from ._attending import KEYS
from ._claim import Bound, Claim, Measurement
from ._text import Text

_FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_QUERIES, _HEAD_DIM = 256, 128


class _Rounded(NamedTuple):
    relative_error: float
    difference_error: float
    subnormal_scores: float
    subnormal_weights: float


def _rounded(dtype: torch.dtype, scale: Scale) -> _Rounded:
    """Scores and softmax in a 16-bit format, against float64 from the same rounded queries and keys."""
    stream = torch.Generator().manual_seed(_HEAD_DIM)
    query, key = (
        torch.randn(rows, _HEAD_DIM, generator=stream, dtype=torch.float32).to(dtype) for rows in (_QUERIES, KEYS)
    )
    factor = scale_factor(scale, _HEAD_DIM)
    exact = torch.softmax(factor * (query.double() @ key.double().mT), -1)
    scores = (query @ key.mT) * factor
    weights = torch.softmax(scores, -1)
    error, smallest = weights.double() - exact, torch.finfo(dtype).tiny
    return _Rounded(
        relative_error=(error.abs() / exact).mean().item(),
        difference_error=(error.norm() / (exact - 1 / KEYS).norm()).item(),
        subnormal_scores=(scores.abs() < smallest).double().mean().item(),
        subnormal_weights=(weights < smallest).double().mean().item(),
    )


def _small_scores() -> Iterator[Measurement]:
    for name, dtype in _FORMATS.items():
        arms = {scale: _rounded(dtype, scale) for scale in ("sqrt", "dim")}
        for scale, arm in arms.items():
            yield Measurement(f"{name}.{scale}.relative_error", arm.relative_error, "mean |p̂ − p| / p")
            yield Measurement(f"{name}.{scale}.difference_error", arm.difference_error, "‖p̂ − p‖ / ‖p − 1/n‖")
            yield Measurement(f"{name}.{scale}.subnormal_scores", arm.subnormal_scores, "share")
            yield Measurement(f"{name}.{scale}.subnormal_weights", arm.subnormal_weights, "share")
        ratio = arms["dim"].relative_error / arms["sqrt"].relative_error
        yield Measurement(f"{name}.relative_error_of_dim_over_sqrt", ratio, "ratio")


_SHRINKS = Text(
    en="The softmax's relative error is smaller with 1/d_k: rounding is relative, so smaller scores have smaller "
    "errors, and hardly any becomes subnormal. What suffers is another thing: the differences between the weights are "
    "small, and 16 bits resolve them less well.",
    es="El error relativo de la softmax es menor con 1/d_k: el redondeo es relativo, así que puntuaciones más pequeñas "
    "tienen errores más pequeños, y casi ninguna se vuelve subnormal. Lo que sufre es otra cosa: las diferencias "
    "entre los pesos son pequeñas, y 16 bits las distinguen peor.",
    pt="O erro relativo da softmax é menor com 1/d_k: o arredondamento é relativo, então escores menores têm erros "
    "menores, e quase nenhum se torna subnormal. O que sofre é outra coisa: as diferenças entre os pesos são "
    "pequenas, e 16 bits as distinguem pior.",
)

C18 = Claim(
    id="C18",
    statement=Text(
        en="Very small scores, as 1/d_k makes them, are harder to handle precisely in floating point.",
        es="Las puntuaciones muy pequeñas, como las que produce 1/d_k, son más difíciles de manejar con precisión en "
        "coma flotante.",
        pt="Escores muito pequenos, como os que 1/d_k produz, são mais difíceis de tratar com precisão em ponto "
        "flutuante.",
    ),
    method=Text(
        en="Random queries and keys of unit variance, d_k 128, 1024 keys, in bf16 and fp16: the softmax's relative "
        "error against float64, the error relative to the differences between weights, and the share of subnormal "
        "scores and weights, with 1/d_k and with 1/√d_k.",
        es="Queries y keys aleatorias de varianza 1, d_k 128, 1024 keys, en bf16 y fp16: el error relativo de la "
        "softmax frente a float64, el error relativo a las diferencias entre pesos y la proporción de puntuaciones "
        "y pesos subnormales, con 1/d_k y con 1/√d_k.",
        pt="Queries e keys aleatórias de variância 1, d_k 128, 1024 keys, em bf16 e fp16: o erro relativo da softmax "
        "em relação a float64, o erro relativo às diferenças entre pesos e a proporção de escores e pesos "
        "subnormais, com 1/d_k e com 1/√d_k.",
    ),
    measure=_small_scores,
    criterion=(
        Bound(measurement="bfloat16.relative_error_of_dim_over_sqrt", low=1.1, otherwise=_SHRINKS),
        Bound(measurement="float16.relative_error_of_dim_over_sqrt", low=1.1, otherwise=_SHRINKS),
        Bound(measurement="float16.dim.subnormal_scores", low=0.01, otherwise=_SHRINKS),
    ),
    ops=("attention", "softmax"),
    source="IEEE 754-2019: a rounding error is relative down to the smallest normal number; measured here",
)
