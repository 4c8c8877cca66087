"""Claims on the size of gated feed-forwards (C25, C44)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import nn

from ._claim import Bound, Claim, Measurement
from ._families import default_config, described, feed_forward, installed_families, transformers_installed
from ._stacks import normal
from ._text import Text

_WIDTH, _PLAIN, _GATED = 768, 4 * 768, 8 * 768 // 3
_LLAMA_7B = (4096, 11008)
_TOLD = 8 / 3


def _matrices(block: nn.Module) -> list[int]:
    """The sizes of a block's weight matrices; biases are no matrices."""
    return [item.numel() for item in block.parameters() if item.dim() == 2]


def _three_matrices() -> Iterator[Measurement]:
    if not transformers_installed():
        return
    gated = feed_forward("llama", hidden_size=_WIDTH, intermediate_size=_GATED)
    plain = feed_forward("gpt2", n_embd=_WIDTH, n_inner=_PLAIN)
    for name, sizes in (("gated", _matrices(gated)), ("plain", _matrices(plain))):
        yield Measurement(f"{name}.matrices", len(sizes), "matrices")
        yield Measurement(f"{name}.parameters", sum(sizes), "parameters")
    yield Measurement("gated.parameters_over_plain", sum(_matrices(gated)) / sum(_matrices(plain)), "ratio")
    (llama,) = described("llama")
    yield Measurement("llama_7b.matrices", llama.matrices, "matrices")
    yield Measurement("llama_7b.parameters_over_plain", llama.parity, "ratio")
    yield Measurement("gated.distance_from_formula", _distance_from_formula(gated.double()), "share of the norm")


def _distance_from_formula(gated: nn.Module) -> float:
    """How far LLaMA's own module is from W2 (SiLU(W1 x) ⊗ W3 x), written out in float64."""
    first, third, second = (gated.get_parameter(f"{name}_proj.weight").detach() for name in ("gate", "up", "down"))
    x = normal(torch.Generator().manual_seed(0), 64, _WIDTH)
    gate = x @ first.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ third.T)) @ second.T
    return ((gated(x).detach() - expected).norm() / expected.norm()).item()


C25 = Claim(
    id="C25",
    statement=Text(
        en="A SwiGLU feed-forward is W2·(SiLU(W1·x) ⊗ W3·x), three matrices; with (8/3)·d in place of 4·d it has as "
        "many parameters as one with two.",
        es="Un feed-forward SwiGLU es W2·(SiLU(W1·x) ⊗ W3·x), tres matrices; con (8/3)·d en lugar de 4·d tiene tantos "
        "parámetros como uno de dos.",
        pt="Um feed-forward SwiGLU é W2·(SiLU(W1·x) ⊗ W3·x), três matrizes; com (8/3)·d em vez de 4·d ele tem tantos "
        "parâmetros quanto um de duas.",
    ),
    method=Text(
        en="LLaMA's and GPT-2's feed-forwards from transformers at d = 768, hidden sizes 2048 and 3072: their "
        "matrices counted, and LLaMA's output beside the formula in float64; and LLaMA 7B, described from its "
        "class's defaults, which rounds (8/3)·4096 up to 11008, beside 4·4096 with two matrices.",
        es="Los feed-forward de LLaMA y GPT-2 en transformers con d = 768 y tamaños ocultos 2048 y 3072: sus "
        "matrices contadas, y la salida del de LLaMA junto a la fórmula en float64; y LLaMA 7B, descrito a partir "
        "de los valores por defecto de su clase, que redondea (8/3)·4096 hasta 11008, junto a 4·4096 con dos matrices.",
        pt="Os feed-forwards de LLaMA e GPT-2 em transformers com d = 768 e tamanhos ocultos 2048 e 3072: suas "
        "matrizes contadas, e a saída do de LLaMA ao lado da fórmula em float64; e o LLaMA 7B, descrito a partir "
        "dos valores padrão de sua classe, que arredonda (8/3)·4096 até 11008, ao lado de 4·4096 com duas matrizes.",
    ),
    measure=_three_matrices,
    criterion=(
        Bound(measurement="gated.matrices", low=3, high=3),
        Bound(measurement="plain.matrices", low=2, high=2),
        Bound(measurement="gated.parameters_over_plain", low=1, high=1),
        Bound(measurement="gated.distance_from_formula", high=1e-12),
        Bound(measurement="llama_7b.matrices", low=3, high=3),
        Bound(measurement="llama_7b.parameters_over_plain", low=0.99, high=1.01),
    ),
    ops=("swiglu", "silu"),
    source="Shazeer 2020, section 2: hidden size reduced to 2/3; 2·768·3072 = 3·768·2048",
)

_RELEASED = {
    "LLaMA 7B": _LLAMA_7B,
    "LLaMA 13B": (5120, 13824),
    "LLaMA 33B": (6656, 17920),
    "LLaMA 65B": (8192, 22016),
    "Llama 2 70B": (8192, 28672),
    "Llama 3 8B": (4096, 14336),
    "Llama 3.1 405B": (16384, 53248),
    "Llama 3.2 1B": (2048, 8192),
    "Llama 3.2 3B": (3072, 8192),
    "Mistral 7B": (4096, 14336),
    "OLMo 2 7B": (4096, 11008),
    "OLMo 2 13B": (5120, 13824),
    "Phi 3 mini": (3072, 8192),
    "Qwen2.5 0.5B": (896, 4864),
    "Qwen2.5 1.5B": (1536, 8960),
    "Qwen2.5 3B": (2048, 11008),
    "Qwen2.5 7B": (3584, 18944),
    "Qwen2.5 14B": (5120, 13824),
    "Qwen2.5 32B": (5120, 27648),
    "Qwen2.5 72B": (8192, 29568),
    "Qwen3 0.6B": (1024, 3072),
    "Qwen3 1.7B": (2048, 6144),
    "Qwen3 4B": (2560, 9728),
    "Qwen3 8B": (4096, 12288),
    "Qwen3 14B": (5120, 17408),
    "Qwen3 32B": (5120, 25600),
    "Gemma 2B": (2048, 16384),
    "Gemma 7B": (3072, 24576),
    "Gemma 2 2B": (2304, 9216),
    "Gemma 2 9B": (3584, 14336),
    "Gemma 2 27B": (4608, 36864),
    "Gemma 3 1B": (1152, 6912),
    "Gemma 3 4B": (2560, 10240),
    "Gemma 3 12B": (3840, 15360),
    "Gemma 3 27B": (5376, 21504),
    "DeepSeek-V3": (7168, 18432),
}
"""Width and hidden size of gated feed-forwards, from the config.json of the releases; Gemma's is one branch of two."""


def _near(ratios: list[float]) -> float:
    return sum(abs(ratio / _TOLD - 1) <= 0.05 for ratio in ratios) / len(ratios)


def _released_sizes() -> Iterator[Measurement]:
    released = [hidden / width for width, hidden in _RELEASED.values()]
    yield Measurement("released.models", len(released), "models")
    yield Measurement("released.share_near_8_over_3", _near(released), "share")
    for name, value in (
        ("smallest", min(released)),
        ("median", statistics.median(released)),
        ("largest", max(released)),
    ):
        yield Measurement(f"released.{name}", value, "hidden size / d")
    if not transformers_installed():
        return
    defaults = list(_default_ratios())
    yield Measurement("class_defaults.families", len(defaults), "families")
    yield Measurement("class_defaults.share_near_8_over_3", _near(defaults), "share")
    yield Measurement("class_defaults.median", statistics.median(defaults), "hidden size / d")
    copied = sum(ratio == _LLAMA_7B[1] / _LLAMA_7B[0] for ratio in defaults) / len(defaults)
    yield Measurement("class_defaults.share_as_llama_7b", copied, "share")


def _default_ratios() -> Iterator[float]:
    """Hidden size over width by default, of each family with attention, a gated feed-forward and no experts."""
    for model_type, sites in installed_families().items():
        kinds = {site.kind for site in sites or ()}
        if sites is None or "attention" not in kinds or "router" in kinds:
            continue
        config = default_config(model_type)
        width, hidden = (getattr(config, name, None) for name in ("hidden_size", "intermediate_size"))
        gated = any(site.kind == "gate" and site.op != "glu" for site in sites)
        if gated and isinstance(width, int) and isinstance(hidden, int):
            yield hidden / width


C44 = Claim(
    id="C44",
    statement=Text(
        en="In gated feed-forwards the hidden size is typically (8/3)·d.",
        es="En los feed-forward con compuerta el tamaño oculto suele ser (8/3)·d.",
        pt="Nos feed-forwards com porta o tamanho oculto costuma ser (8/3)·d.",
    ),
    method=Text(
        en="Hidden size over width of 36 released models with gated feed-forwards, from their config files; and by "
        "default of each class in transformers that has such feed-forwards and no experts, which are no released "
        "models: the share within 5% of 8/3.",
        es="Tamaño oculto entre anchura de 36 modelos publicados con feed-forward con compuerta, según sus archivos de "
        "configuración; y por defecto en cada clase de transformers que los tiene y no tiene expertos, que no es un "
        "modelo publicado: la parte a menos de un 5% de 8/3.",
        pt="Tamanho oculto sobre largura de 36 modelos publicados com feed-forwards com porta, segundo seus arquivos "
        "de configuração; e por padrão em cada classe de transformers que os tem e não tem especialistas, que não é "
        "um modelo publicado: a parte a menos de 5% de 8/3.",
    ),
    measure=_released_sizes,
    criterion=(
        Bound(
            measurement="released.share_near_8_over_3",
            low=0.5,
            otherwise=Text(
                en="LLaMA 1 has it, and few since: most released models are wider, from 2.6 to 8 times d. Parameters "
                "are then no longer equal to those of a plain feed-forward of 4·d.",
                es="LLaMA 1 lo tiene, y pocos desde entonces: la mayoría de los modelos publicados son más anchos, de "
                "2.6 a 8 veces d. Entonces ya no tienen tantos parámetros como un feed-forward simple de 4·d.",
                pt="O LLaMA 1 o tem, e poucos desde então: a maioria dos modelos publicados é mais larga, de 2.6 a 8 "
                "vezes d. Então eles já não têm tantos parâmetros quanto um feed-forward simples de 4·d.",
            ),
        ),
        Bound(measurement="released.models", low=20, role="noise"),
    ),
    ops=("swiglu", "geglu"),
    source="config.json of each release; class defaults of the installed transformers; Shazeer 2020, section 2",
)
