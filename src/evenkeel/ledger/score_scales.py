"""Claims on the scale of attention scores in trained models (C19, and C16's trained arms)."""

from __future__ import annotations

from collections.abc import Iterator

from ..studies import TrialResult
from ._claim import Bound, Claim, Measurement
from ._contrasts import arm, contrast, difference, health_by_seed
from ._studies import Comparisons
from ._text import Text
from .training_speed import paired

HEAD_DIMS = (16, 64)
_USED = {
    "none": Text(en="without a factor", es="sin factor", pt="sem fator"),
    "dim": Text(en="with 1/d_k", es="con 1/d_k", pt="com 1/d_k"),
}
"""What models in use have in place of 1/√d_k."""
_OTHERS = ("none", "dim", "folded")
_ENTROPY = "attention entropy / maximum"


def _copying(trials: list[TrialResult]) -> dict[int, float]:
    return {trial.point.seed: trial.copy_loss for trial in trials}


def trained_scales(runs: Comparisons) -> Iterator[Measurement]:
    """At each d_k: what no scale, 1/d_k and T5's folded one lose against 1/√d_k; copying; entropies."""
    run = runs["scale"]
    for head_dim in HEAD_DIMS:
        base = _copying(paired(run, f"sqrt {head_dim}"))
        for name in ("sqrt", *_OTHERS):
            found, prefix = arm(run, f"{name} {head_dim}"), f"trained.{head_dim}.{name}"
            yield Measurement(f"{prefix}.loss", found.mean, "nats/token")
            yield Measurement(f"{prefix}.copy_loss", found.copy_loss, "nats/token")
            yield Measurement(f"{prefix}.learning_rate", found.learning_rate, "1")
            yield Measurement(f"{prefix}.sensitivity", found.sensitivity, "nats/token")
            yield Measurement(f"{prefix}.diverged", found.diverged, "trials")
            entropies = health_by_seed(run, f"{name} {head_dim}", _ENTROPY).values()
            if entropies:
                yield Measurement(f"{prefix}.entropy_share", sum(entropies) / len(entropies), "share of log n")
        for name in _OTHERS:
            prefix = f"trained.{head_dim}.{name}_over_sqrt"
            yield from contrast(run, f"{name} {head_dim}", f"sqrt {head_dim}", prefix)
            copied = _copying(paired(run, f"{name} {head_dim}"))
            losses = {seed: copied[seed] - base[seed] for seed in sorted(copied.keys() & base.keys())}
            yield from difference(losses, f"{prefix}.copying", "nats/token", run.study.margin)


C19 = Claim(
    id="C19",
    statement=Text(
        en="Dividing by √d_k works over a wide range of d_k: training is stable and models perform well.",
        es="Dividir por √d_k funciona en un amplio rango de d_k: el entrenamiento es estable y el rendimiento bueno.",
        pt="Dividir por √d_k funciona em uma ampla faixa de d_k: o treino é estável e o desempenho bom.",
    ),
    method=Text(
        en="Small language models with heads of 16 and of 64 and as many parameters, tuned learning rates, paired "
        "seeds. Scores times 1/√d_k against three others: no factor, 1/d_k, and T5's way, no factor but queries that "
        "start 1/√d_k as large. Held-out loss, the loss on text that repeats itself (copying), divergence.",
        es="Modelos de lenguaje pequeños con heads de 16 y de 64 e iguales en parámetros, tasas de aprendizaje "
        "ajustadas, semillas pareadas. Puntuaciones por 1/√d_k contra otras tres opciones: sin factor, 1/d_k, y la de "
        "T5, sin factor pero con queries que empiezan 1/√d_k veces tan grandes. Pérdida en texto apartado, pérdida en "
        "texto que se repite (copiar), divergencia.",
        pt="Modelos de linguagem pequenos com heads de 16 e de 64 e iguais em parâmetros, taxas de aprendizado "
        "ajustadas, sementes pareadas. Escores vezes 1/√d_k contra outras três opções: sem fator, 1/d_k, e a da T5, "
        "sem fator mas com queries que começam 1/√d_k vezes tão grandes. Perda em texto reservado, perda em texto que "
        "se repete (copiar), divergência.",
    ),
    studies=("scale",),
    trained=trained_scales,
    criterion=(
        *(Bound(measurement=f"trained.{head_dim}.sqrt.diverged", high=0) for head_dim in HEAD_DIMS),
        *(
            Bound(
                measurement=f"trained.{head_dim}.{name}_over_sqrt.better",
                high=0,
                otherwise=Text(
                    en="Another way is shown to train better than 1/√d_k.",
                    es="Se muestra que otra opción entrena mejor que 1/√d_k.",
                    pt="Mostra-se que outra opção treina melhor que 1/√d_k.",
                ),
            )
            for head_dim in HEAD_DIMS
            for name in _OTHERS
        ),
        *(
            Bound(
                measurement=f"trained.{head_dim}.{name}_over_sqrt.worse",
                low=1,
                role="caveat",
                otherwise=Text(
                    en=f"It works, but it is not needed everywhere: with a tuned learning rate, a model {other.en} is "
                    "not shown to train worse at every d_k that was tried.",
                    es="Funciona, pero no hace falta en todas partes: con una tasa de aprendizaje ajustada no se "
                    f"muestra que un modelo {other.es} se entrene peor con cada d_k probado.",
                    pt="Funciona, mas não é necessário em toda parte: com uma taxa de aprendizado ajustada não se "
                    f"mostra que um modelo {other.pt} treine pior com cada d_k testado.",
                ),
            )
            for head_dim in HEAD_DIMS
            for name, other in _USED.items()
        ),
    ),
    ops=("attention",),
    source="Vaswani et al. 2017, section 3.2.1; Raffel et al. 2020 (T5: in the first weights); measured here",
)
