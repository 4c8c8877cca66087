"""Claims on what softmax gives: amplification, positive values, peaks (C20, C41, C43)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._text import Text

_VOCABULARY = 128_256
_FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

Softmax = Callable[[Tensor], Tensor]


def _ours(logits: Tensor) -> Tensor:
    return F.softmax(logits, dim=-1)


def _torchs(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1)


_IMPLEMENTATIONS: dict[str, Softmax] = {"torch": _torchs, "evenkeel": _ours}


def _logits(count: int, spread: float, rows: int = 1) -> Tensor:
    """Normal logits of a standard deviation of `spread`, (rows, count), float32."""
    return spread * torch.randn(rows, count, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def _amplification() -> Iterator[Measurement]:
    pair = _ours(torch.tensor([10.0, 5.0], dtype=torch.float64))
    yield Measurement("logits_10_and_5.ratio", (pair[0] / pair[1]).item(), "ratio")
    logits = _logits(_VOCABULARY, 4.0)
    order = logits[0].argsort()
    for name, softmax in _IMPLEMENTATIONS.items():
        weights = softmax(logits)[0]
        yield Measurement(f"{name}.sum_error", abs(weights.double().sum().item() - 1), "1")
        yield Measurement(f"{name}.smallest_weight", weights.min().item(), "1")
        falls = (weights[order].diff() < 0).double().mean().item()
        yield Measurement(f"{name}.order_violations", falls, "share")


_LAST_BIT = Text(
    en="Where two logits all but agree, rounding can give the larger one the smaller weight, by its last bits.",
    es="Cuando dos logits casi coinciden, el redondeo puede dar al mayor el peso menor, por sus últimos bits.",
    pt="Quando dois logits quase coincidem, o arredondamento pode dar ao maior o menor peso, nos últimos bits.",
)

C20 = Claim(
    id="C20",
    statement=Text(
        en="Softmax gives positive values that sum to 1 and amplifies differences: logits 10 and 5 become about 150 to "
        "1.",
        es="La softmax da valores positivos que suman 1 y amplifica las diferencias: los logits 10 y 5 pasan a ser "
        "unos 150 a 1.",
        pt="A softmax dá valores positivos que somam 1 e amplifica as diferenças: os logits 10 e 5 passam a ser cerca "
        "de 150 para 1.",
    ),
    method=Text(
        en="The ratio for logits 10 and 5; over 128,256 logits from N(0, 4²) in float32, the error of the sum, the "
        "smallest weight, and whether a larger logit ever gets a smaller weight.",
        es="La razón para los logits 10 y 5; con 128 256 logits de N(0, 4²) en float32, el error de la suma, el peso "
        "menor y si alguna vez un logit mayor recibe un peso menor.",
        pt="A razão para os logits 10 e 5; com 128.256 logits de N(0, 4²) em float32, o erro da soma, o menor peso e "
        "se alguma vez um logit maior recebe um peso menor.",
    ),
    measure=_amplification,
    criterion=(
        Bound(measurement="logits_10_and_5.ratio", low=140.0, high=160.0),
        *(
            bound
            for name in _IMPLEMENTATIONS
            for bound in (
                Bound(measurement=f"{name}.sum_error", high=1e-4),
                Bound(measurement=f"{name}.smallest_weight", low=torch.finfo(torch.float32).tiny),
                Bound(measurement=f"{name}.order_violations", high=1e-4),
                Bound(measurement=f"{name}.order_violations", high=0.0, role="caveat", otherwise=_LAST_BIT),
            )
        ),
    ),
    ops=("softmax",),
    source="e⁵ = 148.4, by definition",
)


_SPREADS = {"tenth": 0.1, "one": 1.0, "four": 4.0, "ten": 10.0}


def _peaks() -> Iterator[Measurement]:
    for name, spread in _SPREADS.items():
        weights = _ours(_logits(1000, spread, rows=256))
        entropy = -torch.xlogy(weights, weights).sum(-1).mean().item()
        yield Measurement(f"spread_{name}.largest_weight", weights.amax(-1).mean().item(), "share")
        yield Measurement(f"spread_{name}.entropy_share", entropy / math.log(weights.shape[-1]), "share of log n")


C41 = Claim(
    id="C41",
    statement=Text(
        en="Softmax by its nature gives peaked distributions rather than uniform ones, and so makes models confident.",
        es="La softmax da por naturaleza distribuciones concentradas y no uniformes, y por eso los modelos se muestran "
        "tan seguros.",
        pt="A softmax dá por natureza distribuições concentradas e não uniformes, e por isso os modelos se mostram "
        "tão confiantes.",
    ),
    method=Text(
        en="The largest weight and the entropy for 1000 normal logits of standard deviation 0.1, 1, 4 and 10.",
        es="El peso mayor y la entropía con 1000 logits normales de desviación típica 0.1, 1, 4 y 10.",
        pt="O maior peso e a entropia com 1000 logits normais de desvio padrão 0.1, 1, 4 e 10.",
    ),
    measure=_peaks,
    criterion=(
        Bound(measurement="spread_ten.largest_weight", low=0.5),
        Bound(
            measurement="spread_one.largest_weight",
            low=0.5,
            role="caveat",
            otherwise=Text(
                en="Only if the logits are far apart. With a standard deviation of 1 the same function is close to "
                "uniform: the confidence comes from the scale of the logits that the model has learned.",
                es="Solo si los logits están muy separados. Con una desviación típica de 1 la misma función es casi "
                "uniforme: la confianza viene de la escala de los logits que el modelo ha aprendido.",
                pt="Só se os logits estiverem bem separados. Com desvio padrão 1 a mesma função é quase uniforme: a "
                "confiança vem da escala dos logits que o modelo aprendeu.",
            ),
        ),
    ),
    ops=("softmax",),
    source="the entropy of softmax(s·z) falls steadily with s; Guo et al. 2017 on confidence and temperature",
)


def _zero_from_gap(softmax: Softmax, dtype: torch.dtype) -> float:
    """The smallest gap below the maximum, to 1/64, from which on a weight is exactly 0."""
    gaps = (torch.arange(1, 64 * 1024 + 1, dtype=torch.float64) / 64).to(dtype)
    weights = softmax(torch.stack([torch.zeros_like(gaps), -gaps], -1))[:, 1]
    positive = weights.nonzero()
    first = 0 if positive.numel() == 0 else int(positive.max()) + 1
    return math.inf if first == gaps.numel() else gaps[first].item()


def _positivity() -> Iterator[Measurement]:
    pair = torch.tensor([0.0, -1000.0], dtype=torch.float64)
    yield Measurement("log_weight_at_gap_1000", torch.log_softmax(pair, -1)[1].item(), "nats")
    for name, softmax in _IMPLEMENTATIONS.items():
        for dtype_name, dtype in _FORMATS.items():
            yield Measurement(f"{name}.{dtype_name}.zero_from_gap", _zero_from_gap(softmax, dtype), "logit")
    logits = _logits(_VOCABULARY, 4.0)
    for dtype_name in ("float32", "bfloat16", "float16"):
        weights = _torchs(logits.to(_FORMATS[dtype_name]))
        share = (weights == 0).double().mean().item()
        yield Measurement(f"torch.{dtype_name}.zero_share_of_vocabulary", share, "share")


C43 = Claim(
    id="C43",
    statement=Text(
        en="Softmax makes every value positive.",
        es="La softmax vuelve positivos todos los valores.",
        pt="A softmax torna positivos todos os valores.",
    ),
    method=Text(
        en="The gap below the largest logit from which the weight is exactly 0, in each format; the logarithm of the "
        "weight at a gap of 1000; and the share of zeros among 128,256 logits from N(0, 4²).",
        es="La distancia al logit mayor a partir de la cual el peso es exactamente 0, en cada formato; el logaritmo "
        "del peso a distancia 1000; y la proporción de ceros entre 128 256 logits de N(0, 4²).",
        pt="A distância ao maior logit a partir da qual o peso é exatamente 0, em cada formato; o logaritmo do peso à "
        "distância 1000; e a proporção de zeros entre 128.256 logits de N(0, 4²).",
    ),
    measure=_positivity,
    criterion=(
        Bound(measurement="log_weight_at_gap_1000", low=-1001.0, high=-999.0),
        Bound(
            measurement="torch.float32.zero_from_gap",
            low=1000.0,
            role="caveat",
            otherwise=Text(
                en="True of real numbers; in floating point a weight far enough below the largest is exactly 0 "
                "(float32: 104 below). Its logarithm stays finite: work with log-softmax.",
                es="Cierto en números reales; en coma flotante un peso lo bastante por debajo del mayor es exactamente "
                "0 (float32: 104 por debajo). Su logaritmo sigue siendo finito: conviene usar log-softmax.",
                pt="Verdade em números reais; em ponto flutuante um peso bem abaixo do maior é exatamente 0 (float32: "
                "104 abaixo). Seu logaritmo continua finito: convém usar log-softmax.",
            ),
        ),
        Bound(
            measurement="torch.float16.zero_share_of_vocabulary",
            high=0.01,
            role="caveat",
            otherwise=Text(
                en="In fp16 most weights of a large vocabulary are exactly 0 already at ordinary logits.",
                es="En fp16 la mayoría de los pesos de un vocabulario grande ya son exactamente 0 con logits "
                "corrientes.",
                pt="Em fp16 a maioria dos pesos de um vocabulário grande já é exatamente 0 com logits comuns.",
            ),
        ),
    ),
    ops=("softmax", "log_softmax"),
    source="the smallest number of each format: log 2⁻¹⁴⁹ = −103.28 in float32, half of it still rounds up",
)
