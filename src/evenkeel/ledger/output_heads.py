"""Claims on trained output heads: independent sigmoids over a vocabulary, and confidence where models are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from ..studies import Comparison
from ._claim import Bound, Claim, Measurement
from ._contrasts import arm, contrast, difference, health_by_seed
from ._studies import Comparisons
from ._text import Text

_VOCABULARIES = (256, 2048)
_HEADS = ("softmax", "sigmoid")


def _health(run: Comparison, name: str, stat: str) -> float:
    return arm(run, name).health.get(stat, float("nan"))


def _heads(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["head"]
    for vocabulary in _VOCABULARIES:
        name = f"sigmoid {vocabulary}"
        prefix = f"{vocabulary}.sigmoid"
        yield from contrast(run, name, f"softmax {vocabulary}", f"{prefix}_over_softmax")
        yield Measurement(f"{prefix}.sum", _health(run, name, "sum of probabilities"), "1")
        yield Measurement(f"{prefix}.deviation_of_sum", _health(run, name, "sum of probabilities: deviation"), "1")
        for head in _HEADS:
            found = arm(run, f"{head} {vocabulary}")
            error = _health(run, f"{head} {vocabulary}", "calibration error")
            yield Measurement(f"{vocabulary}.{head}.calibration_error", error, "share")
            yield Measurement(f"{vocabulary}.{head}.diverged", found.diverged, "trials")
            yield Measurement(f"{vocabulary}.{head}.sensitivity", found.sensitivity, "nats/token")
    yield Measurement("largest_vocabulary", max(_VOCABULARIES), "tokens")


C10 = Claim(
    id="C10",
    statement=Text(
        en="Over a large vocabulary independent sigmoids fail: their outputs do not sum to 1, and the probabilities "
        "are unstable.",
        es="Con un vocabulario grande las sigmoides independientes fallan: sus salidas no suman 1 y las probabilidades "
        "son inestables.",
        pt="Com um vocabulário grande sigmoides independentes falham: suas saídas não somam 1 e as probabilidades são "
        "instáveis.",
    ),
    method=Text(
        en="Small language models with a softmax or a sigmoid for each token as their head, 256 and 2,048 tokens, "
        "tuned learning rates, paired seeds: how much the sum of the sigmoids varies from token to token; held-out "
        "likelihood, for the sigmoids of σ(z_i) / Σ_j σ(z_j); calibration, divergence, and sensitivity to the learning "
        "rate.",
        es="Modelos de lenguaje pequeños con una softmax o una sigmoide para cada token como salida, 256 y 2.048 "
        "tokens, tasas de aprendizaje ajustadas, semillas pareadas: cuánto varía de un token a otro la suma de las "
        "sigmoides; verosimilitud en texto apartado, para las sigmoides la de σ(z_i) / Σ_j σ(z_j); calibración, "
        "divergencia y sensibilidad a la tasa de aprendizaje.",
        pt="Modelos de linguagem pequenos com uma softmax ou uma sigmoide para cada token como saída, 256 e 2.048 "
        "tokens, taxas de aprendizado ajustadas, sementes pareadas: quanto a soma das sigmoides varia de um token a "
        "outro; verossimilhança em texto reservado, para as sigmoides a de σ(z_i) / Σ_j σ(z_j); calibração, "
        "divergência e sensibilidade à taxa de aprendizado.",
    ),
    studies=("head",),
    trained=_heads,
    criterion=(
        *(Bound(measurement=f"{size}.sigmoid_over_softmax.decided", low=1, role="noise") for size in _VOCABULARIES),
        Bound(measurement="2048.sigmoid.deviation_of_sum", low=0.05),
        Bound(
            measurement="2048.sigmoid_over_softmax.worse",
            low=1,
            otherwise=Text(
                en="They do not sum to 1, but divided by their sum they predict as well as a softmax.",
                es="No suman 1, pero divididas por su suma predicen tan bien como una softmax.",
                pt="Não somam 1, mas divididas por sua soma preveem tão bem quanto uma softmax.",
            ),
        ),
        Bound(
            measurement="256.sigmoid_over_softmax.worse",
            low=1,
            role="caveat",
            otherwise=Text(
                en="With 256 tokens they predict as well as a softmax.",
                es="Con 256 tokens predicen tan bien como una softmax.",
                pt="Com 256 tokens preveem tão bem quanto uma softmax.",
            ),
        ),
        Bound(
            measurement="largest_vocabulary",
            low=50_000,
            role="caveat",
            otherwise=Text(
                en="Tried with 2,048 tokens at most, of which the text has 256; vocabularies have 50,000 and more.",
                es="Probado con 2.048 tokens como máximo, de los que el texto tiene 256; los vocabularios tienen "
                "50.000 y más.",
                pt="Testado com 2.048 tokens no máximo, dos quais o texto tem 256; os vocabulários têm 50.000 e mais.",
            ),
        ),
    ),
    ops=("sigmoid", "softmax", "sigmoid_cross_entropy"),
    source="measured here",
)


def _confidence(runs: Comparisons) -> Iterator[Measurement]:
    run, name = runs["head"], "softmax 256"
    for stat in ("accuracy", "confidence", "confidence where wrong", "calibration error", "best temperature"):
        unit = "1" if stat == "best temperature" else "share"
        yield Measurement(stat.replace(" ", "_"), _health(run, name, stat), unit)
    lead = health_by_seed(run, name, "confidence − accuracy")
    yield from difference(lead, "confidence_less_accuracy", "share", 0.01)


C23 = Claim(
    id="C23",
    statement=Text(
        en="Models are confident even when they are wrong.",
        es="Los modelos están «confiados» incluso cuando se equivocan.",
        pt="Os modelos são confiantes mesmo quando estão errados.",
    ),
    method=Text(
        en="Small language models over bytes, trained on five seeds: on held-out text the mean probability of the most "
        "likely token where it is wrong, and in all cases, beside how often it is right; the calibration error in 15 "
        "bins, and the temperature at which the loss would be least.",
        es="Modelos de lenguaje pequeños sobre bytes, entrenados con cinco semillas: en texto apartado, la "
        "probabilidad media del token más probable donde se equivoca y en todos los casos, junto a cuántas veces "
        "acierta; el error de calibración en 15 intervalos y la temperatura con la que la pérdida sería mínima.",
        pt="Modelos de linguagem pequenos sobre bytes, treinados com cinco sementes: em texto reservado, a "
        "probabilidade média do token mais provável onde ele erra e em todos os casos, ao lado de quantas vezes "
        "acerta; o erro de calibração em 15 intervalos e a temperatura com que a perda seria mínima.",
    ),
    studies=("head",),
    trained=_confidence,
    criterion=(
        Bound(measurement="confidence_less_accuracy.decided", low=1, role="noise"),
        Bound(
            measurement="confidence_where_wrong",
            low=0.25,
            otherwise=Text(
                en="Where they are wrong, they are unsure.",
                es="Donde se equivocan, están inseguros.",
                pt="Onde erram, estão inseguros.",
            ),
        ),
        Bound(
            measurement="confidence_less_accuracy.low",
            low=0.01,
            role="caveat",
            otherwise=Text(
                en="Not more confident than they deserve: on average the probability of the most likely token is how "
                "often it is right. Overconfidence (Guo et al. 2017) is of models that know their training data by "
                "heart, not of softmax.",
                es="No más confiados de lo que merecen: en promedio la probabilidad del token más probable es la "
                "frecuencia con que acierta. El exceso de confianza (Guo et al. 2017) es de modelos que se saben de "
                "memoria sus datos de entrenamiento, no de la softmax.",
                pt="Não mais confiantes do que merecem: em média a probabilidade do token mais provável é a frequência "
                "com que acerta. O excesso de confiança (Guo et al. 2017) é de modelos que sabem de cor seus dados de "
                "treino, não da softmax.",
            ),
        ),
    ),
    ops=("softmax",),
    source="Guo et al. 2017 (calibration error 16.53%, 1.26% by temperature, ResNet-110 on CIFAR-100); measured here",
)
