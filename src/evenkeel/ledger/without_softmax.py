"""A claim on where softmax is: attention and classifiers that work without it (C42)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._families import deepseek_v3_routers, transformers_installed
from ._slopes import Pointwise
from ._stacks import normal, rms_norm
from ._text import Text
from ._training import SEEDS, interval, networks

_KEYS, _DIM, _BATCH = 16, 32, 16
_RATES, _STEPS = (0.01, 0.03), 150
_LABELS, _FEATURES, _TESTED = 6, 12, 256


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


def _sigmoid(scores: Tensor) -> Tensor:
    return torch.sigmoid(scores - math.log(_KEYS))


def _looked_up(stream: torch.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A query that is one of 16 keys of one length with noise, the keys, their values ±1, and that key's value."""
    keys = rms_norm(normal(stream, SEEDS, batch, _KEYS, _DIM))
    values = torch.randint(0, 2, (SEEDS, batch, _KEYS), generator=stream).double() * 2 - 1
    wanted = torch.randint(0, _KEYS, (SEEDS, batch, 1), generator=stream)
    query = keys.gather(2, wanted[..., None].expand(-1, -1, -1, _DIM))[:, :, 0]
    return query + 0.2 * normal(stream, SEEDS, batch, _DIM), keys, values, values.gather(2, wanted)[..., 0]


def _retrieval(weigh: Pointwise) -> Tensor:
    """For each seed, how often a trained attention head finds the value of the key that the query asks for."""
    heads = networks(_RATES, (_DIM, _DIM), (_DIM, _DIM), (1, 1))
    stream = torch.Generator().manual_seed(1)

    def judged(batch: int) -> tuple[Tensor, Tensor]:
        query, keys, values, wanted = (heads.for_each(item) for item in _looked_up(stream, batch))
        to_query, to_key, size = heads.parameters
        projected = (query @ to_query)[:, :, None]
        scores = (projected * (keys @ to_key[:, None])).sum(-1) * size / math.sqrt(_DIM)
        found = (weigh(scores) * values).sum(-1)
        losses = torch.nn.functional.softplus(-4 * found * wanted).mean(1)
        return losses, ((found > 0) == (wanted > 0)).double().mean(1)

    heads.train(lambda: judged(_BATCH)[0], _STEPS)
    with torch.no_grad():
        losses, right = judged(_TESTED)
    return heads.best(losses, right)[0]


def _label_sets(*, normalised: bool) -> Tensor:
    """For each seed, how often a trained linear head names exactly the labels of an example, each above ½."""
    heads = networks(_RATES, (_FEATURES, _LABELS), (_LABELS,))
    stream = torch.Generator().manual_seed(1)
    truth = normal(stream, SEEDS, _FEATURES, _LABELS)

    def judged(batch: int) -> tuple[Tensor, Tensor]:
        drawn = normal(stream, SEEDS, batch, _FEATURES)
        inputs, labels = heads.for_each(drawn), heads.for_each(((drawn @ truth) > 0).double())
        logits = inputs @ heads.parameters[0] + heads.parameters[1]
        if normalised:
            chances = torch.softmax(logits, -1)
            shares = labels / labels.sum(-1, keepdim=True).clamp_min(1)
            losses = -(shares * torch.log_softmax(logits, -1)).sum(-1).mean(1)
        else:
            chances = torch.sigmoid(logits)
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean((1, 2))
        return losses, ((chances > 0.5) == (labels > 0.5)).all(-1).double().mean(1)

    heads.train(lambda: judged(_BATCH)[0], _STEPS)
    with torch.no_grad():
        losses, right = judged(_TESTED)
    return heads.best(losses, right)[0]


def _elsewhere() -> Iterator[Measurement]:
    attention = {"softmax": _retrieval(_softmax), "sigmoid": _retrieval(_sigmoid)}
    labels = {"softmax": _label_sets(normalised=True), "sigmoid": _label_sets(normalised=False)}
    for name, right in attention.items():
        yield Measurement(f"attention.{name}.found", right.mean().item(), "share")
    yield from interval("attention.sigmoid_over_softmax.found", attention["sigmoid"] - attention["softmax"], "share")
    for name, right in labels.items():
        yield Measurement(f"labels.{name}.exact", right.mean().item(), "share")
    yield from interval("labels.sigmoid_over_softmax.exact", labels["sigmoid"] - labels["softmax"], "share")
    if transformers_installed():
        yield Measurement("deepseek_v3.sigmoid_routers", deepseek_v3_routers(), "sites")


C42 = Claim(
    id="C42",
    statement=Text(
        en="Every attention head and every classifier uses softmax.",
        es="Toda cabeza de atención y todo clasificador usan softmax.",
        pt="Toda cabeça de atenção e todo classificador usam softmax.",
    ),
    method=Text(
        en="Counterexamples. An attention head with the weights σ(score − log n) trained to look up one of 16 keys, "
        "beside one with softmax; a linear head that names any number of 6 labels, with sigmoids and with softmax, "
        "each label above ½: the share found and the share of exact sets, 8 seeds, the better of two learning rates; "
        "and the router of a tiny DeepSeek-V3 from transformers, traced, which classifies tokens by expert.",
        es="Contraejemplos. Una cabeza de atención con los pesos σ(puntuación − log n), entrenada para encontrar una "
        "de 16 keys, junto a una con softmax; una cabeza lineal que nombra cualquier número de 6 etiquetas, con "
        "sigmoides y con softmax, cada etiqueta por encima de ½: la parte encontrada y la parte de conjuntos exactos, "
        "8 semillas, la mejor de dos tasas de aprendizaje; y el router de un DeepSeek-V3 diminuto de transformers, "
        "trazado, que clasifica tokens por experto.",
        pt="Contraexemplos. Uma cabeça de atenção com os pesos σ(escore − log n), treinada para encontrar uma de 16 "
        "keys, ao lado de uma com softmax; uma cabeça linear que nomeia qualquer número de 6 rótulos, com sigmoides e "
        "com softmax, cada rótulo acima de ½: a parte encontrada e a parte de conjuntos exatos, 8 sementes, a melhor "
        "de duas taxas de aprendizado; e o router de um DeepSeek-V3 minúsculo de transformers, rastreado, que "
        "classifica tokens por especialista.",
    ),
    measure=_elsewhere,
    criterion=(
        Bound(
            measurement="attention.sigmoid.found",
            high=0.75,
            otherwise=Text(
                en="Attention works with sigmoid weights, too: they need not sum to 1 for a head to find its key.",
                es="La atención funciona también con pesos sigmoides: no hace falta que sumen 1 para que una cabeza "
                "encuentre su key.",
                pt="A atenção funciona também com pesos sigmoides: eles não precisam somar 1 para que uma cabeça "
                "encontre sua key.",
            ),
        ),
        Bound(
            measurement="labels.sigmoid_over_softmax.exact.low",
            high=0.0,
            otherwise=Text(
                en="Where several labels may be true a classifier has sigmoids: softmax can give more than ½ to one of "
                "them only.",
                es="Donde pueden ser ciertas varias etiquetas un clasificador tiene sigmoides: softmax solo puede dar "
                "más de ½ a una de ellas.",
                pt="Onde vários rótulos podem ser verdadeiros um classificador tem sigmoides: a softmax só pode dar "
                "mais de ½ a um deles.",
            ),
        ),
        Bound(
            measurement="deepseek_v3.sigmoid_routers",
            high=0,
            otherwise=Text(
                en="DeepSeek-V3, a released language model, scores its experts with sigmoids.",
                es="DeepSeek-V3, un modelo de lenguaje publicado, puntúa a sus expertos con sigmoides.",
                pt="O DeepSeek-V3, um modelo de linguagem publicado, pontua seus especialistas com sigmoides.",
            ),
        ),
    ),
    ops=("softmax", "sigmoid"),
    source="Ramapuram et al. 2024 (sigmoid attention and its −log n); DeepSeek-AI 2024, section 2.1.2; measured here",
)
