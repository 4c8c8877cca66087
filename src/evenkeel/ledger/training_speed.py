"""Claims on what makes training fast and reliable (C39)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..studies import Comparison, TrialResult
from ..studies.judging import steps_to
from ._claim import Bound, Claim, Measurement
from ._contrasts import arm, contrast
from ._studies import Comparisons
from ._text import Text

_MODERN = ("relu", "gelu", "silu")


def _share_of_steps(run: Comparison, name: str, target: float) -> float:
    """The share of the steps after which an arm's mean curve passes a loss; infinite where it never does."""
    steps = steps_to(target, paired(run, name))
    return math.inf if math.isnan(steps) else steps / run.steps


def paired(run: Comparison, name: str) -> list[TrialResult]:
    """The trials of an arm that are compared."""
    rate = arm(run, name).learning_rate
    return [
        result
        for result in run.results
        if (result.point.arm, result.point.role, result.point.learning_rate) == (name, "paired", rate)
    ]


def _training(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["feedforward"]
    sigmoid = arm(run, "sigmoid")
    for name in (*_MODERN, "sigmoid"):
        found = arm(run, name)
        tuning = [item for item in run.results if item.point.arm == name and item.point.role == "tuning"]
        diverged = [item.diverged for item in (*tuning, *paired(run, name))]
        yield Measurement(f"{name}.steps_to_sigmoids_loss", _share_of_steps(run, name, sigmoid.mean), "share of steps")
        yield Measurement(f"{name}.sensitivity", found.sensitivity, "nats/token")
        yield Measurement(f"{name}.diverged", sum(diverged) / max(1, len(diverged)), "share of trials")
        yield Measurement(f"{name}.deviation", found.deviation, "nats/token")
    for name in _MODERN:
        lead = arm(run, name).sensitivity - sigmoid.sensitivity
        yield Measurement(f"{name}_over_sigmoid.sensitivity", lead, "nats/token")
        yield from contrast(run, "sigmoid", name, f"sigmoid_over_{name}")


C39 = Claim(
    id="C39",
    statement=Text(
        en="With ReLU, GELU or SiLU models train faster and more reliably than with the sigmoid.",
        es="Con ReLU, GELU o SiLU los modelos se entrenan más rápido y de forma más fiable que con la sigmoide.",
        pt="Com ReLU, GELU ou SiLU os modelos treinam mais rápido e de forma mais confiável do que com a sigmoide.",
    ),
    method=Text(
        en="Small language models, equal parameters, tuned learning rates, paired seeds. Fast: the share of the steps "
        "after which the mean held-out loss passes the one that the sigmoid ends with (all on one schedule). Reliable: "
        "the share of all trials that diverged, and how much loss a wrong learning rate costs on average (sensitivity, "
        "Wortsman 2023).",
        es="Modelos de lenguaje pequeños, iguales en parámetros, tasas de aprendizaje ajustadas, semillas pareadas. "
        "Rápido: la parte de los pasos tras la cual la pérdida media en texto apartado pasa aquella con la que termina "
        "la sigmoide (todos con un mismo plan). Fiable: la parte de todos los ensayos que divergieron, y cuánta "
        "pérdida cuesta en promedio una tasa de aprendizaje equivocada (sensibilidad, Wortsman 2023).",
        pt="Modelos de linguagem pequenos, iguais em parâmetros, taxas de aprendizado ajustadas, sementes pareadas. "
        "Rápido: a parte dos passos após a qual a perda média em texto reservado passa aquela com que a sigmoide "
        "termina (todos com um mesmo plano). Confiável: a parte de todos os ensaios que divergiram, e quanta perda uma "
        "taxa de aprendizado errada custa em média (sensibilidade, Wortsman 2023).",
    ),
    studies=("feedforward",),
    trained=_training,
    criterion=(
        *(Bound(measurement=f"sigmoid_over_{name}.decided", low=1, role="noise") for name in _MODERN),
        *(
            Bound(
                measurement=f"{name}.steps_to_sigmoids_loss",
                high=0.9,
                otherwise=Text(
                    en="One of them does not save a tenth of the steps to the loss that the sigmoid ends with.",
                    es="Una de ellas no ahorra una décima parte de los pasos hasta la pérdida con la que termina la "
                    "sigmoide.",
                    pt="Uma delas não poupa um décimo dos passos até a perda com que a sigmoide termina.",
                ),
            )
            for name in _MODERN
        ),
        *(
            Bound(
                measurement=f"{name}.diverged",
                high=0,
                role="caveat",
                otherwise=Text(
                    en="Trials with them diverge too.",
                    es="También divergen ensayos con ellas.",
                    pt="Ensaios com elas também divergem.",
                ),
            )
            for name in _MODERN
        ),
        *(
            Bound(
                measurement=f"{name}_over_sigmoid.sensitivity",
                high=0,
                role="caveat",
                otherwise=Text(
                    en="Faster, but not more reliable in every way: a wrong learning rate costs one of them more than "
                    "the sigmoid.",
                    es="Más rápidas, pero no más fiables en todo: una tasa de aprendizaje equivocada le cuesta a una "
                    "de ellas más que a la sigmoide.",
                    pt="Mais rápidas, mas não mais confiáveis em tudo: uma taxa de aprendizado errada custa a uma "
                    "delas mais do que à sigmoide.",
                ),
            )
            for name in _MODERN
        ),
    ),
    ops=("relu", "gelu", "silu", "sigmoid"),
    source="measured here; sensitivity: Wortsman et al. 2023",
)
