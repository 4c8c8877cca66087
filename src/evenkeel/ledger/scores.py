"""Claims on the size of attention scores, from untrained arms (C14, C15, C16, C17)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ._attending import attend, gain_to_focus, matching_weight, product_variance
from ._claim import Bound, Claim, Measurement
from ._stacks import normal, rms_norm
from ._text import Text
from .score_scales import HEAD_DIMS, trained_scales

_DIMS = (16, 64, 256)
_SCALES = ("none", "sqrt", "dim")
_ROWS = 1024
_GPT2_WIDTH, _GPT2_HEAD, _GPT2_STD = 768, 64, 0.02


def _variances() -> Iterator[Measurement]:
    for head_dim in _DIMS:
        stream = torch.Generator().manual_seed(head_dim)
        query, key = normal(stream, _ROWS, head_dim), normal(stream, _ROWS, head_dim)
        variance = product_variance(query, key)
        yield Measurement(f"normal.{head_dim}.variance", variance, "score²")
        yield Measurement(f"normal.{head_dim}.variance_over_d_k", variance / head_dim, "ratio")
        signs = product_variance(query.sign(), key.sign())
        yield Measurement(f"signs.{head_dim}.variance_over_d_k", signs / head_dim, "ratio")
    stream = torch.Generator().manual_seed(0)
    hidden = rms_norm(normal(stream, _ROWS, _GPT2_WIDTH))
    query, key = (hidden @ (_GPT2_STD * normal(stream, _GPT2_WIDTH, _GPT2_HEAD)) for _ in range(2))
    variance = product_variance(query, key)
    yield Measurement(f"gpt2_init.{_GPT2_HEAD}.entry_variance", query.var().item(), "entry²")
    yield Measurement(f"gpt2_init.{_GPT2_HEAD}.variance", variance, "score²")
    yield Measurement(f"gpt2_init.{_GPT2_HEAD}.variance_over_d_k", variance / _GPT2_HEAD, "ratio")


C14 = Claim(
    id="C14",
    statement=Text(
        en="If the entries of queries and keys are independent with mean 0 and variance 1, as is usual after "
        "initialisation, q·k has variance d_k.",
        es="Si los elementos de queries y keys son independientes, con media 0 y varianza 1, como es habitual tras la "
        "inicialización, q·k tiene varianza d_k.",
        pt="Se os elementos de queries e keys são independentes, com média 0 e variância 1, como é comum após a "
        "inicialização, q·k tem variância d_k.",
    ),
    method=Text(
        en="The variance of q·k over a million pairs, with normal entries and with random signs, at d_k 16, 64 and "
        "256; and with the weights that GPT-2 starts from.",
        es="La varianza de q·k en un millón de pares, con elementos normales y con signos al azar, con d_k 16, 64 y "
        "256; y con los pesos con que empieza GPT-2.",
        pt="A variância de q·k em um milhão de pares, com elementos normais e com sinais aleatórios, com d_k 16, 64 e "
        "256; e com os pesos com que o GPT-2 começa.",
    ),
    measure=_variances,
    criterion=(
        *(
            Bound(measurement=f"{entries}.{head_dim}.variance_over_d_k", low=0.95, high=1.05)
            for entries in ("normal", "signs")
            for head_dim in _DIMS
        ),
        Bound(
            measurement="gpt2_init.64.variance_over_d_k",
            low=0.5,
            high=2.0,
            role="caveat",
            otherwise=Text(
                en="Initialisation need not give variance 1: GPT-2's own (standard deviation 0.02, width 768) makes "
                "entries of variance 0.31 and scores of variance 6, not 64.",
                es="La inicialización no tiene por qué dar varianza 1: la de GPT-2 (desviación típica 0.02, ancho 768) "
                "produce elementos de varianza 0.31 y puntuaciones de varianza 6, no 64.",
                pt="A inicialização não precisa dar variância 1: a do GPT-2 (desvio padrão 0.02, largura 768) produz "
                "elementos de variância 0.31 e escores de variância 6, não 64.",
            ),
        ),
    ),
    ops=("attention",),
    source="Vaswani et al. 2017, footnote 4; GPT-2's initializer_range 0.02 (Radford et al. 2019)",
)


def _unscaled() -> Iterator[Measurement]:
    unscaled, scaled = attend(64, "none"), attend(64, "sqrt")
    for name, arm in (("none", unscaled), ("sqrt", scaled)):
        yield Measurement(f"{name}.entropy", arm.entropy, "nats")
        yield Measurement(f"{name}.entropy_share", arm.entropy_share, "share of log n")
        yield Measurement(f"{name}.largest_weight", arm.largest_weight, "share")
        yield Measurement(f"{name}.score_gradient", arm.score_gradient, "median |∂L/∂s|")
        yield Measurement(f"{name}.query_gradient", arm.query_gradient, "‖∂L/∂q‖")
    yield Measurement("score_gradient_without_scaling", unscaled.score_gradient / scaled.score_gradient, "ratio")
    yield Measurement("query_gradient_without_scaling", unscaled.query_gradient / scaled.query_gradient, "ratio")


C15 = Claim(
    id="C15",
    statement=Text(
        en="Without scaling, large scores make the softmax so peaked that the gradients of most entries vanish.",
        es="Sin escalado, las puntuaciones grandes concentran tanto la softmax que los gradientes de la mayoría de "
        "los elementos se desvanecen.",
        pt="Sem escala, escores grandes deixam a softmax tão concentrada que os gradientes da maioria dos elementos "
        "desaparecem.",
    ),
    method=Text(
        en="Random queries and keys of unit variance, d_k 64, 1024 keys, untrained: entropy (uniform is 6.93 nats), "
        "largest weight, and gradients of a random loss, unscaled and with 1/√d_k.",
        es="Queries y keys aleatorias de varianza 1, d_k 64, 1024 keys, sin entrenar: entropía (la uniforme es 6.93 "
        "nats), peso mayor y gradientes de una pérdida aleatoria, sin escala y con 1/√d_k.",
        pt="Queries e keys aleatórias de variância 1, d_k 64, 1024 keys, sem treino: entropia (a uniforme é 6.93 "
        "nats), maior peso e gradientes de uma perda aleatória, sem escala e com 1/√d_k.",
    ),
    measure=_unscaled,
    criterion=(
        Bound(measurement="none.entropy_share", high=0.25),
        Bound(measurement="none.largest_weight", low=0.5),
        Bound(measurement="sqrt.entropy_share", low=0.75),
        Bound(measurement="score_gradient_without_scaling", high=1e-3),
        Bound(
            measurement="query_gradient_without_scaling",
            high=1.0,
            role="caveat",
            otherwise=Text(
                en="Most entries get almost no gradient, but the few that are left get more: the gradient of the "
                "query as a whole is larger than with scaling, not smaller.",
                es="La mayoría de los elementos casi no recibe gradiente, pero los pocos que quedan reciben más: el "
                "gradiente de la query en conjunto es mayor que con escalado, no menor.",
                pt="A maioria dos elementos quase não recebe gradiente, mas os poucos que restam recebem mais: o "
                "gradiente da query como um todo é maior do que com escala, não menor.",
            ),
        ),
    ),
    ops=("attention", "softmax"),
    source="Vaswani et al. 2017, section 3.2.1",
)


def _divided_by_dim() -> Iterator[Measurement]:
    for head_dim in (64, 256):
        arm = attend(head_dim, "dim")
        yield Measurement(f"dim.{head_dim}.variance", arm.variance, "score²")
        yield Measurement(f"dim.{head_dim}.entropy", arm.entropy, "nats")
        yield Measurement(f"dim.{head_dim}.entropy_share", arm.entropy_share, "share of log n")
    for scale in ("sqrt", "dim"):
        yield Measurement(f"{scale}.64.matching_weight", matching_weight(64, scale, 1.0), "share")
        yield Measurement(f"{scale}.64.gain_to_focus", gain_to_focus(64, scale), "ratio")


C16 = Claim(
    id="C16",
    statement=Text(
        en="Dividing by d_k instead of √d_k makes attention nearly uniform and takes its ability to focus.",
        es="Dividir por d_k en lugar de √d_k vuelve la atención casi uniforme y le quita la capacidad de enfocarse.",
        pt="Dividir por d_k em vez de √d_k deixa a atenção quase uniforme e tira dela a capacidade de focar.",
    ),
    method=Text(
        en="Entropy with 1/d_k for random queries and keys of unit variance, 1024 keys, untrained; the weight of the "
        "one key that equals the query; and how much longer queries and keys must be for it to get half. Then small "
        "language models with heads of 16 and of 64, tuned learning rates, paired seeds: loss and copying with 1/d_k "
        "against 1/√d_k.",
        es="Entropía con 1/d_k para queries y keys aleatorias de varianza 1, 1024 keys, sin entrenar; el peso de la "
        "única key igual a la query; y cuánto más largas deben ser queries y keys para que reciba la mitad. Después, "
        "modelos de lenguaje pequeños con heads de 16 y de 64, tasas de aprendizaje ajustadas, semillas pareadas: "
        "pérdida y copia con 1/d_k contra 1/√d_k.",
        pt="Entropia com 1/d_k para queries e keys aleatórias de variância 1, 1024 keys, sem treino; o peso da única "
        "key igual à query; e quanto mais longas queries e keys precisam ser para que ela receba a metade. "
        "Depois, modelos de linguagem pequenos com heads de 16 e de 64, taxas de aprendizado ajustadas, sementes "
        "pareadas: perda e cópia com 1/d_k contra 1/√d_k.",
    ),
    measure=_divided_by_dim,
    studies=("scale",),
    trained=trained_scales,
    criterion=(
        Bound(measurement="dim.64.entropy_share", low=0.99),
        Bound(measurement="dim.256.entropy_share", low=0.99),
        Bound(measurement="dim.64.matching_weight", high=0.05),
        Bound(measurement="sqrt.64.matching_weight", low=0.5),
        Bound(
            measurement="dim.64.gain_to_focus",
            low=10.0,
            role="caveat",
            otherwise=Text(
                en="At initialisation only. Queries and keys about three times as long focus again with 1/d_k, and "
                "training can make them so: muP, unit scaling and Granite use 1/d_k.",
                es="Solo en la inicialización. Con queries y keys unas tres veces más largas la atención vuelve a "
                "enfocarse con 1/d_k, y el entrenamiento puede alargarlas: muP, unit scaling y Granite usan 1/d_k.",
                pt="Só na inicialização. Com queries e keys cerca de três vezes mais longas a atenção volta a focar "
                "com 1/d_k, e o treino pode alongá-las: muP, unit scaling e Granite usam 1/d_k.",
            ),
        ),
        *(
            Bound(
                measurement=f"trained.{head_dim}.dim_over_sqrt.worse",
                low=1,
                role="caveat",
                otherwise=Text(
                    en="Trained at a learning rate of its own, a model with 1/d_k is not shown to be worse at every "
                    "d_k that was tried.",
                    es="Entrenado con su propia tasa de aprendizaje, no se muestra que un modelo con 1/d_k sea peor "
                    "con cada d_k probado.",
                    pt="Treinado com sua própria taxa de aprendizado, não se mostra que um modelo com 1/d_k seja pior "
                    "com cada d_k testado.",
                ),
            )
            for head_dim in HEAD_DIMS
        ),
    ),
    ops=("attention",),
    source="Yang et al. 2022 (muP, 1/d); Blake et al. 2023 (unit scaling); Granite's attention_multiplier",
)


def _three_scales() -> Iterator[Measurement]:
    for scale in _SCALES:
        gradients = []
        for head_dim in _DIMS:
            arm = attend(head_dim, scale)
            gradients.append(arm.query_gradient)
            yield Measurement(f"{scale}.{head_dim}.variance", arm.variance, "score²")
            yield Measurement(f"{scale}.{head_dim}.entropy_share", arm.entropy_share, "share of log n")
            yield Measurement(f"{scale}.{head_dim}.query_gradient", arm.query_gradient, "‖∂L/∂q‖")
        spread = max(gradients) / min(gradients) if min(gradients) > 0 else math.inf
        yield Measurement(f"{scale}.query_gradient_spread", spread, "largest / smallest")


C17 = Claim(
    id="C17",
    statement=Text(
        en="Dividing by √d_k gives scores of variance 1, balanced weights and stable gradients, whatever d_k is.",
        es="Dividir por √d_k da puntuaciones de varianza 1, pesos equilibrados y gradientes estables, sea cual sea "
        "d_k.",
        pt="Dividir por √d_k dá escores de variância 1, pesos equilibrados e gradientes estáveis, seja qual for d_k.",
    ),
    method=Text(
        en="Random queries and keys of unit variance, untrained, 1024 keys, d_k 16, 64 and 256, three scales: variance "
        "of the scores, entropy as a share of log n, ‖∂L/∂q‖ of a random loss and its spread over d_k.",
        es="Queries y keys aleatorias de varianza 1, sin entrenar, 1024 keys, d_k 16, 64 y 256, tres escalas: varianza "
        "de las puntuaciones, entropía como parte de log n, ‖∂L/∂q‖ de una pérdida aleatoria y su dispersión según "
        "d_k.",
        pt="Queries e keys aleatórias de variância 1, sem treino, 1024 keys, d_k 16, 64 e 256, três escalas: variância "
        "dos escores, entropia como parte de log n, ‖∂L/∂q‖ de uma perda aleatória e sua dispersão conforme d_k.",
    ),
    measure=_three_scales,
    criterion=(
        *(Bound(measurement=f"sqrt.{head_dim}.variance", low=0.9, high=1.1) for head_dim in _DIMS),
        *(Bound(measurement=f"sqrt.{head_dim}.entropy_share", low=0.85, high=0.98) for head_dim in _DIMS),
        Bound(measurement="sqrt.query_gradient_spread", high=1.25),
    ),
    ops=("attention",),
    source="Vaswani et al. 2017, section 3.2.1; here at initialisation, trained arms are another experiment",
)
