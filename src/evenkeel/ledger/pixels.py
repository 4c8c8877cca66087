"""A claim on images: what a bounded output is good for where the targets are pixels (C12)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise
from ._text import Text
from ._training import SEEDS, interval, networks

_SIDE, _HIDDEN, _CODE = 8, 48, 12
_BATCH, _STEPS, _RATES = 16, 300, (0.006, 0.012)
_TESTED = 256

_OUTPUTS: dict[str, Pointwise] = {"sigmoid": torch.sigmoid, "linear": lambda x: x}


def _images(stream: torch.Generator, count: int, *, darkest: float) -> Tensor:
    """A bright disk with soft edges on a dark ground, (SEEDS, count, 64), pixels from `darkest` to 1 − `darkest`."""
    rows, columns = (axis.double() for axis in torch.meshgrid(*[torch.arange(_SIDE)] * 2, indexing="ij"))
    drawn = torch.rand(SEEDS, count, 4, 1, 1, generator=stream, dtype=torch.float64)
    across, down, radius, light = drawn.unbind(2)
    away = torch.hypot(columns - across * _SIDE, rows - down * _SIDE)
    disk = (1.5 + 3 * radius - away).clamp(0, 1) * (1 + light) / 2
    return darkest + (1 - 2 * darkest) * disk.flatten(2)


class _Fitted(NamedTuple):
    """Of the autoencoders with one output, for each seed: what is measured on images they have not seen."""

    loss: Tensor
    clipped_loss: Tensor
    outside: Tensor


def _autoencoders(output: Pointwise, *, darkest: float) -> _Fitted:
    pixels = _SIDE**2
    half = ((_HIDDEN,), (_HIDDEN, _CODE), (_CODE, _HIDDEN), (_HIDDEN,))
    nets = networks(_RATES, (pixels, _HIDDEN), *half, (_HIDDEN, pixels), (pixels,))
    stream = torch.Generator().manual_seed(1)

    def rebuilt(images: Tensor) -> Tensor:
        into, into_bias, to_code, from_code, from_bias, out, out_bias = nets.parameters
        code = torch.relu(images @ into + into_bias) @ to_code
        return output(torch.relu(code @ from_code + from_bias) @ out + out_bias)

    def losses(images: Tensor) -> Tensor:
        return (rebuilt(images) - images).square().mean((1, 2))

    nets.train(lambda: losses(nets.for_each(_images(stream, _BATCH, darkest=darkest))), _STEPS)
    with torch.no_grad():
        images = nets.for_each(_images(torch.Generator().manual_seed(2), _TESTED, darkest=darkest))
        found = rebuilt(images)
        loss = losses(images)
        clipped = (found.clamp(0, 1) - images).square().mean((1, 2))
        outside = ((found < 0) | (found > 1)).double().mean((1, 2))
    return _Fitted(*nets.best(loss, loss, clipped, outside))


def _bounded_pixels() -> Iterator[Measurement]:
    for images, darkest in (("full_range", 0.0), ("mid_range", 0.25)):
        found = {name: _autoencoders(output, darkest=darkest) for name, output in _OUTPUTS.items()}
        for name, arm in found.items():
            yield Measurement(f"{images}.{name}.outside", arm.outside.mean().item(), "share of pixels")
            yield Measurement(f"{images}.{name}.loss", arm.loss.mean().item(), "mean squared error")
        sigmoid, linear = found["sigmoid"], found["linear"]
        yield from interval(f"{images}.loss_of_linear_over_sigmoid", linear.loss / sigmoid.loss, "ratio")
        clipped = linear.clipped_loss / sigmoid.loss
        yield from interval(f"{images}.loss_of_clipped_linear_over_sigmoid", clipped, "ratio")


C12 = Claim(
    id="C12",
    statement=Text(
        en="In vision models the sigmoid is still of use, to keep pixels in their range.",
        es="En modelos de visión la sigmoide sigue siendo útil, para mantener los píxeles en su rango.",
        pt="Em modelos de visão a sigmoide ainda é útil, para manter os pixels em sua faixa.",
    ),
    method=Text(
        en="Small autoencoders on made-up 8 × 8 images of a disk, with a sigmoid at the output and without, 8 seeds, "
        "the better of two learning rates, equal steps: the share of pixels outside [0, 1], and the squared error "
        "without the sigmoid, also after clipping to [0, 1], over the error with it, with 95% intervals; with pixels "
        "from 0 to 1 and from 0.25 to 0.75.",
        es="Pequeños autocodificadores con imágenes inventadas de un disco, de 8 × 8, con sigmoide en la salida y "
        "sin ella, 8 semillas, la mejor de dos tasas de aprendizaje, iguales pasos: la parte de píxeles fuera de "
        "[0, 1], y el error cuadrático sin sigmoide, también recortado a [0, 1], entre el error con ella, con "
        "intervalos del 95%; con píxeles de 0 a 1 y de 0.25 a 0.75.",
        pt="Pequenos autocodificadores com imagens inventadas de um disco, de 8 × 8, com sigmoide na saída e sem "
        "ela, 8 sementes, a melhor de duas taxas de aprendizado, mesmos passos: a parte de pixels fora de [0, 1], e o "
        "erro quadrático sem a sigmoide, também cortado em [0, 1], sobre o erro com ela, com intervalos de 95%; com "
        "pixels de 0 a 1 e de 0.25 a 0.75.",
    ),
    measure=_bounded_pixels,
    criterion=(
        Bound(measurement="full_range.sigmoid.outside", high=0.0),
        Bound(measurement="full_range.linear.outside", low=0.01),
        Bound(measurement="full_range.loss_of_linear_over_sigmoid.low", low=1.0),
        Bound(
            measurement="full_range.loss_of_clipped_linear_over_sigmoid.low",
            low=1.0,
            role="caveat",
            otherwise=Text(
                en="Clipping a linear output keeps the range as well, at no greater error.",
                es="Recortar una salida lineal también mantiene el rango, sin mayor error.",
                pt="Cortar uma saída linear também mantém a faixa, sem erro maior.",
            ),
        ),
        Bound(
            measurement="mid_range.linear.outside",
            low=0.01,
            role="caveat",
            otherwise=Text(
                en="Only where pixels reach the ends of the range: between 0.25 and 0.75 a linear output hardly ever "
                "leaves it either.",
                es="Solo donde los píxeles llegan a los extremos del rango: entre 0.25 y 0.75 tampoco una salida "
                "lineal sale casi nunca de él.",
                pt="Só onde os pixels chegam às pontas da faixa: entre 0.25 e 0.75 uma saída linear também quase "
                "nunca sai dela.",
            ),
        ),
    ),
    ops=("sigmoid",),
    source="measured here; Kingma and Welling 2014, section 5, keep their images' means in (0, 1) by a sigmoid",
)
