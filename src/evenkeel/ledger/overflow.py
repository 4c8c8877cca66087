"""A claim on large logits: where exp overflows, and who subtracts the maximum (C22)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._softmaxes import IMPLEMENTATIONS, Softmax
from ._text import Text

_FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def _overflow_from(dtype: torch.dtype) -> float:
    """The smallest value of a format whose exponential is infinite, by bisection."""
    low, high = 0.0, 1024.0
    while True:
        middle = torch.tensor((low + high) / 2, dtype=torch.float64).to(dtype).item()
        if middle in (low, high):
            return high
        low, high = (low, middle) if torch.tensor(middle, dtype=dtype).exp().isinf() else (middle, high)


_LARGE = torch.tensor([1000.0, 999.0, 0.0, -1000.0], dtype=torch.float32)
_EXPECTED = torch.tensor([1.0, math.exp(-1), 0.0, 0.0], dtype=torch.float32) / (1 + math.exp(-1))


def _survives(softmax: Softmax) -> float:
    """1 where large logits get their right weights; our kernels floor an exponential at about 1e-38 in place of 0."""
    return float(torch.allclose(softmax(_LARGE).to(_EXPECTED.dtype), _EXPECTED, rtol=1e-5, atol=1e-30))


def _by_hand(logits: Tensor) -> Tensor:
    """The definition as one types it with NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.exp(logits.numpy())
        return torch.from_numpy(powers / powers.sum())


def _stability() -> Iterator[Measurement]:
    for name, dtype in _FORMATS.items():
        yield Measurement(f"{name}.exp_overflows_from", _overflow_from(dtype), "logit")
    moderate = 4 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float32).double()
    change = F.naive_softmax(moderate, dim=-1) / F.naive_softmax(moderate - moderate.max(), dim=-1) - 1
    yield Measurement("subtracting_the_maximum.relative_change", change.abs().max().item(), "1")
    yield Measurement("by_definition.survives", _survives(lambda logits: F.naive_softmax(logits, dim=-1)), "1")
    yield Measurement("numpy_by_hand.survives", _survives(_by_hand), "1")
    survivors = []
    for name, load in IMPLEMENTATIONS.items():
        try:
            softmax = load()
        except ImportError:
            yield Measurement(f"{name}.not_installed", 1.0, "1")
            continue
        survivors.append(_survives(softmax))
        yield Measurement(f"{name}.survives", survivors[-1], "1")
    yield Measurement("implementations", float(len(survivors)), "count")
    yield Measurement("implementations.survivors", sum(survivors) / len(survivors), "share")


C22 = Claim(
    id="C22",
    statement=Text(
        en="exp overflows for large logits; subtracting the maximum cures that without changing the result, and every "
        "production softmax does it.",
        es="exp se desborda con logits grandes; restar el máximo lo remedia sin cambiar el resultado, y toda softmax "
        "de producción lo hace.",
        pt="exp estoura com logits grandes; subtrair o máximo resolve isso sem mudar o resultado, e toda softmax de "
        "produção faz isso.",
    ),
    method=Text(
        en="The logit from which exp is infinite in each format; by how much subtracting the maximum changes the "
        "definition in float64; and which installed implementations give the right answer for logits up to 1000 "
        "(torch with its fused attention, evenkeel with its attention and sampler, and where installed scipy, "
        "scikit-learn, jax, onnxruntime and the top-p filter of transformers), beside the definition by hand.",
        es="El logit a partir del cual exp es infinito en cada formato; cuánto cambia la definición en float64 al "
        "restar el máximo; y qué implementaciones instaladas aciertan con logits de hasta 1000 (torch con "
        "su atención fusionada, evenkeel con su atención y su muestreo y, si están instalados, scipy, scikit-learn, "
        "jax, onnxruntime y el filtro top-p de transformers), junto a la definición escrita a mano.",
        pt="O logit a partir do qual exp é infinito em cada formato; quanto a subtração do máximo muda a definição em "
        "float64; e quais implementações instaladas acertam com logits de até 1000 (torch "
        "com sua atenção fundida, evenkeel com sua atenção e sua amostragem e, se instalados, scipy, scikit-learn, "
        "jax, onnxruntime e o filtro top-p do transformers), ao lado da definição escrita à mão.",
    ),
    measure=_stability,
    criterion=(
        Bound(measurement="float32.exp_overflows_from", high=89.0),
        Bound(measurement="bfloat16.exp_overflows_from", high=89.5),
        Bound(measurement="float16.exp_overflows_from", high=11.2),
        Bound(measurement="by_definition.survives", high=0.0),
        Bound(measurement="numpy_by_hand.survives", high=0.0),
        Bound(measurement="subtracting_the_maximum.relative_change", high=1e-13),
        Bound(measurement="implementations.survivors", low=1.0),
        Bound(measurement="implementations", low=3.0, role="noise"),
    ),
    ops=("softmax", "naive_softmax"),
    source="log of each format's largest number: 88.72 in float32, 11.09 in float16; Blanchard, Higham and Higham 2021",
)
