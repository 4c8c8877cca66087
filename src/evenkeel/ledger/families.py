"""Claims on which function public models compute in their feed-forwards (C06, C07, C26, C32)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..description import FeedForwardPart
from ..reference.activations import gelu, gelu_tanh, relu, silu
from ._claim import Bound, Citation, Claim, Measurement, count_citations
from ._families import described, distance, instance, trace, transformers_installed
from ._slopes import Pointwise
from ._text import Text

_ROUNDING = 1e-5  # of float32 at inputs up to 10
_NEAR = 1e-3  # GELU's two forms differ by 4.7e-4

_GPT_HAS_GELU = Text(
    en="GPT's class computes GELU in its tanh form.",
    es="La clase de GPT calcula GELU en su forma con tanh.",
    pt="A classe do GPT calcula a GELU em sua forma com tanh.",
)
_RADFORD = Citation(
    source="Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1",
    says=Text(
        en="The original GPT has GELU as its activation.",
        es="El GPT original tiene GELU como activación.",
        pt="O GPT original tem GELU como ativação.",
    ),
    stance="says otherwise",
)
_GPT_CODE = Citation(
    source="OpenAI 2018, finetune-transformer-lm, train.py, argument --afn",
    says=Text(
        en="The default is gelu, in its tanh form; relu and swish can be chosen instead.",
        es="El valor por defecto es gelu, en su forma con tanh; en su lugar pueden elegirse relu y swish.",
        pt="O valor padrão é gelu, em sua forma com tanh; no lugar dela podem ser escolhidas relu e swish.",
    ),
    stance="says otherwise",
)
_VASWANI = Citation(
    source="Vaswani et al. 2017, Attention Is All You Need, section 3.3",
    says=Text(
        en="The first transformer's feed-forward has ReLU; it is an older model and no GPT.",
        es="El feed-forward del primer transformer tiene ReLU; es un modelo anterior y no un GPT.",
        pt="O feed-forward do primeiro transformer tem ReLU; é um modelo anterior e não um GPT.",
    ),
    stance="does not say",
)


def _layers(model_type: str, wanted: Callable[[FeedForwardPart], bool]) -> float:
    """The share of a family's feed-forwards that are of a kind."""
    parts = described(model_type)
    return sum(part.layers for part in parts if wanted(part)) / sum(part.layers for part in parts)


def _farthest(model_type: str, function: Pointwise) -> float:
    """The largest distance of any activation of a family's class from a function."""
    found = trace(instance(model_type)).functions.values()
    return max((distance(item, function) for item in found), default=float("nan"))


def _original_gpt() -> Iterator[Measurement]:
    yield from count_citations(C06.citations)
    if transformers_installed():
        relus = _layers("openai-gpt", lambda part: part.activation == "relu")
        yield Measurement("openai_gpt.relu_feed_forwards", relus, "share")
        for name, function in (("relu", relu), ("gelu", gelu), ("gelu_tanh", gelu_tanh)):
            yield Measurement(f"openai_gpt.distance_from_{name}", _farthest("openai-gpt", function), "1")


C06 = Claim(
    id="C06",
    statement=Text(
        en="Early transformers such as the original GPT used ReLU.",
        es="Los primeros transformers, como el GPT original, usaban ReLU.",
        pt="Os primeiros transformers, como o GPT original, usavam ReLU.",
    ),
    method=Text(
        en="GPT's default config in transformers, described: the share of its feed-forwards that have ReLU; a tiny "
        "model of its class, traced: the distance of its activation, on a grid, from ReLU and from both forms of GELU; "
        "and what its paper and its training code say.",
        es="La configuración por defecto de GPT en transformers, descrita: qué parte de sus feed-forward tiene ReLU; "
        "un modelo diminuto de su clase, trazado: la distancia de su activación, en una rejilla, a ReLU y a las dos "
        "formas de GELU; y qué dicen su artículo y su código de entrenamiento.",
        pt="A configuração padrão do GPT em transformers, descrita: que parte de seus feed-forwards tem ReLU; um "
        "modelo minúsculo de sua classe, rastreado: a distância de sua ativação, em uma grade, da ReLU e das duas "
        "formas da GELU; e o que dizem seu artigo e seu código de treino.",
    ),
    measure=_original_gpt,
    criterion=(
        Bound(measurement="openai_gpt.relu_feed_forwards", low=1, otherwise=_GPT_HAS_GELU),
        Bound(measurement="openai_gpt.distance_from_relu", high=_NEAR, otherwise=_GPT_HAS_GELU),
        Bound(
            measurement="cited.against",
            high=0,
            otherwise=Text(
                en="GPT's paper and the default of its training code both name GELU. ReLU is what the first "
                "transformer of 2017 used.",
                es="El artículo de GPT y el valor por defecto de su código de entrenamiento nombran GELU. ReLU es lo "
                "que usaba el primer transformer, de 2017.",
                pt="O artigo do GPT e o valor padrão de seu código de treino nomeiam a GELU. ReLU é o que usava o "
                "primeiro transformer, de 2017.",
            ),
        ),
    ),
    ops=("relu", "gelu_tanh"),
    source="the class OpenAIGPTLMHeadModel of the installed transformers, and the sources cited",
    citations=(_RADFORD, _GPT_CODE, _VASWANI),
)


def _later_gpts() -> Iterator[Measurement]:
    yield from count_citations(C07.citations)
    if transformers_installed():
        gelus = _layers("gpt2", lambda part: part.activation in ("gelu", "gelu_tanh"))
        yield Measurement("gpt2.gelu_feed_forwards", gelus, "share")
        for name, function in (("gelu", gelu), ("gelu_tanh", gelu_tanh), ("relu", relu)):
            yield Measurement(f"gpt2.distance_from_{name}", _farthest("gpt2", function), "1")


C07 = Claim(
    id="C07",
    statement=Text(
        en="GPT-2 and GPT-3 use GELU.",
        es="GPT-2 y GPT-3 usan GELU.",
        pt="O GPT-2 e o GPT-3 usam GELU.",
    ),
    method=Text(
        en="GPT-2's default config in transformers, described: the share of its feed-forwards that have GELU; a tiny "
        "model of its class, traced: the distance of its activation from GELU on a grid. GPT-3 is not public, so its "
        "paper is cited.",
        es="La configuración por defecto de GPT-2 en transformers, descrita: qué parte de sus feed-forward tiene GELU; "
        "un modelo diminuto de su clase, trazado: la distancia de su activación a GELU en una rejilla. GPT-3 no es "
        "público, así que se cita su artículo.",
        pt="A configuração padrão do GPT-2 em transformers, descrita: que parte de seus feed-forwards tem GELU; um "
        "modelo minúsculo de sua classe, rastreado: a distância de sua ativação da GELU em uma grade. O GPT-3 não é "
        "público, por isso cita-se seu artigo.",
    ),
    measure=_later_gpts,
    criterion=(
        Bound(measurement="gpt2.gelu_feed_forwards", low=1),
        Bound(measurement="gpt2.distance_from_gelu", high=_NEAR),
        Bound(measurement="cited.against", high=0),
        Bound(
            measurement="gpt2.distance_from_gelu",
            high=_ROUNDING,
            role="caveat",
            otherwise=Text(
                en="GPT-2 computes the tanh approximation of GELU, up to 5e-4 away from x·P(Z ≤ x).",
                es="GPT-2 calcula la aproximación de GELU con tanh, a una distancia de hasta 5e-4 de x·P(Z ≤ x).",
                pt="O GPT-2 calcula a aproximação da GELU com tanh, a uma distância de até 5e-4 de x·P(Z ≤ x).",
            ),
        ),
        Bound(
            measurement="cited.for",
            low=1,
            role="caveat",
            otherwise=Text(
                en="For GPT-3 it follows only by reference: its paper names no function, but GPT-2's architecture.",
                es="Para GPT-3 se sigue solo por remisión: su artículo no nombra ninguna función, sino la arquitectura "
                "de GPT-2.",
                pt="Para o GPT-3 isso decorre só por remissão: seu artigo não nomeia nenhuma função, e sim a "
                "arquitetura do GPT-2.",
            ),
        ),
    ),
    ops=("gelu", "gelu_tanh"),
    source="the class GPT2LMHeadModel of the installed transformers, as openai/gpt-2, src/model.py; GPT-3 cited",
    citations=(
        Citation(
            source="Brown et al. 2020, Language Models are Few-Shot Learners, section 2.1",
            says=Text(
                en="GPT-3 has the model and architecture of GPT-2, but for sparse attention in every other layer.",
                es="GPT-3 tiene el modelo y la arquitectura de GPT-2, salvo atención dispersa en capas alternas.",
                pt="O GPT-3 tem o modelo e a arquitetura do GPT-2, salvo atenção esparsa em camadas alternadas.",
            ),
            stance="does not say",
        ),
    ),
)

_SWIGLU_FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}

_GEMMA_HAS_GEGLU = Text(
    en="True of LLaMA, Mistral and Qwen. Gemma 1, 2 and 3 gate with GELU in its tanh form: GeGLU.",
    es="Cierto para LLaMA, Mistral y Qwen. Gemma 1, 2 y 3 usan GELU en su forma con tanh en la compuerta: GeGLU.",
    pt="Certo para LLaMA, Mistral e Qwen. Gemma 1, 2 e 3 usam GELU em sua forma com tanh na porta: GeGLU.",
)


def _named_families() -> Iterator[Measurement]:
    if not transformers_installed():
        return
    for name, model_type in _SWIGLU_FAMILIES.items():
        swiglus = _layers(model_type, lambda part: part.gate == "swiglu")
        yield Measurement(f"{name}.swiglu_feed_forwards", swiglus, "share")
        for op, function in (("silu", silu), ("gelu_tanh", gelu_tanh)):
            yield Measurement(f"{name}.distance_from_{op}", _farthest(model_type, function), "1")


def _gemma(name: str) -> Text | None:
    """What a miss says of a Gemma; of the other families none is expected."""
    return _GEMMA_HAS_GEGLU if name.startswith("gemma") else None


C26 = Claim(
    id="C26",
    statement=Text(
        en="SwiGLU is the feed-forward of LLaMA, Mistral, Qwen and Gemma.",
        es="SwiGLU es el feed-forward de LLaMA, Mistral, Qwen y Gemma.",
        pt="SwiGLU é o feed-forward de LLaMA, Mistral, Qwen e Gemma.",
    ),
    method=Text(
        en="Each family's default config in transformers, described: the share of its feed-forwards that are gated by "
        "SiLU; and a tiny model of its class, traced: how far the gate's function is, on a grid, from SiLU and from "
        "the tanh form of GELU.",
        es="La configuración por defecto de cada familia en transformers, descrita: qué parte de sus feed-forward "
        "tiene compuerta de SiLU; y un modelo diminuto de su clase, trazado: la distancia de la función de la "
        "compuerta, en una rejilla, a SiLU y a la forma con tanh de GELU.",
        pt="A configuração padrão de cada família em transformers, descrita: que parte de seus feed-forwards tem porta "
        "de SiLU; e um modelo minúsculo de sua classe, rastreado: a distância da função da porta, em uma grade, até a "
        "SiLU e até a forma com tanh da GELU.",
    ),
    measure=_named_families,
    criterion=(
        *(
            bound
            for name in _SWIGLU_FAMILIES
            for bound in (
                Bound(measurement=f"{name}.swiglu_feed_forwards", low=1, otherwise=_gemma(name)),
                Bound(measurement=f"{name}.distance_from_silu", high=_ROUNDING, otherwise=_gemma(name)),
            )
        ),
    ),
    ops=("swiglu", "geglu_tanh"),
    source="the classes of the installed transformers; Gemma Team 2024, Gemma, section 2: approximated GeGLU",
)


def _two_factors() -> Iterator[Measurement]:
    yield from count_citations(C32.citations)
    if not transformers_installed():
        return
    model = instance("llama")
    projected: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        projected[names[module]] = output.detach()

    names = {module: path.rpartition(".")[2] for path, module in model.named_modules() if ".0.mlp." in path}
    handles = [module.register_forward_hook(keep) for module in names]
    gate = next(event for site, event in trace(model).gates.items() if ".0.mlp" in site)
    for handle in handles:
        handle.remove()
    for factor, value in (("activated", gate.activated), ("other", gate.up)):
        for name in ("gate_proj", "up_proj"):
            yield Measurement(f"{factor}.distance_from_silu_of_{name}", _apart(value, silu(projected[name])), "share")
            yield Measurement(f"{factor}.distance_from_{name}", _apart(value, projected[name]), "share")


def _apart(value: Tensor, expected: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return (torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected)).item()


C32 = Claim(
    id="C32",
    statement=Text(
        en="In SwiGLU the gate is W3·x: it controls what passes through.",
        es="En SwiGLU la compuerta es W3·x: controla qué pasa.",
        pt="Na SwiGLU a porta é W3·x: ela controla o que passa.",
    ),
    method=Text(
        en="The two factors of a tiny LLaMA's gated product, traced, beside the outputs of its projections, with and "
        "without SiLU: gate_proj, which is W1, and up_proj, which is W3.",
        es="Los dos factores del producto con compuerta de un LLaMA diminuto, trazado, junto a las salidas de sus "
        "proyecciones, con y sin SiLU: gate_proj, que es W1, y up_proj, que es W3.",
        pt="Os dois fatores do produto com porta de um LLaMA minúsculo, rastreado, ao lado das saídas de suas "
        "projeções, com e sem SiLU: gate_proj, que é W1, e up_proj, que é W3.",
    ),
    measure=_two_factors,
    criterion=(
        Bound(
            measurement="activated.distance_from_silu_of_up_proj",
            high=_ROUNDING,
            otherwise=Text(
                en="The factor that passes through SiLU, and can close, is W1·x: gate_proj in LLaMA's own names.",
                es="El factor que pasa por SiLU, y puede cerrarse, es W1·x: gate_proj en los nombres de LLaMA.",
                pt="O fator que passa pela SiLU, e pode se fechar, é W1·x: gate_proj nos nomes do LLaMA.",
            ),
        ),
        Bound(
            measurement="other.distance_from_gate_proj",
            high=_ROUNDING,
            otherwise=Text(
                en="W3·x is the other factor, up_proj: the values that the gate lets through, with no activation.",
                es="W3·x es el otro factor, up_proj: los valores que la compuerta deja pasar, sin activación.",
                pt="W3·x é o outro fator, up_proj: os valores que a porta deixa passar, sem ativação.",
            ),
        ),
        Bound(
            measurement="cited.against",
            high=0,
            otherwise=Text(
                en="The paper that introduced these gates calls the activated projection the gate.",
                es="El artículo que introdujo estas compuertas llama compuerta a la proyección activada.",
                pt="O artigo que introduziu essas portas chama de porta a projeção ativada.",
            ),
        ),
    ),
    ops=("swiglu", "silu"),
    source="the class LlamaForCausalLM of the installed transformers, and the sources cited",
    citations=(
        Citation(
            source="Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks, section 2",
            says=Text(
                en="The gate is the projection that passes through the sigmoid; the other one, linear, is modulated.",
                es="La compuerta es la proyección que pasa por la sigmoide; la otra, lineal, es la modulada.",
                pt="A porta é a projeção que passa pela sigmoide; a outra, linear, é a modulada.",
            ),
            stance="says otherwise",
        ),
        Citation(
            source="Meta 2023, llama, llama/model.py, class FeedForward",
            says=Text(
                en="The result is w2(silu(w1(x)) * w3(x)); neither projection is called a gate there.",
                es="El resultado es w2(silu(w1(x)) * w3(x)); allí ninguna proyección se llama compuerta.",
                pt="O resultado é w2(silu(w1(x)) * w3(x)); ali nenhuma projeção se chama porta.",
            ),
            stance="does not say",
        ),
    ),
)
