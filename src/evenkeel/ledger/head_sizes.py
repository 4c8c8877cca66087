"""A claim on how wide attention heads are (C55)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from ._claim import Bound, Claim, Measurement
from ._families import default_config, installed_families, transformers_installed
from ._text import Text

_USUAL = (64, 128)
_ENOUGH_FAMILIES = 50


def _head_dim(model_type: str) -> int | None:
    """d_k by default of a family's class; None where it has no attention heads, or no one size of them."""
    try:
        config = default_config(model_type).get_text_config()
        given = getattr(config, "head_dim", None)
        return config.hidden_size // config.num_attention_heads if given is None else int(given)
    except Exception:  # each class has its own way of having no such size
        return None


def _head_dims() -> Iterator[Measurement]:
    if not transformers_installed():
        return
    found = [size for size in map(_head_dim, installed_families()) if size is not None]
    yield Measurement("families", len(found), "families")
    yield Measurement("smallest", min(found), "d_k")
    yield Measurement("median", statistics.median(found), "d_k")
    yield Measurement("largest", max(found), "d_k")
    for name, count in (
        ("below_64", sum(size < _USUAL[0] for size in found)),
        ("64_or_128", sum(size in _USUAL for size in found)),
        ("above_128", sum(size > _USUAL[1] for size in found)),
        ("64_or_more", sum(size >= _USUAL[0] for size in found)),
    ):
        yield Measurement(f"share.{name}", count / len(found), "share")


C55 = Claim(
    id="C55",
    statement=Text(
        en="In transformers d_k is commonly 64, 128 or more.",
        es="En los transformers d_k suele ser 64, 128 o más.",
        pt="Nos transformers d_k costuma ser 64, 128 ou mais.",
    ),
    method=Text(
        en="The head size that each causal language model class of transformers has by default: the shares below 64, "
        "of 64 or 128, and above 128.",
        es="El tamaño de cabeza por defecto de cada clase de modelo de lenguaje causal de transformers: las partes por "
        "debajo de 64, de 64 o 128, y por encima de 128.",
        pt="O tamanho de cabeça padrão de cada classe de modelo de linguagem causal de transformers: as partes abaixo "
        "de 64, de 64 ou 128, e acima de 128.",
    ),
    measure=_head_dims,
    criterion=(
        Bound(measurement="families", low=_ENOUGH_FAMILIES, role="noise"),
        Bound(measurement="share.64_or_more", low=0.5),
        Bound(measurement="share.64_or_128", low=0.5),
    ),
    ops=("attention",),
    source="class defaults of the installed transformers; Vaswani et al. 2017, section 3.2.2: d_k = 64",
)
