"""Claims on which activation to start with (C13)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

from ..nn import AttentionConfig, FeedForwardConfig, Transformer, TransformerConfig
from ..schema import Change
from ..studies.trials.corpus import Corpus, read_corpus
from ..studies.trials.predictions import row_losses
from ..surgery import swap
from ..training import adamw, byte_batches, train
from ._claim import Bound, Claim, Measurement
from ._contrasts import arm, contrast
from ._studies import Comparisons
from ._text import Text

_PLAIN = ("relu", "gelu", "silu", "tanh", "sigmoid", "relu2")
_CONTEXT, _ROWS, _STEPS, _RATE = 64, 4, 150, 8e-3
_SWAPS = (("relu", "gelu"), ("silu", "gelu"), ("gelu", "relu"), ("gelu", "silu"))


@cache
def _corpus() -> Corpus:
    return read_corpus("", context=_CONTEXT)


def _trained(activation: str) -> Transformer:
    """A small language model with this activation, trained for a moment."""
    config = TransformerConfig(
        context=_CONTEXT,
        depth=2,
        d_model=64,
        attention=AttentionConfig(heads=2),
        feedforward=FeedForwardConfig(activation=activation, gated=False),
    )
    model = Transformer(config, seed=0)
    batches = byte_batches(_corpus().training, context=_CONTEXT, size=_ROWS, seed=0)
    train(model, adamw(model, learning_rate=_RATE), islice(batches, _STEPS), steps=_STEPS)
    return model


def _swapped() -> Iterator[Measurement]:
    models = {name: _trained(name) for name in ("relu", "gelu", "silu")}
    rows = _corpus().windows(_CONTEXT)
    losses = {name: row_losses(model, rows).mean().item() for name, model in models.items()}
    for trained, put_in in _SWAPS:
        with swap(models[trained], Change("feedforward.activation", put_in)):
            rise = row_losses(models[trained], rows).mean().item() - losses[trained]
        yield Measurement(f"swap.{trained}_to_{put_in}.loss_rise", rise, "nats/token")


def _ranked(runs: Comparisons) -> Iterator[Measurement]:
    run = runs["feedforward"]
    means = {name: arm(run, name).mean for name in _PLAIN}
    yield Measurement("gelu.rank_among_plain", 1 + sum(loss < means["gelu"] for loss in means.values()), "of 6")
    for name in ("relu", "silu", "tanh", "relu2"):
        yield from contrast(run, "gelu", name, f"gelu_over_{name}")


C13 = Claim(
    id="C13",
    statement=Text(
        en="Who tweaks a model should start with GELU: it is compatible with transformers.",
        es="Quien ajusta un modelo debería empezar con GELU: es compatible con los transformers.",
        pt="Quem ajusta um modelo deveria começar com GELU: ela é compatível com os transformers.",
    ),
    method=Text(
        en="In training: GELU against the plain activations ReLU, SiLU, tanh and ReLU² in small language models, equal "
        "parameters, tuned learning rates, paired seeds, and its rank among six. In a trained model: small models with "
        "ReLU and SiLU, trained for 150 steps, and the rise of their held-out loss when GELU is put in their place; "
        "and the other way round.",
        es="Al entrenar: GELU contra las activaciones simples ReLU, SiLU, tanh y ReLU² en modelos de lenguaje "
        "pequeños, iguales en parámetros, tasas de aprendizaje ajustadas, semillas pareadas, y su puesto entre seis. "
        "En un modelo entrenado: modelos pequeños con ReLU y SiLU, entrenados 150 pasos, y cuánto sube su pérdida en "
        "texto apartado cuando se pone GELU en su lugar; y al revés.",
        pt="Ao treinar: GELU contra as ativações simples ReLU, SiLU, tanh e ReLU² em modelos de linguagem pequenos, "
        "iguais em parâmetros, taxas de aprendizado ajustadas, sementes pareadas, e seu lugar entre seis. Em um modelo "
        "treinado: modelos pequenos com ReLU e SiLU, treinados por 150 passos, e quanto sobe sua perda em texto "
        "reservado quando se põe GELU em seu lugar; e o contrário.",
    ),
    measure=_swapped,
    studies=("feedforward",),
    trained=_ranked,
    criterion=(
        *(
            Bound(
                measurement=f"gelu_over_{name}.worse",
                high=0,
                otherwise=Text(
                    en="It is shown to train worse than ReLU or SiLU.",
                    es="Se muestra que entrena peor que ReLU o SiLU.",
                    pt="Mostra-se que treina pior que ReLU ou SiLU.",
                ),
            )
            for name in ("relu", "silu")
        ),
        Bound(
            measurement="gelu.rank_among_plain",
            high=1,
            role="caveat",
            otherwise=Text(
                en="A safe start and not the best one: another plain activation ends lower. In Shazeer 2020 GELU is "
                "ahead of ReLU at 65,536 steps and not at 524,288.",
                es="Un comienzo seguro y no el mejor: otra activación simple termina más abajo. En Shazeer 2020 GELU "
                "va por delante de ReLU con 65.536 pasos y no con 524.288.",
                pt="Um começo seguro e não o melhor: outra ativação simples termina mais abaixo. Em Shazeer 2020 a "
                "GELU está à frente da ReLU com 65.536 passos e não com 524.288.",
            ),
        ),
        *(
            Bound(
                measurement=f"swap.{name}_to_gelu.loss_rise",
                high=0.02,
                role="caveat",
                otherwise=Text(
                    en="For a model that is to be trained. One that is trained already keeps the function it was "
                    "trained with: GELU put in its place raises the loss.",
                    es="Para un modelo que se va a entrenar. Uno ya entrenado conserva la función con la que se "
                    "entrenó: poner GELU en su lugar sube la pérdida.",
                    pt="Para um modelo que vai ser treinado. Um já treinado mantém a função com que foi treinado: pôr "
                    "GELU em seu lugar aumenta a perda.",
                ),
            )
            for name in ("relu", "silu")
        ),
    ),
    ops=("gelu", "relu", "silu", "tanh", "relu2"),
    source="Shazeer 2020, table 1, at 65,536 and 524,288 steps; measured here",
)
