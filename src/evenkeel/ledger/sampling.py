"""Claims on what temperature and top-p do to softmax's distribution (C21, C24)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional as F
from ..reference import sampling as reference
from ._claim import Bound, Claim, Measurement
from ._text import Text

_LADDER = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 10.0)
_TEMPERATURES = {"half": 0.5, "one": 1.0, "two": 2.0}
_SHARES = {"p_50": 0.5, "p_90": 0.9, "p_99": 0.99}
_DRAWS = 100_000


def _logits(rows: int, count: int) -> Tensor:
    """Normal logits of standard deviation 3, (rows, count), float64."""
    return 3 * torch.randn(rows, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _apart(p: Tensor, other: Tensor) -> float:
    """The mean total variation distance."""
    return (p - other).abs().sum(-1).mean().item() / 2


def _ladder_of_temperatures() -> Iterator[Measurement]:
    logits = _logits(64, 1000)
    heated = {temperature: F.distribution(logits, temperature=temperature) for temperature in _LADDER}
    for name, temperature in _TEMPERATURES.items():
        yield Measurement(f"{name}.entropy", _entropy(heated[temperature]).mean().item(), "nats")
        yield Measurement(f"{name}.largest_weight", heated[temperature].amax(-1).mean().item(), "share")
    entropies = torch.stack([_entropy(p) for p in heated.values()])
    largest = torch.stack([p.amax(-1) for p in heated.values()])
    first = torch.stack([p.argmax(-1) for p in heated.values()])
    yield Measurement("ladder.smallest_rise_of_entropy", entropies.diff(dim=0).min().item(), "nats")
    yield Measurement("ladder.smallest_fall_of_largest_weight", -largest.diff(dim=0).max().item(), "share")
    yield Measurement("ladder.argmax_changes", (first != logits.argmax(-1)).double().mean().item(), "share")
    yield Measurement("one.distance_from_softmax", _apart(heated[1.0], F.softmax(logits, dim=-1)), "1")
    by_formula, by_convention = torch.softmax(logits / 0.0, -1), F.distribution(logits, temperature=0.0)
    yield Measurement("zero.defined_by_formula", by_formula.isfinite().double().mean().item(), "share")
    of_the_first = by_convention.gather(-1, logits.argmax(-1, keepdim=True))
    yield Measurement("zero.weight_of_argmax_by_convention", of_the_first.mean().item(), "share")
    before, after = (
        F.distribution(logits, temperature=2.0, top_p=0.9, order=order) for order in ("transformers", "llama.cpp")
    )
    yield Measurement("transformers.support", (before > 0).sum(-1).double().mean().item(), "tokens")
    yield Measurement("llama_cpp.support", (after > 0).sum(-1).double().mean().item(), "tokens")
    yield Measurement("orders.distance", _apart(before, after), "1")


C21 = Claim(
    id="C21",
    statement=Text(
        en="Logits are divided by a temperature T before the softmax: T < 1 sharpens the distribution, T > 1 flattens "
        "it, T = 1 leaves it as it is; this is exactly what the temperature of LLM services does.",
        es="Los logits se dividen por una temperatura T antes de la softmax: T < 1 agudiza la distribución, T > 1 la "
        "aplana, T = 1 la deja como está; eso es exactamente lo que hace la temperatura de los servicios de LLM.",
        pt="Os logits são divididos por uma temperatura T antes da softmax: T < 1 concentra a distribuição, T > 1 a "
        "achata, T = 1 a deixa como está; é exatamente isso que faz a temperatura dos serviços de LLM.",
    ),
    method=Text(
        en="64 rows of 1000 normal logits of standard deviation 3, at nine temperatures from 0.1 to 10: whether "
        "entropy rises and the largest weight falls from each to the next, and whether another token ever comes "
        "first; the distance from softmax at 1; what the formula gives at 0; and, with top-p 0.9 at T = 2, how far "
        "apart the two usual conventions are: temperature before the filter (transformers) and after it (llama.cpp).",
        es="64 filas de 1000 logits normales de desviación típica 3, con nueve temperaturas de 0.1 a 10: si de cada "
        "una a la siguiente sube la entropía y baja el peso mayor, y si alguna vez pasa a ser otro el primer token; "
        "la distancia a la softmax con 1; qué da la fórmula con 0; y, con top-p 0.9 y T = 2, cuánto distan las dos "
        "convenciones habituales: la temperatura antes del filtro (transformers) y después (llama.cpp).",
        pt="64 linhas de 1000 logits normais de desvio padrão 3, com nove temperaturas de 0.1 a 10: se de cada uma "
        "para a seguinte a entropia sobe e o maior peso cai, e se alguma vez outro token passa a ser o primeiro; a "
        "distância da softmax com 1; o que a fórmula dá com 0; e, com top-p 0.9 e T = 2, quanto distam as duas "
        "convenções usuais: a temperatura antes do filtro (transformers) e depois (llama.cpp).",
    ),
    measure=_ladder_of_temperatures,
    criterion=(
        Bound(measurement="ladder.smallest_rise_of_entropy", low=1e-9),
        Bound(measurement="ladder.smallest_fall_of_largest_weight", low=1e-9),
        Bound(measurement="ladder.argmax_changes", high=0.0),
        Bound(measurement="one.distance_from_softmax", high=1e-12),
        Bound(
            measurement="zero.defined_by_formula",
            low=1.0,
            role="caveat",
            otherwise=Text(
                en="Not at T = 0, which services accept: there the formula divides by 0, and by convention the most "
                "probable token is taken.",
                es="No con T = 0, que los servicios admiten: ahí la fórmula divide por 0, y por convención se toma el "
                "token más probable.",
                pt="Não com T = 0, que os serviços aceitam: ali a fórmula divide por 0, e por convenção se toma o "
                "token mais provável.",
            ),
        ),
        Bound(
            measurement="orders.distance",
            high=0.01,
            role="caveat",
            otherwise=Text(
                en="As soon as a filter such as top-p is set, it matters where the temperature stands: before the "
                "filters it also changes which tokens are left (transformers), after them it only weighs these anew "
                "(llama.cpp).",
                es="En cuanto hay un filtro como top-p importa dónde está la temperatura: antes de los filtros cambia "
                "también qué tokens quedan (transformers); después de ellos solo los pondera de nuevo (llama.cpp).",
                pt="Assim que há um filtro como top-p, importa onde fica a temperatura: antes dos filtros ela muda "
                "também quais tokens restam (transformers); depois deles só os pondera de novo (llama.cpp).",
            ),
        ),
    ),
    ops=("softmax", "distribution"),
    source="dH/dT = Var(logits)/T³ ≥ 0, the variance under the distribution at T; the orders as in transformers 5 and "
    "llama.cpp",
)


def _support_and_mass() -> Iterator[Measurement]:
    logits = _logits(16, 500)
    plain = F.softmax(logits, dim=-1)
    supports, differing, excess, short, error, powers = {}, [], [], [], [], []
    for heat, temperature in _TEMPERATURES.items():
        whole = F.distribution(logits, temperature=temperature)
        powered = plain ** (1 / temperature)
        powers.append(_apart(whole, powered / powered.sum(-1, keepdim=True)))
        for name, p in _SHARES.items():
            found = F.distribution(logits, temperature=temperature, top_p=p)
            exact = torch.stack([reference.distribution(row, temperature=temperature, top_p=p) for row in logits])
            kept = found > 0
            mass = (whole * kept).sum(-1)
            least = torch.where(kept, whole, math.inf).amin(-1)
            differing.append((kept != (exact > 0)).any(-1).double().mean().item())
            error.append((found - torch.where(kept, whole, 0) / mass.unsqueeze(-1)).abs().max().item())
            excess.append((mass - p).min().item())
            short.append((mass - least - p).max().item())
            supports[heat, name] = kept.sum(-1).double().mean().item()
            yield Measurement(f"{heat}.{name}.support", supports[heat, name], "tokens")
    yield Measurement("temperature.distance_from_powers", max(powers), "1")
    yield Measurement("top_p.rows_unlike_the_definition", max(differing), "share")
    yield Measurement("top_p.smallest_mass_beyond_p", min(excess), "share")
    yield Measurement("top_p.largest_mass_beyond_p_without_the_last", max(short), "share")
    yield Measurement("top_p.error_of_what_is_left", max(error), "1")
    yield Measurement("support.growth_with_temperature", supports["two", "p_90"] / supports["half", "p_90"], "ratio")
    yield Measurement("support.growth_with_p", supports["one", "p_99"] / supports["one", "p_50"], "ratio")
    drawn = F.sample(
        logits[:1].expand(_DRAWS, -1), temperature=2.0, top_p=0.9, seeds=0, position=torch.arange(_DRAWS)
    ).tokens
    counts = torch.bincount(drawn, minlength=logits.shape[-1]).double()
    expected = _DRAWS * F.distribution(logits[0], temperature=2.0, top_p=0.9)
    often = expected > 0
    deviation = (counts - expected)[often] / (expected * (1 - expected / _DRAWS))[often].sqrt()
    yield Measurement("draws.largest_deviation", deviation.abs().max().item(), "standard deviations")
    yield Measurement("draws.outside_the_support", counts[~often].sum().item(), "count")


C24 = Claim(
    id="C24",
    statement=Text(
        en="Temperature and top-p sampling act on the distribution that softmax gives.",
        es="La temperatura y el muestreo top-p actúan sobre la distribución que da la softmax.",
        pt="A temperatura e a amostragem top-p agem sobre a distribuição que a softmax dá.",
    ),
    method=Text(
        en="16 rows of 500 normal logits of standard deviation 3, T 0.5, 1 and 2, top-p 0.5, 0.9 and 0.99: whether a "
        "temperature raises softmax's probabilities to the power 1/T; whether what top-p leaves is the shortest "
        "prefix of the sorted distribution whose mass reaches p, each token with its share of that mass; how many "
        "tokens that are; and how far the counts of 100,000 draws lie from what is expected.",
        es="16 filas de 500 logits normales de desviación típica 3, T 0.5, 1 y 2, top-p 0.5, 0.9 y 0.99: si una "
        "temperatura eleva las probabilidades de la softmax a la potencia 1/T; si lo que deja top-p es el prefijo más "
        "corto de la distribución ordenada cuya masa llega a p, cada token con su parte de esa masa; cuántos tokens "
        "son; y cuánto se apartan de lo esperado los recuentos de 100 000 extracciones.",
        pt="16 linhas de 500 logits normais de desvio padrão 3, T 0.5, 1 e 2, top-p 0.5, 0.9 e 0.99: se uma "
        "temperatura eleva as probabilidades da softmax à potência 1/T; se o que top-p deixa é o menor prefixo da "
        "distribuição ordenada cuja massa chega a p, cada token com sua parte dessa massa; quantos tokens são; e "
        "quanto as contagens de 100.000 sorteios se afastam do esperado.",
    ),
    measure=_support_and_mass,
    criterion=(
        Bound(measurement="temperature.distance_from_powers", high=1e-12),
        Bound(measurement="top_p.rows_unlike_the_definition", high=0.0),
        Bound(measurement="top_p.smallest_mass_beyond_p", low=-1e-12),
        Bound(measurement="top_p.largest_mass_beyond_p_without_the_last", high=1e-12),
        Bound(measurement="top_p.error_of_what_is_left", high=1e-12),
        Bound(measurement="support.growth_with_temperature", low=1.5),
        Bound(measurement="support.growth_with_p", low=1.5),
        Bound(measurement="draws.largest_deviation", high=5.0),
        Bound(measurement="draws.outside_the_support", high=0.0),
    ),
    ops=("softmax", "distribution", "sample"),
    source="softmax(x/T) ∝ softmax(x)^(1/T); Holtzman et al. 2020 (top-p); here against a sort of the whole vocabulary",
)
