"""Claims on depth: what many layers do to gradients and to the residual stream (C02, C36)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise
from ._stacks import DEPTH, normal, plain_gradient_ratio, residual_stack, rms_norm, weight
from ._text import Text

_WIDTH, _EXAMPLES, _STEPS, _RATE = 64, 128, 20, 0.5
_SHOWN = (1, 6, 12, 18, 24)


def centred_sigmoid(x: Tensor) -> Tensor:
    """σ(x) − ½: the sigmoid with its centre moved to 0 and its slopes kept."""
    return torch.sigmoid(x) - 0.5


def _trained_updates(*, residual: bool) -> list[float]:
    """How far 20 steps of gradient descent move each layer's weights, ‖ΔW‖ / ‖W‖, first layer first."""
    stream = torch.Generator().manual_seed(1)
    source, target = normal(stream, _EXAMPLES, _WIDTH), normal(stream, _EXAMPLES, _WIDTH)
    start = [weight(stream, _WIDTH, _WIDTH) for _ in range(DEPTH)]
    read_out = weight(stream, _WIDTH, _WIDTH)
    weights = [item.clone().requires_grad_() for item in start]
    for _ in range(_STEPS):
        hidden = source
        for item in weights:
            hidden = hidden + torch.sigmoid(rms_norm(hidden) @ item) if residual else torch.sigmoid(hidden @ item)
        loss = (rms_norm(hidden) @ read_out - target).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for item, gradient in zip(weights, gradients, strict=True):
                item -= _RATE * gradient
    return [((last - first).norm() / first.norm()).item() for last, first in zip(weights, start, strict=True)]


def _vanishing() -> Iterator[Measurement]:
    for name, function in (
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("relu", torch.relu),
        ("gelu", torch.nn.functional.gelu),
    ):
        yield Measurement(f"plain.{name}.gradient_ratio", plain_gradient_ratio(function), "ratio")
    yield Measurement("residual.sigmoid.gradient_ratio", residual_stack(torch.sigmoid).gradient_ratio, "ratio")
    for stack in ("plain", "residual"):
        updates = _trained_updates(residual=stack == "residual")
        for layer in _SHOWN:
            yield Measurement(f"{stack}.sigmoid.update_of_layer_{layer}", updates[layer - 1], "share of the weights")
        yield Measurement(f"{stack}.sigmoid.first_update_over_last", updates[0] / updates[-1], "ratio")


C02 = Claim(
    id="C02",
    statement=Text(
        en="In a deep stack of sigmoid layers the gradients vanish, and layers far from the loss stop learning.",
        es="En una pila profunda de capas sigmoides los gradientes se desvanecen, y las capas alejadas de la pérdida "
        "dejan de aprender.",
        pt="Em uma pilha profunda de camadas sigmoides os gradientes desaparecem, e as camadas longe da perda param "
        "de aprender.",
    ),
    method=Text(
        en="24 layers with Xavier weights, as a plain stack and as residual blocks with a norm before each: "
        "‖gradient at the input‖ / ‖gradient at the output‖, and how far 20 steps of gradient descent move each layer.",
        es="24 capas con pesos de Xavier, en pila simple y en bloques residuales con una normalización delante: "
        "‖gradiente en la entrada‖ / ‖gradiente en la salida‖, y cuánto mueven cada capa 20 pasos de descenso de "
        "gradiente.",
        pt="24 camadas com pesos de Xavier, em pilha simples e em blocos residuais com uma normalização antes: "
        "‖gradiente na entrada‖ / ‖gradiente na saída‖, e quanto 20 passos de descida do gradiente movem cada camada.",
    ),
    measure=_vanishing,
    criterion=(
        Bound(measurement="plain.sigmoid.gradient_ratio", high=1e-6),
        Bound(measurement="plain.sigmoid.first_update_over_last", high=1e-3),
        Bound(
            measurement="residual.sigmoid.gradient_ratio",
            high=0.1,
            role="caveat",
            otherwise=Text(
                en="Only in a plain stack. Transformers have residual connections and norms, and there the gradient "
                "passes 24 sigmoid blocks undiminished.",
                es="Solo en una pila simple. Los transformers tienen conexiones residuales y normalización, y ahí el "
                "gradiente atraviesa 24 bloques sigmoides sin menguar.",
                pt="Só em uma pilha simples. Transformers têm conexões residuais e normalização, e ali o gradiente "
                "atravessa 24 blocos sigmoides sem diminuir.",
            ),
        ),
        Bound(
            measurement="residual.sigmoid.first_update_over_last",
            high=0.1,
            role="caveat",
            otherwise=Text(
                en="With residual connections the first layer keeps learning, within a factor of ten of the last.",
                es="Con conexiones residuales la primera capa sigue aprendiendo, a menos de un factor diez de la "
                "última.",
                pt="Com conexões residuais a primeira camada continua aprendendo, a menos de um fator dez da última.",
            ),
        ),
    ),
    ops=("sigmoid", "tanh", "relu", "gelu"),
    source="Hochreiter 1991; Glorot and Bengio 2010; He et al. 2016 (residual connections)",
)


def _stream_means() -> Iterator[Measurement]:
    arms: tuple[tuple[str, Pointwise], ...] = (
        ("sigmoid", torch.sigmoid),
        ("sigmoid_centred", centred_sigmoid),
        ("tanh", torch.tanh),
        ("gelu", torch.nn.functional.gelu),
    )
    for name, function in arms:
        gradient_ratio, shares = residual_stack(function)
        for block in (0, *_SHOWN):
            yield Measurement(f"{name}.mean_share_after_block_{block}", shares[block], "share")
        yield Measurement(f"{name}.gradient_ratio", gradient_ratio, "ratio")


C36 = Claim(
    id="C36",
    statement=Text(
        en="Zero-centred activations keep the signal stable across residual connections.",
        es="Las activaciones centradas en cero mantienen estable la señal a través de las conexiones residuales.",
        pt="Ativações centradas em zero mantêm o sinal estável através das conexões residuais.",
    ),
    method=Text(
        en="24 residual feed-forward blocks: the share of the stream's energy that is the same vector for every token, "
        "and the gradient that passes. σ − ½ differs from σ in its centre only.",
        es="24 bloques feed-forward residuales: la parte de la energía del flujo que es el mismo vector para todos los "
        "tokens, y el gradiente que pasa. σ − ½ difiere de σ solo en el centro.",
        pt="24 blocos feed-forward residuais: a parte da energia do fluxo que é o mesmo vetor para todos os tokens, e "
        "o gradiente que passa. σ − ½ difere de σ apenas no centro.",
    ),
    measure=_stream_means,
    criterion=(
        Bound(measurement="sigmoid.mean_share_after_block_24", low=0.25),
        Bound(measurement="sigmoid_centred.mean_share_after_block_24", high=0.05),
        Bound(measurement="tanh.mean_share_after_block_24", high=0.05),
        Bound(
            measurement="gelu.mean_share_after_block_24",
            high=0.05,
            role="caveat",
            otherwise=Text(
                en="GELU is named as centred and is not: a fifth of the stream becomes a constant, and models train "
                "well with it.",
                es="GELU se da por centrada y no lo está: una quinta parte del flujo se vuelve constante, y los "
                "modelos entrenan bien con ella.",
                pt="A GELU é dada como centrada e não é: um quinto do fluxo vira uma constante, e os modelos treinam "
                "bem com ela.",
            ),
        ),
        Bound(
            measurement="sigmoid.gradient_ratio",
            high=0.1,
            role="caveat",
            otherwise=Text(
                en="What grows without centring is the stream's constant part; the gradient passes as well as with "
                "the centred arm.",
                es="Lo que crece sin centrar es la parte constante del flujo; el gradiente pasa tan bien como con la "
                "variante centrada.",
                pt="O que cresce sem centrar é a parte constante do fluxo; o gradiente passa tão bem quanto na "
                "variante centrada.",
            ),
        ),
    ),
    ops=("sigmoid", "tanh", "gelu"),
    source="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, on centred activations; measured here",
)
