"""Claims on feed-forwards beside depth and width: fewer gated layers, the sigmoid in depth, a small choice's weight."""

from __future__ import annotations

from collections.abc import Iterator

from ..studies import Comparison
from ._claim import Bound, Claim, Measurement
from ._contrasts import arm, contrast, difference, loss_gap
from ._studies import Comparisons
from ._text import Text

_DEPTHS = (2, 4, 8)
_SHARE = 0.25


def _fewer(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["depth"]
    found = {}
    for prefix, name in (("fewer", "swiglu 3"), ("smaller", "slim swiglu 4")):
        numbers = tuple(contrast(run, name, "gelu 4", prefix))
        yield from numbers
        found[prefix] = {number.name.rpartition(".")[2]: number.value for number in numbers}
        flops = (arm(run, item).plan.flops for item in (name, "gelu 4"))
        yield Measurement(f"{prefix}.flops_over_gelu", next(flops) / next(flops), "ratio")
        yield Measurement(f"{prefix}.as_good", found[prefix]["better"] + found[prefix]["tie"], "1")
    good = [item["better"] + item["tie"] for item in found.values()]
    decided = [item["decided"] for item in found.values()]
    yield Measurement("either.as_good", max(good), "1")
    yield Measurement("either.decided", max(*good, min(decided)), "1")
    for depth in _DEPTHS:
        yield from contrast(run, f"swiglu {depth}", f"gelu {depth}", f"{depth}.swiglu_over_gelu")


C30 = Claim(
    id="C30",
    statement=Text(
        en="With gating a model needs fewer or smaller layers for the same quality.",
        es="Con compuertas un modelo necesita menos capas, o capas más pequeñas, para la misma calidad.",
        pt="Com portas um modelo precisa de menos camadas, ou de camadas menores, para a mesma qualidade.",
    ),
    method=Text(
        en="Small language models, tuned learning rates, paired seeds: three SwiGLU blocks, and four with a quarter "
        "fewer weights in their feed-forwards, against four GELU blocks. As good: a tie within 0.01 nats or better.",
        es="Modelos de lenguaje pequeños, tasas de aprendizaje ajustadas, semillas pareadas: tres bloques SwiGLU, y "
        "cuatro con una cuarta parte menos de pesos en sus feed-forward, contra cuatro bloques GELU. Igual de bueno: "
        "un empate dentro de 0,01 nats o mejor.",
        pt="Modelos de linguagem pequenos, taxas de aprendizado ajustadas, sementes pareadas: três blocos SwiGLU, e "
        "quatro com um quarto a menos de pesos em seus feed-forwards, contra quatro blocos GELU. Tão bom quanto: um "
        "empate dentro de 0,01 nats ou melhor.",
    ),
    studies=("depth",),
    trained=_fewer,
    criterion=(
        Bound(measurement="either.decided", low=1, role="noise"),
        Bound(
            measurement="either.as_good",
            low=1,
            otherwise=Text(
                en="Neither three gated blocks nor four smaller ones are as good as four plain ones.",
                es="Ni tres bloques con compuerta ni cuatro más pequeños igualan a cuatro simples.",
                pt="Nem três blocos com porta nem quatro menores igualam quatro simples.",
            ),
        ),
        *(
            Bound(
                measurement=f"{prefix}.as_good",
                low=1,
                role="caveat",
                otherwise=Text(
                    en="One of the two alone is shown: fewer blocks, or smaller ones.",
                    es="Solo se muestra una de las dos cosas: menos bloques, o más pequeños.",
                    pt="Só se mostra uma das duas coisas: menos blocos, ou menores.",
                ),
            )
            for prefix in ("fewer", "smaller")
        ),
    ),
    ops=("swiglu", "gelu"),
    source="Shazeer 2020 compares at equal size only; measured here",
)


def _deep_sigmoid(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["depth"]
    gaps = {depth: loss_gap(run, (f"sigmoid {depth}",), (f"gelu {depth}",)) for depth in _DEPTHS}
    for depth in _DEPTHS:
        yield from contrast(run, f"sigmoid {depth}", f"gelu {depth}", f"{depth}.sigmoid_over_gelu")
        yield Measurement(f"{depth}.sigmoid.diverged", arm(run, f"sigmoid {depth}").diverged, "trials")
    growth = {seed: gaps[8][seed] - gaps[2][seed] for seed in gaps[8].keys() & gaps[2].keys()}
    yield from difference(growth, "growth_of_gap", "nats/token", run.study.margin)
    deeper = loss_gap(run, ("sigmoid 8",), ("sigmoid 2",))
    yield from difference(deeper, "sigmoid_8_over_sigmoid_2", "nats/token", run.study.margin)
    yield Measurement("deepest", max(_DEPTHS), "blocks")


C38 = Claim(
    id="C38",
    statement=Text(
        en="The sigmoid does not scale to the depth of language models.",
        es="La sigmoide no escala a la profundidad de los modelos de lenguaje.",
        pt="A sigmoide não escala à profundidade dos modelos de linguagem.",
    ),
    method=Text(
        en="Small pre-norm language models of 2, 4 and 8 blocks, tuned learning rates, paired seeds: the gap "
        "loss(sigmoid) − loss(GELU) at each depth, and how much it grows from 2 blocks to 8; whether a deeper sigmoid "
        "model is still a better one.",
        es="Modelos de lenguaje pequeños con pre-norm de 2, 4 y 8 bloques, tasas de aprendizaje ajustadas, semillas "
        "pareadas: la distancia pérdida(sigmoide) − pérdida(GELU) con cada profundidad, y cuánto crece de 2 bloques a "
        "8; si un modelo más profundo con sigmoide sigue siendo mejor.",
        pt="Modelos de linguagem pequenos com pre-norm de 2, 4 e 8 blocos, taxas de aprendizado ajustadas, sementes "
        "pareadas: a distância perda(sigmoide) − perda(GELU) em cada profundidade, e quanto ela cresce de 2 blocos "
        "para 8; se um modelo mais profundo com sigmoide continua sendo melhor.",
    ),
    studies=("depth",),
    trained=_deep_sigmoid,
    criterion=(
        Bound(measurement="growth_of_gap.decided", low=1, role="noise"),
        Bound(measurement="8.sigmoid_over_gelu.decided", low=1, role="noise"),
        Bound(
            measurement="8.sigmoid_over_gelu.worse",
            low=1,
            otherwise=Text(
                en="At 8 blocks the sigmoid is no worse than GELU.",
                es="Con 8 bloques la sigmoide no es peor que GELU.",
                pt="Com 8 blocos a sigmoide não é pior que a GELU.",
            ),
        ),
        Bound(
            measurement="growth_of_gap.low",
            low=0,
            otherwise=Text(
                en="It lags, but no more in depth: the gap to GELU does not grow from 2 blocks to 8.",
                es="Queda atrás, pero no más con la profundidad: la distancia a GELU no crece de 2 bloques a 8.",
                pt="Fica atrás, mas não mais com a profundidade: a distância à GELU não cresce de 2 blocos para 8.",
            ),
        ),
        Bound(
            measurement="sigmoid_8_over_sigmoid_2.high",
            low=0,
            role="caveat",
            otherwise=Text(
                en="The lag grows, but depth still helps: 8 blocks with the sigmoid are better than 2. Residual "
                "connections and norms carry the signal past it (C02).",
                es="El retraso crece, pero la profundidad aún ayuda: 8 bloques con la sigmoide son mejores que 2. Las "
                "conexiones residuales y las normas llevan la señal a su lado (C02).",
                pt="O atraso cresce, mas a profundidade ainda ajuda: 8 blocos com a sigmoide são melhores que 2. As "
                "conexões residuais e as normas levam o sinal ao lado dela (C02).",
            ),
        ),
        Bound(
            measurement="deepest",
            low=24,
            role="caveat",
            otherwise=Text(
                en="Tried to 8 blocks; language models have 24 and more.",
                es="Probado hasta 8 bloques; los modelos de lenguaje tienen 24 y más.",
                pt="Testado até 8 blocos; modelos de linguagem têm 24 e mais.",
            ),
        ),
    ),
    ops=("sigmoid", "gelu"),
    source="measured here",
)


def _off_by_a_step(run: Comparison, name: str) -> float:
    """What the better neighbour of an arm's best learning rate costs, of those tried."""
    losses = [loss for _, loss in arm(run, name).tuned]
    best = losses.index(min(losses))
    return min(losses[place] for place in (best - 1, best + 1) if 0 <= place < len(losses)) - losses[best]


def _weight(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["depth"]
    yield from contrast(run, "swiglu 4", "gelu 4", "swiglu_over_gelu")
    activation = -arm(run, "swiglu 4").mean + arm(run, "gelu 4").mean
    base = arm(run, "gelu 4")
    for effect, name in (("depth_doubled", "gelu 8"), ("width_doubled", "wide gelu 4")):
        yield from contrast(run, name, "gelu 4", effect)
        gain = base.mean - arm(run, name).mean
        yield Measurement(f"{effect}.flops", arm(run, name).plan.flops / base.plan.flops, "ratio")
        yield Measurement(f"gain_of_gate_over_{effect}", activation / gain if gain > 0 else float("inf"), "ratio")
    swing = arm(run, "sigmoid 4").mean - min(arm(run, f"{name} 4").mean for name in ("gelu", "swiglu"))
    yield Measurement("worst_activation_over_best", swing, "nats/token")
    yield Measurement("learning_rate_off_by_a_step", _off_by_a_step(run, "gelu 4"), "nats/token")


C47 = Claim(
    id="C47",
    statement=Text(
        en="SwiGLU is a small choice of architecture with a disproportionate impact on a model's quality.",
        es="SwiGLU es una elección de arquitectura pequeña con un impacto desproporcionado en la calidad del modelo.",
        pt="SwiGLU é uma escolha de arquitetura pequena com um impacto desproporcional na qualidade do modelo.",
    ),
    method=Text(
        en="Small language models of four blocks, equal parameters, tuned learning rates, paired seeds: what SwiGLU "
        "gains over GELU, beside what twice the blocks and twice the width gain, with their FLOPs, and what a learning "
        "rate a step off costs.",
        es="Modelos de lenguaje pequeños de cuatro bloques, iguales en parámetros, tasas de aprendizaje ajustadas, "
        "semillas pareadas: lo que SwiGLU gana sobre GELU, junto a lo que ganan el doble de bloques y el doble de "
        "ancho, con sus FLOPs, y lo que cuesta una tasa de aprendizaje desviada un paso.",
        pt="Modelos de linguagem pequenos de quatro blocos, iguais em parâmetros, taxas de aprendizado ajustadas, "
        "sementes pareadas: o que a SwiGLU ganha sobre a GELU, ao lado do que ganham o dobro de blocos e o dobro da "
        "largura, com seus FLOPs, e o que custa uma taxa de aprendizado desviada um passo.",
    ),
    studies=("depth",),
    trained=_weight,
    criterion=(
        Bound(measurement="swiglu_over_gelu.decided", low=1, role="noise"),
        Bound(
            measurement="swiglu_over_gelu.better",
            low=1,
            otherwise=Text(
                en="At this size SwiGLU is not better than GELU at all.",
                es="Con este tamaño SwiGLU no es mejor que GELU en absoluto.",
                pt="Neste tamanho a SwiGLU não é melhor que a GELU de modo algum.",
            ),
        ),
        Bound(
            measurement="gain_of_gate_over_depth_doubled",
            low=_SHARE,
            otherwise=Text(
                en="It gains less than a quarter of what twice the blocks gain.",
                es="Gana menos de una cuarta parte de lo que gana el doble de bloques.",
                pt="Ganha menos de um quarto do que ganha o dobro de blocos.",
            ),
        ),
        Bound(
            measurement="gain_of_gate_over_width_doubled",
            low=_SHARE,
            role="caveat",
            otherwise=Text(
                en="It gains less than a quarter of what twice the width gains, which costs several times the FLOPs.",
                es="Gana menos de una cuarta parte de lo que gana el doble de ancho, que cuesta varias veces los "
                "FLOPs.",
                pt="Ganha menos de um quarto do que ganha o dobro da largura, que custa várias vezes os FLOPs.",
            ),
        ),
    ),
    ops=("swiglu", "gelu"),
    source="measured here",
)
