"""Claims on gradient descent: what outputs that are always positive do to it (C04)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._slopes import Pointwise
from ._stacks import normal, weight
from ._text import Text

_INPUTS, _HIDDEN, _EXAMPLES = 16, 32, 256
_SEEDS = (0, 1)
_TARGET = 0.1
_MOST_STEPS = 600
_ZIGZAG_RATE, _ZIGZAG_STEPS, _ZIGZAG_SEEDS = 1 / 8, 40, (0, 1, 2, 3)  # about the longest step that the sigmoid bears


def _centred(x: Tensor) -> Tensor:
    return torch.sigmoid(x) - 0.5


def _centred_and_doubled(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(x) - 1


_ARMS: dict[str, Pointwise] = {
    "sigmoid": torch.sigmoid,
    "sigmoid_centred": _centred,
    "sigmoid_centred_doubled": _centred_and_doubled,
}


def _layer_norm(hidden: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])


class _Regression:
    """A two-layer network on a fixed teacher's data, trained on all examples at once."""

    def __init__(self, function: Pointwise, seed: int, after: Callable[[Tensor], Tensor] = lambda hidden: hidden):
        stream = torch.Generator().manual_seed(seed)
        self._function, self._after = function, after
        self._inputs = normal(stream, _EXAMPLES, _INPUTS)
        teacher = torch.tanh(self._inputs @ normal(stream, _INPUTS, 8) / 2) @ normal(stream, 8, 1)
        self._targets = (teacher - teacher.mean()) / teacher.std()
        start = (
            weight(stream, _INPUTS, _HIDDEN),
            torch.zeros(_HIDDEN, dtype=torch.float64),
            weight(stream, _HIDDEN, 1),
            torch.zeros(1, dtype=torch.float64),
        )
        self.parameters = [item.requires_grad_() for item in start]

    def gradients(self) -> tuple[float, tuple[Tensor, ...]]:
        first, first_bias, second, second_bias = self.parameters
        hidden = self._after(self._function(self._inputs @ first + first_bias))
        loss = (hidden @ second + second_bias - self._targets).square().mean()
        return loss.item(), torch.autograd.grad(loss, self.parameters)


def _steps(network: _Regression, optimizer: torch.optim.Optimizer, most: float) -> float:
    """Steps until the loss is below the target; infinite if it takes `most` of them or diverges."""
    step = 0
    while step < most:
        loss, gradients = network.gradients()
        if loss < _TARGET:
            return step
        if not loss < 100:
            break
        for parameter, gradient in zip(network.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        step += 1
    return math.inf


def _fewest_steps(
    function: Pointwise,
    optimizer: Callable[..., torch.optim.Optimizer],
    rates: tuple[float, ...],
    after: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> float:
    """Steps at the best learning rate of the grid, chosen for each seed, summed over the seeds."""
    total = 0.0
    for seed in _SEEDS:
        fewest = math.inf
        for rate in rates:
            network = _Regression(function, seed, after)
            fewest = min(fewest, _steps(network, optimizer(network.parameters, lr=rate), min(fewest, _MOST_STEPS)))
        total += fewest
    return total


def _turn(function: Pointwise) -> float:
    """The mean cosine between one gradient and the next, at one step size for all arms: −1 is a perfect zig-zag."""
    cosines = []
    for seed in _ZIGZAG_SEEDS:
        network, before = _Regression(function, seed), None
        for _ in range(_ZIGZAG_STEPS):
            _, gradients = network.gradients()
            flat = torch.cat([item.flatten() for item in gradients])
            if before is not None:
                cosines.append(torch.cosine_similarity(flat, before, dim=0))
            before = flat
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters, gradients, strict=True):
                    parameter -= _ZIGZAG_RATE * gradient
    return torch.stack(cosines).mean().item()


def _same_sign_share(function: Pointwise) -> float:
    """How often all weights of one unit get a gradient of one sign from one example: its inputs times one number."""
    outputs = function(normal(torch.Generator().manual_seed(2), 4096, _HIDDEN))
    return ((outputs > 0).all(-1) | (outputs < 0).all(-1)).double().mean().item()


def _rates(lowest: int, highest: int) -> tuple[float, ...]:
    """Powers of √2."""
    return tuple(2 ** (power / 2) for power in range(lowest, highest + 1))


def _zigzag() -> Iterator[Measurement]:
    descent, adam = torch.optim.SGD, torch.optim.Adam
    steps: dict[tuple[str, str], float] = {}
    for name, function in _ARMS.items():
        yield Measurement(f"{name}.same_sign_share", _same_sign_share(function), "share")
        yield Measurement(f"{name}.turn_cosine", _turn(function), "1")
        steps["descent", name] = _fewest_steps(function, descent, _rates(-7, 0))
        steps["adam", name] = _fewest_steps(function, adam, _rates(-10, -4))
        steps["norm", name] = _fewest_steps(function, descent, _rates(-7, -3), _layer_norm)
    for (trained_by, name), count in steps.items():
        yield Measurement(f"{trained_by}.{name}.steps", count, "steps")
    plain, centred, doubled = _ARMS
    for trained_by in ("descent", "adam", "norm"):
        centring = steps[trained_by, plain] / steps[trained_by, centred]
        scale = steps[trained_by, centred] / steps[trained_by, doubled]
        yield Measurement(f"{trained_by}.slowdown_without_centring", centring, "ratio")
        yield Measurement(f"{trained_by}.slowdown_without_scale", scale, "ratio")


C04 = Claim(
    id="C04",
    statement=Text(
        en="Outputs that are always positive bias the weight updates: gradient descent zig-zags and converges slower "
        "than with zero-centred outputs.",
        es="Las salidas siempre positivas sesgan las actualizaciones de los pesos: el descenso de gradiente avanza en "
        "zigzag y converge más despacio que con salidas centradas en cero.",
        pt="Saídas sempre positivas enviesam as atualizações dos pesos: a descida do gradiente avança em zigue-zague "
        "e converge mais devagar do que com saídas centradas em zero.",
    ),
    method=Text(
        en="A two-layer regression with σ, with σ − ½ (centred) and with 2σ − 1 (centred, twice the slope): steps to a "
        "loss of 0.1 at each arm's best learning rate, by gradient descent, by Adam, and with a layer norm behind "
        "the activation; the cosine between successive gradients at one step size; how often one example "
        "gives all weights of a unit a gradient of the same sign.",
        es="Una regresión de dos capas con σ, con σ − ½ (centrada) y con 2σ − 1 (centrada, doble pendiente): pasos "
        "hasta una pérdida de 0.1 con la mejor tasa de aprendizaje de cada variante, con descenso de gradiente, con "
        "Adam y con una layer norm tras la activación; el coseno entre gradientes sucesivos con un mismo paso; y "
        "con qué frecuencia un ejemplo da a todos los pesos de una unidad un gradiente del mismo signo.",
        pt="Uma regressão de duas camadas com σ, com σ − ½ (centrada) e com 2σ − 1 (centrada, o dobro da inclinação): "
        "passos até uma perda de 0.1 com a melhor taxa de aprendizado de cada variante, com descida do gradiente, "
        "com Adam e com uma layer norm depois da ativação; o cosseno entre gradientes sucessivos com um mesmo "
        "passo; e com que frequência um exemplo dá a todos os pesos de uma unidade um gradiente de mesmo sinal.",
    ),
    measure=_zigzag,
    criterion=(
        Bound(measurement="sigmoid.same_sign_share", low=0.99),
        Bound(measurement="sigmoid_centred.same_sign_share", high=0.01),
        Bound(measurement="sigmoid.turn_cosine", high=0.0),
        Bound(measurement="sigmoid_centred.turn_cosine", low=0.5),
        Bound(measurement="descent.slowdown_without_centring", low=1.5),
        Bound(
            measurement="adam.slowdown_without_centring",
            low=3.0,
            role="caveat",
            otherwise=Text(
                en="Adam, with which transformers are trained, takes most of the slowdown away.",
                es="Adam, con el que se entrenan los transformers, elimina la mayor parte de la ralentización.",
                pt="O Adam, com o qual se treinam os transformers, elimina a maior parte da lentidão.",
            ),
        ),
        Bound(
            measurement="norm.slowdown_without_centring",
            low=1.5,
            role="caveat",
            otherwise=Text(
                en="A layer norm behind the activation subtracts the mean, and takes all of it away.",
                es="Una layer norm tras la activación resta la media y la elimina por completo.",
                pt="Uma layer norm depois da ativação subtrai a média e a elimina por completo.",
            ),
        ),
    ),
    ops=("sigmoid",),
    source="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.3; the CS231n notes call it an "
    "inconvenience",
)
