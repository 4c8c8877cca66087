"""Claims on which feed-forward layer trains best: the sigmoid's lag, gated against plain, gates among themselves."""

from __future__ import annotations

from collections.abc import Iterator

from ._claim import Bound, Claim, Measurement
from ._contrasts import contrast, difference, loss_gap, rank_correlations
from ._studies import Comparisons
from ._text import Text

_GATED = ("glu", "bilinear", "reglu", "geglu", "swiglu")
_STANDARD = ("relu", "gelu")
_MODERN = ("relu", "gelu", "silu")
_SIZES = {"small": "feedforward", "larger": "feedforward-larger"}


def _sigmoid(runs: Comparisons) -> Iterator[Measurement]:
    for name in _MODERN:
        yield from contrast(runs["feedforward"], "sigmoid", name, f"small.sigmoid_over_{name}")
    yield from contrast(runs["feedforward-larger"], "sigmoid", "gelu", "larger.sigmoid_over_gelu")


C05 = Claim(
    id="C05",
    statement=Text(
        en="In language models the sigmoid lags behind modern activations.",
        es="En los modelos de lenguaje la sigmoide queda por detrás de las activaciones modernas.",
        pt="Em modelos de linguagem a sigmoide fica atrás das ativações modernas.",
    ),
    method=Text(
        en="Small language models with the sigmoid, ReLU, GELU and SiLU in their feed-forwards, equal parameters, each "
        "at its own learning rate, paired seeds, two sizes: loss(sigmoid) − loss(other) on held-out text, with the "
        "study's verdicts.",
        es="Modelos de lenguaje pequeños con la sigmoide, ReLU, GELU y SiLU en sus feed-forward, iguales en "
        "parámetros, cada uno con su propia tasa de aprendizaje, semillas pareadas, dos tamaños: pérdida(sigmoide) − "
        "pérdida(otra) en texto apartado, con los veredictos del estudio.",
        pt="Modelos de linguagem pequenos com a sigmoide, ReLU, GELU e SiLU em seus feed-forwards, iguais em "
        "parâmetros, cada um com sua própria taxa de aprendizado, sementes pareadas, dois tamanhos: perda(sigmoide) − "
        "perda(outra) em texto reservado, com os vereditos do estudo.",
    ),
    studies=tuple(_SIZES.values()),
    trained=_sigmoid,
    criterion=(
        *(Bound(measurement=f"small.sigmoid_over_{name}.decided", low=1, role="noise") for name in _MODERN),
        *(Bound(measurement=f"small.sigmoid_over_{name}.worse", low=1) for name in _MODERN),
        Bound(
            measurement="larger.sigmoid_over_gelu.worse",
            low=1,
            role="caveat",
            otherwise=Text(
                en="At the larger size the pairs do not show the sigmoid to be worse than GELU.",
                es="Con el tamaño mayor los pares no muestran que la sigmoide sea peor que GELU.",
                pt="No tamanho maior os pares não mostram que a sigmoide seja pior que a GELU.",
            ),
        ),
    ),
    ops=("sigmoid", "relu", "gelu", "silu"),
    source="measured here; second-hand Narang et al. 2021: final loss sigmoid 1.867, ReLU and GELU 1.838",
)


def _gated(runs: Comparisons) -> Iterator[Measurement]:
    for prefix, study in _SIZES.items():
        run = runs[study]
        gap = loss_gap(run, _GATED, _STANDARD)
        yield from difference(gap, f"{prefix}.gated_over_standard", "nats/token", run.study.margin)
        yield from rank_correlations(run, prefix)
    words = [item.word for item in runs["feedforward"].verdicts if item.arm in _GATED and item.against in _STANDARD]
    for word in ("better", "tie", "worse"):
        yield Measurement(f"small.gated_contrasts.{word}", words.count(word), "contrasts")
    for name in _GATED:
        for against in _STANDARD:
            yield from contrast(runs["feedforward"], name, against, f"small.{name}_over_{against}")
    yield from contrast(runs["feedforward"], "swiglu", "relu2", "small.swiglu_over_relu2")
    for name, against in (("geglu", "gelu"), ("swiglu", "gelu"), ("swiglu", "relu")):
        yield from contrast(runs["feedforward-larger"], name, against, f"larger.{name}_over_{against}")


C27 = Claim(
    id="C27",
    statement=Text(
        en="Gated feed-forwards (GLU variants) consistently beat standard ones with ReLU or GELU, across model sizes "
        "(Shazeer 2020).",
        es="Los feed-forward con compuerta (variantes de GLU) superan de forma constante a los estándar con ReLU o "
        "GELU, en todos los tamaños de modelo (Shazeer 2020).",
        pt="Feed-forwards com porta (variantes da GLU) superam de forma consistente os padrão com ReLU ou GELU, em "
        "todos os tamanhos de modelo (Shazeer 2020).",
    ),
    method=Text(
        en="The eight layers of Shazeer's table, sigmoid, tanh and ReLU² in small language models of two sizes, equal "
        "parameters, tuned learning rates, paired seeds. The mean loss of the five gated layers less that of ReLU and "
        "GELU; the ten contrasts of one gated and one standard layer; Spearman's correlation of the arms' mean losses "
        "with the orders that Shazeer 2020 (at both numbers of steps) and Narang 2021 print.",
        es="Las ocho capas de la tabla de Shazeer, sigmoide, tanh y ReLU² en modelos de lenguaje pequeños de dos "
        "tamaños, iguales en parámetros, tasas de aprendizaje ajustadas, semillas pareadas. La pérdida media de las "
        "cinco capas con compuerta menos la de ReLU y GELU; los diez contrastes de una capa con compuerta y una "
        "estándar; la correlación de Spearman de las pérdidas medias con los órdenes que publican Shazeer 2020 (con "
        "ambos números de pasos) y Narang 2021.",
        pt="As oito camadas da tabela de Shazeer, sigmoide, tanh e ReLU² em modelos de linguagem pequenos de dois "
        "tamanhos, iguais em parâmetros, taxas de aprendizado ajustadas, sementes pareadas. A perda média das cinco "
        "camadas com porta menos a de ReLU e GELU; os dez contrastes de uma camada com porta e uma padrão; a "
        "correlação de Spearman das perdas médias com as ordens que Shazeer 2020 (nos dois números de passos) e "
        "Narang 2021 publicam.",
    ),
    studies=tuple(_SIZES.values()),
    trained=_gated,
    criterion=(
        *(Bound(measurement=f"{size}.gated_over_standard.decided", low=1, role="noise") for size in _SIZES),
        *(Bound(measurement=f"{size}.gated_over_standard.high", high=0) for size in _SIZES),
        Bound(measurement="small.gated_contrasts.worse", high=0),
        Bound(
            measurement="small.gated_contrasts.better",
            low=10,
            role="caveat",
            otherwise=Text(
                en="On average they do; but not each of the five gated layers is shown to beat both ReLU and GELU.",
                es="En promedio sí; pero no se muestra que cada una de las cinco capas con compuerta supere tanto a "
                "ReLU como a GELU.",
                pt="Em média sim; mas não se mostra que cada uma das cinco camadas com porta supere tanto ReLU quanto "
                "GELU.",
            ),
        ),
        Bound(
            measurement="small.swiglu_over_relu2.better",
            low=1,
            role="caveat",
            otherwise=Text(
                en="ReLU², a plain function that the paper did not try, is not shown to be worse than SwiGLU.",
                es="No se muestra que ReLU², una función simple que el artículo no probó, sea peor que SwiGLU.",
                pt="Não se mostra que a ReLU², uma função simples que o artigo não testou, seja pior que a SwiGLU.",
            ),
        ),
        *(
            Bound(
                measurement=f"{size}.rank_correlation_with_shazeer_65k",
                low=0.8,
                role="caveat",
                otherwise=Text(
                    en="The order of the eight layers is not the one that Shazeer 2020 prints.",
                    es="El orden de las ocho capas no es el que publica Shazeer 2020.",
                    pt="A ordem das oito camadas não é a que Shazeer 2020 publica.",
                ),
            )
            for size in _SIZES
        ),
    ),
    ops=("glu", "bilinear", "reglu", "geglu", "swiglu", "relu", "gelu"),
    source="Shazeer 2020, table 1 (one size, one recipe); second-hand Narang et al. 2021; measured here",
)


def _gates(runs: Comparisons) -> Iterator[Measurement]:
    for name, against in (("swiglu", "geglu"), ("swiglu", "reglu"), ("geglu", "reglu")):
        yield from contrast(runs["feedforward"], name, against, f"small.{name}_over_{against}")
    larger = runs["feedforward-larger"]
    yield from contrast(larger, "swiglu", "geglu", "larger.swiglu_over_geglu")
    for name in ("swiglu", "geglu"):
        gap = loss_gap(larger, (name,), ("reglu",))
        yield from difference(gap, f"larger.{name}_over_reglu", "nats/token", larger.study.margin)


C28 = Claim(
    id="C28",
    statement=Text(
        en="SwiGLU and GeGLU perform alike, and both better than ReGLU.",
        es="SwiGLU y GeGLU rinden de forma parecida, y ambas mejor que ReGLU.",
        pt="SwiGLU e GeGLU têm desempenho parecido, e ambas melhor que ReGLU.",
    ),
    method=Text(
        en="The three layers in small language models of two sizes, equal parameters, tuned learning rates, paired "
        "seeds: differences of held-out loss with the study's verdicts; a tie is a difference shown to lie within 0.01 "
        "nats.",
        es="Las tres capas en modelos de lenguaje pequeños de dos tamaños, iguales en parámetros, tasas de aprendizaje "
        "ajustadas, semillas pareadas: diferencias de pérdida en texto apartado con los veredictos del estudio; un "
        "empate es una diferencia que se muestra menor de 0,01 nats.",
        pt="As três camadas em modelos de linguagem pequenos de dois tamanhos, iguais em parâmetros, taxas de "
        "aprendizado ajustadas, sementes pareadas: diferenças de perda em texto reservado com os vereditos do estudo; "
        "um empate é uma diferença que se mostra menor que 0,01 nats.",
    ),
    studies=tuple(_SIZES.values()),
    trained=_gates,
    criterion=(
        *(
            Bound(measurement=f"small.{pair}.decided", low=1, role="noise")
            for pair in ("swiglu_over_geglu", "swiglu_over_reglu", "geglu_over_reglu")
        ),
        Bound(
            measurement="small.swiglu_over_geglu.tie",
            low=1,
            otherwise=Text(
                en="SwiGLU and GeGLU differ by more than the margin.",
                es="SwiGLU y GeGLU difieren en más que el margen.",
                pt="SwiGLU e GeGLU diferem em mais que a margem.",
            ),
        ),
        *(
            Bound(
                measurement=f"small.{name}_over_reglu.better",
                low=1,
                otherwise=Text(
                    en="ReGLU is as good: a tie or better where the paper has it behind by 0.01 in perplexity's "
                    "logarithm. On GLUE and SQuAD the same paper has ReGLU first.",
                    es="ReGLU es igual de buena: empata o es mejor, donde el artículo la pone 0,01 por detrás en el "
                    "logaritmo de la perplejidad. En GLUE y SQuAD el mismo artículo pone a ReGLU primero.",
                    pt="ReGLU é tão boa quanto: empata ou é melhor, onde o artigo a põe 0,01 atrás no logaritmo da "
                    "perplexidade. Em GLUE e SQuAD o mesmo artigo põe a ReGLU em primeiro.",
                ),
            )
            for name in ("swiglu", "geglu")
        ),
        Bound(
            measurement="larger.swiglu_over_geglu.tie",
            low=1,
            role="caveat",
            otherwise=Text(
                en="At the larger size the pairs are too few to show the tie.",
                es="Con el tamaño mayor los pares no bastan para mostrar el empate.",
                pt="No tamanho maior os pares não bastam para mostrar o empate.",
            ),
        ),
    ),
    ops=("swiglu", "geglu", "reglu"),
    source="Shazeer 2020, tables 1 to 4; measured here",
)
