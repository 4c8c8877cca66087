"""Claims on history and on what is not public: cited, and counted where code can tell (C08, C37, C45, C48, C51)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date

from ..schema import Site
from ._claim import Bound, Citation, Claim, Measurement, count_citations
from ._families import installed_families, transformers_installed
from ._text import Text

_CITED = Text(
    en="Cited, not measured: how many sources say so, and how many say otherwise.",
    es="Citado, no medido: cuántas fuentes lo dicen y cuántas dicen otra cosa.",
    pt="Citado, não medido: quantas fontes dizem isso e quantas dizem outra coisa.",
)


def _instruct_gpt() -> Iterator[Measurement]:
    yield from count_citations(C08.citations)


C08 = Claim(
    id="C08",
    statement=Text(
        en="SiLU is used in some language models such as InstructGPT.",
        es="SiLU se usa en algunos modelos de lenguaje como InstructGPT.",
        pt="A SiLU é usada em alguns modelos de linguagem como o InstructGPT.",
    ),
    method=_CITED,
    measure=_instruct_gpt,
    criterion=(
        Bound(measurement="cited.against", high=0),
        Bound(
            measurement="cited.decisive",
            low=1,
            role="noise",
            otherwise=Text(
                en="Unsupported: no source names InstructGPT's function, and the model is not public. What is "
                "published leads elsewhere, from GPT-3's architecture to GPT-2's, which is GELU (C07). Other models "
                "do have SiLU, as a gate (C26, C45).",
                es="Sin respaldo: ninguna fuente nombra la función de InstructGPT, y el modelo no es público. Lo "
                "publicado lleva a otra parte, de la arquitectura de GPT-3 a la de GPT-2, que es GELU (C07). Otros "
                "modelos sí tienen SiLU, como compuerta (C26, C45).",
                pt="Sem respaldo: nenhuma fonte nomeia a função do InstructGPT, e o modelo não é público. O que foi "
                "publicado leva a outro lugar, da arquitetura do GPT-3 à do GPT-2, que é GELU (C07). Outros modelos "
                "têm SiLU, sim, como porta (C26, C45).",
            ),
        ),
    ),
    ops=("silu", "gelu"),
    source="the sources cited",
    citations=(
        Citation(
            source="Ouyang et al. 2022, Training language models to follow instructions, section 3.5 and appendix C",
            says=Text(
                en="InstructGPT starts from the pretrained GPT-3 models and has GPT-3's architecture.",
                es="InstructGPT parte de los modelos GPT-3 preentrenados y tiene la arquitectura de GPT-3.",
                pt="O InstructGPT parte dos modelos GPT-3 pré-treinados e tem a arquitetura do GPT-3.",
            ),
            stance="does not say",
        ),
        Citation(
            source="Brown et al. 2020, Language Models are Few-Shot Learners, section 2.1",
            says=Text(
                en="GPT-3 has GPT-2's model and architecture, but for its attention patterns.",
                es="GPT-3 tiene el modelo y la arquitectura de GPT-2, salvo los patrones de atención.",
                pt="O GPT-3 tem o modelo e a arquitetura do GPT-2, salvo os padrões de atenção.",
            ),
            stance="does not say",
        ),
    ),
)


def _layers_of_gpt4() -> Iterator[Measurement]:
    yield from count_citations(C37.citations)


C37 = Claim(
    id="C37",
    statement=Text(
        en="GPT-4 has more than 100 layers.",
        es="GPT-4 tiene más de 100 capas.",
        pt="O GPT-4 tem mais de 100 camadas.",
    ),
    method=_CITED,
    measure=_layers_of_gpt4,
    criterion=(
        Bound(measurement="cited.against", high=0),
        Bound(
            measurement="cited.decisive",
            low=1,
            role="noise",
            otherwise=Text(
                en="Undisclosed: OpenAI has published neither the model nor its size, so nobody outside can check it.",
                es="No divulgado: OpenAI no ha publicado ni el modelo ni su tamaño, así que nadie de fuera puede "
                "comprobarlo.",
                pt="Não divulgado: a OpenAI não publicou nem o modelo nem seu tamanho, e ninguém de fora pode "
                "conferir.",
            ),
        ),
    ),
    ops=(),
    source="the source cited",
    citations=(
        Citation(
            source="OpenAI 2023, GPT-4 Technical Report, section 2",
            says=Text(
                en="The report gives no details of the architecture, model size included.",
                es="El informe no da detalles de la arquitectura, tampoco del tamaño del modelo.",
                pt="O relatório não dá detalhes da arquitetura, nem do tamanho do modelo.",
            ),
            stance="does not say",
        ),
    ),
)

_PALM, _LLAMA = date(2022, 4, 5), date(2023, 2, 27)  # first versions on arXiv: 2204.02311, 2302.13971
_ENOUGH_FAMILIES = 50


def feed_forward_kind(sites: tuple[Site, ...]) -> str:
    """What a family computes between its matrices: the gate where it has one, else the activation."""
    gates = {site.op for site in sites if site.kind == "gate"} - {"glu"}
    activations = {site.op for site in sites if site.kind == "activation"}
    if gates:
        named = {"swiglu": "gated_silu", "geglu": "gated_gelu", "geglu_tanh": "gated_gelu"}
        return next((kind for op, kind in named.items() if op in gates), "gated_other")
    named = {"gelu": "gelu", "gelu_tanh": "gelu", "quick_gelu": "gelu", "relu": "relu", "relu2": "relu", "silu": "silu"}
    kinds = [kind for op, kind in named.items() if op in activations]
    return kinds[0] if kinds else "sigmoid" if has_sigmoid(sites) else "other"


def has_sigmoid(sites: tuple[Site, ...]) -> bool:
    """Whether a sigmoid is anywhere in a family: in a gate, a router or as an activation."""
    return any(site.op in ("sigmoid", "glu") for site in sites)


def _default_by_convention() -> Iterator[Measurement]:
    yield from count_citations(C45.citations)
    yield Measurement("llama.days_after_palm", (_LLAMA - _PALM).days, "days")
    if not transformers_installed():
        return
    found = [sites for sites in installed_families().values() if sites is not None]
    kinds = Counter(feed_forward_kind(sites) for sites in found)
    yield Measurement("families.traced", len(found), "families")
    for kind in ("gated_silu", "gated_gelu", "gated_other", "gelu", "relu", "silu", "sigmoid", "other"):
        yield Measurement(f"families.{kind}", kinds[kind] / max(len(found), 1), "share")
    somewhere = sum(map(has_sigmoid, found)) / max(len(found), 1)
    yield Measurement("families.sigmoid_somewhere", somewhere, "share")


C45 = Claim(
    id="C45",
    statement=Text(
        en="SwiGLU became the default because LLaMA adopted it and others followed; the sigmoid is rare in the hidden "
        "layers of language models.",
        es="SwiGLU se volvió la opción habitual porque LLaMA la adoptó y otros siguieron; la sigmoide es rara en las "
        "capas ocultas de los modelos de lenguaje.",
        pt="A SwiGLU virou o padrão porque o LLaMA a adotou e outros seguiram; a sigmoide é rara nas camadas ocultas "
        "dos modelos de linguagem.",
    ),
    method=Text(
        en="Every causal language model class of transformers, as a tiny instance with its default activation, traced: "
        "the shares whose feed-forward is gated by SiLU, by GELU, not gated, or a sigmoid, and the share with a "
        "sigmoid anywhere; and when SwiGLU models were published.",
        es="Cada clase de modelo de lenguaje causal de transformers, como modelo diminuto con su activación por "
        "defecto, trazada: qué partes tienen un feed-forward con compuerta de SiLU, de GELU, sin compuerta o una "
        "sigmoide, y qué parte tiene una sigmoide en algún lugar; y cuándo se publicaron modelos con SwiGLU.",
        pt="Cada classe de modelo de linguagem causal de transformers, como modelo minúsculo com sua ativação padrão, "
        "rastreada: que partes têm um feed-forward com porta de SiLU, de GELU, sem porta ou uma sigmoide, e que parte "
        "tem uma sigmoide em algum lugar; e quando foram publicados modelos com SwiGLU.",
    ),
    measure=_default_by_convention,
    criterion=(
        Bound(measurement="families.traced", low=_ENOUGH_FAMILIES, role="noise"),
        Bound(measurement="families.gated_silu", low=0.5),
        Bound(measurement="families.sigmoid", high=0.05),
        Bound(
            measurement="llama.days_after_palm",
            high=0,
            role="caveat",
            otherwise=Text(
                en="PaLM had SwiGLU ten months before LLaMA, and LLaMA's paper names PaLM for it.",
                es="PaLM tenía SwiGLU diez meses antes que LLaMA, y el artículo de LLaMA remite a PaLM.",
                pt="O PaLM tinha SwiGLU dez meses antes do LLaMA, e o artigo do LLaMA remete ao PaLM.",
            ),
        ),
        Bound(
            measurement="cited.for",
            low=1,
            role="caveat",
            otherwise=Text(
                en="That it is the default is counted; why it became so, code cannot tell, and no source cited says.",
                es="Que es lo habitual está contado; por qué llegó a serlo no puede decirlo el código, ni lo dice "
                "ninguna fuente citada.",
                pt="Que é o padrão está contado; por que passou a ser, o código não pode dizer, nem diz alguma fonte "
                "citada.",
            ),
        ),
        Bound(
            measurement="families.sigmoid_somewhere",
            high=0.1,
            role="caveat",
            otherwise=Text(
                en="Hardly any feed-forward has the sigmoid for its activation, but as a gate or router it is in more "
                "than a tenth of the families: in attention outputs, experts and linear attention.",
                es="Casi ningún feed-forward tiene la sigmoide como activación, pero como compuerta o router está en "
                "más de una décima parte de las familias: en salidas de atención, expertos y atención lineal.",
                pt="Quase nenhum feed-forward tem a sigmoide como ativação, mas como porta ou router ela está em mais "
                "de um décimo das famílias: em saídas de atenção, especialistas e atenção linear.",
            ),
        ),
    ),
    ops=("swiglu", "sigmoid"),
    source="the classes of the installed transformers, encoders that can serve as decoders included; dates from arXiv",
    citations=(
        Citation(
            source="Chowdhery et al. 2022 (April), PaLM, section 2",
            says=Text(
                en="PaLM's feed-forward is SwiGLU, for its quality in Shazeer's comparison.",
                es="El feed-forward de PaLM es SwiGLU, por su calidad en la comparación de Shazeer.",
                pt="O feed-forward do PaLM é SwiGLU, por sua qualidade na comparação de Shazeer.",
            ),
            stance="does not say",
        ),
        Citation(
            source="Touvron et al. 2023 (February), LLaMA, section 2.2",
            says=Text(
                en="LLaMA takes SwiGLU, names PaLM for it, and reduces the hidden size to (2/3)·4·d.",
                es="LLaMA toma SwiGLU, remite para ello a PaLM y reduce el tamaño oculto a (2/3)·4·d.",
                pt="O LLaMA adota SwiGLU, remete para isso ao PaLM e reduz o tamanho oculto a (2/3)·4·d.",
            ),
            stance="does not say",
        ),
    ),
)


def _first_scaled() -> Iterator[Measurement]:
    yield from count_citations(C48.citations)


C48 = Claim(
    id="C48",
    statement=Text(
        en="The factor 1/√d_k was introduced in Attention Is All You Need (2017).",
        es="El factor 1/√d_k se introdujo en Attention Is All You Need (2017).",
        pt="O fator 1/√d_k foi introduzido em Attention Is All You Need (2017).",
    ),
    method=_CITED,
    measure=_first_scaled,
    criterion=(
        Bound(measurement="cited.decisive", low=1, role="noise"),
        Bound(measurement="cited.against", high=0),
        Bound(measurement="cited.for", low=1),
    ),
    ops=("attention",),
    source="the sources cited",
    citations=(
        Citation(
            source="Vaswani et al. 2017, Attention Is All You Need, section 3.2.1",
            says=Text(
                en="Scaled dot-product attention is dot-product attention as it was, but for the factor 1/√d_k.",
                es="La atención de producto escalar escalado es la que ya había, salvo por el factor 1/√d_k.",
                pt="A atenção de produto escalar escalonado é a que já havia, salvo pelo fator 1/√d_k.",
            ),
            stance="says so",
        ),
        Citation(
            source="Luong, Pham and Manning 2015, Effective Approaches to Attention-based NMT, section 3.1",
            says=Text(
                en="Dot-product attention before it, with no factor.",
                es="Atención de producto escalar anterior, sin factor.",
                pt="Atenção de produto escalar anterior, sem fator.",
            ),
            stance="does not say",
        ),
    ),
)


def _early_networks() -> Iterator[Measurement]:
    yield from count_citations(C51.citations)


C51 = Claim(
    id="C51",
    statement=Text(
        en="The sigmoid was the popular choice of the early neural networks of the 1980s.",
        es="La sigmoide fue la opción popular de las primeras redes neuronales de los años ochenta.",
        pt="A sigmoide foi a escolha popular das primeiras redes neurais dos anos oitenta.",
    ),
    method=_CITED,
    measure=_early_networks,
    criterion=(
        Bound(measurement="cited.decisive", low=1, role="noise"),
        Bound(measurement="cited.against", high=0),
        Bound(measurement="cited.for", low=1),
    ),
    ops=("sigmoid",),
    source="the source cited",
    citations=(
        Citation(
            source="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.4",
            says=Text(
                en="Looking back on the networks up to then, it names the sigmoid as among the most usual activation "
                "functions, the logistic function and tanh as its usual forms, and advises tanh.",
                es="Al repasar las redes de hasta entonces, cuenta la sigmoide entre las funciones de activación más "
                "usadas, con la logística y tanh como formas habituales, y aconseja tanh.",
                pt="Ao rever as redes de até então, conta a sigmoide entre as funções de ativação mais usadas, com a "
                "logística e a tanh como formas usuais, e aconselha a tanh.",
            ),
            stance="says so",
        ),
    ),
)
