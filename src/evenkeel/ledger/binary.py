"""Claims that set softmax and sigmoid side by side (C34, C35)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._stacks import normal
from ._text import Text


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)


def _normalised_sigmoids() -> Iterator[Measurement]:
    logits = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    sigmoids = F.sigmoid(logits)
    arms = {
        "softmax": F.softmax(logits, dim=-1),
        "normalised_sigmoids": _normalised(sigmoids),
        "normalised_odds": _normalised(sigmoids / (1 - sigmoids)),
    }
    for name, weights in arms.items():
        for logit, weight in zip((1, 2, 3), weights.tolist(), strict=True):
            yield Measurement(f"{name}.weight_of_{logit}", weight, "share")
    for name in ("normalised_sigmoids", "normalised_odds"):
        distance = (arms[name] - arms["softmax"]).abs().max().item()
        yield Measurement(f"{name}.distance_from_softmax", distance, "1")


C34 = Claim(
    id="C34",
    statement=Text(
        en="Softmax is a set of sigmoids, normalised.",
        es="La softmax es un conjunto de sigmoides normalizadas.",
        pt="A softmax é um conjunto de sigmoides normalizadas.",
    ),
    method=Text(
        en="For logits 1, 2 and 3: softmax, sigmoids divided by their sum, and odds σ/(1 − σ) divided by their sum.",
        es="Con los logits 1, 2 y 3: softmax, sigmoides divididas por su suma y razones σ/(1 − σ) divididas por su "
        "suma.",
        pt="Com os logits 1, 2 e 3: softmax, sigmoides divididas pela sua soma e chances σ/(1 − σ) divididas pela sua "
        "soma.",
    ),
    measure=_normalised_sigmoids,
    criterion=(
        Bound(
            measurement="normalised_sigmoids.distance_from_softmax",
            high=0.01,
            otherwise=Text(
                en="Normalised sigmoids are another distribution, much flatter. Softmax normalises the odds σ/(1 − σ), "
                "that is e^x.",
                es="Las sigmoides normalizadas son otra distribución, mucho más plana. La softmax normaliza las "
                "razones σ/(1 − σ), es decir, e^x.",
                pt="As sigmoides normalizadas são outra distribuição, bem mais plana. A softmax normaliza as chances "
                "σ/(1 − σ), isto é, e^x.",
            ),
        ),
    ),
    ops=("softmax", "sigmoid"),
    source="σ(x)/(1 − σ(x)) = e^x, by definition",
)


def _two_classes() -> Iterator[Measurement]:
    stream = torch.Generator().manual_seed(0)
    pairs = 10 * normal(stream, 10_000, 2)
    difference = F.softmax(pairs, dim=-1)[:, 0] - F.sigmoid(pairs[:, 0] - pairs[:, 1])
    yield Measurement("two_class_softmax.distance_from_sigmoid", difference.abs().max().item(), "1")

    inputs, true_weights = normal(stream, 20_000, 8), normal(stream, 8)
    chances = F.sigmoid(inputs @ true_weights)
    labels = (torch.rand(chances.shape, generator=stream, dtype=torch.float64) < chances).double()
    weights = torch.zeros(8, dtype=torch.float64)
    for _ in range(10):  # Newton's method on the binary cross-entropy
        predicted = F.sigmoid(inputs @ weights)
        curvature = inputs.mT @ (inputs * (predicted * (1 - predicted))[:, None])
        weights = weights + torch.linalg.solve(curvature, inputs.mT @ (labels - predicted))
    predicted = F.sigmoid(inputs @ weights)
    yield Measurement("binary_classifier.probability_error", (predicted - chances).abs().mean().item(), "1")
    agree = ((predicted > 0.5) == (chances > 0.5)).double().mean().item()
    yield Measurement("binary_classifier.decisions_as_the_truth", agree, "share")


C35 = Claim(
    id="C35",
    statement=Text(
        en="For binary decisions the sigmoid works.",
        es="Para decisiones binarias la sigmoide funciona.",
        pt="Para decisões binárias a sigmoide funciona.",
    ),
    method=Text(
        en="The distance between a two-class softmax and the sigmoid of the difference of its logits; and a classifier "
        "with a sigmoid fitted to 20,000 labels drawn with known probabilities: how far its own are off.",
        es="La distancia entre una softmax de dos clases y la sigmoide de la diferencia de sus logits; y un "
        "clasificador con sigmoide ajustado a 20 000 etiquetas sorteadas con probabilidades conocidas: cuánto se "
        "desvían las suyas.",
        pt="A distância entre uma softmax de duas classes e a sigmoide da diferença dos seus logits; e um "
        "classificador com sigmoide ajustado a 20.000 rótulos sorteados com probabilidades conhecidas: quanto as suas "
        "se desviam.",
    ),
    measure=_two_classes,
    criterion=(
        Bound(measurement="two_class_softmax.distance_from_sigmoid", high=1e-12),
        Bound(measurement="binary_classifier.probability_error", high=0.02),
        Bound(measurement="binary_classifier.decisions_as_the_truth", low=0.97),
    ),
    ops=("sigmoid", "softmax"),
    source="e^a / (e^a + e^b) = σ(a − b), by definition; Cox 1958",
)
