"""Claims on what a gate is and which function suits it: recurrent gates, and gated feed-forwards (C11, C29)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._claim import Bound, Claim, Measurement
from ._families import deepseek_v3_routers, instance, trace, transformers_installed
from ._slopes import Pointwise
from ._stacks import normal
from ._text import Text
from ._training import SEEDS, Networks, interval, networks

_UNITS, _BATCH, _LENGTH, _LONG, _STEPS = 8, 16, 20, 200, 120
_RATES = (0.01, 0.03)
_KEPT = 0.1

_GATES: dict[str, Pointwise] = {
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": torch.nn.functional.hardsigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
}


def _kept_bits(stream: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """Bits ±1 with marks, (SEEDS, batch, length, 2), and at each step the bit that was last marked."""
    shape = (SEEDS, _BATCH, length)
    bits = torch.randint(0, 2, shape, generator=stream).double() * 2 - 1
    marks = torch.rand(shape, generator=stream, dtype=torch.float64) < _KEPT
    marks[..., 0] = True
    last = torch.where(marks, torch.arange(length), 0).cummax(-1).values
    return torch.stack((bits, marks.double()), -1), (bits.gather(-1, last) > 0).double()


def _logits(gate: Pointwise, inputs: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """An LSTM with `gate` in place of σ and one output per step: c ← f·c + i·tanh(z), h = o·tanh(c)."""
    to_gates, recurrent, bias, to_output, output_bias = parameters
    inner = (inputs.flatten(1, 2) @ to_gates + bias).unflatten(1, inputs.shape[1:3])
    hidden = cell = inner.new_zeros(inner.shape[0], inner.shape[1], _UNITS)
    outputs = []
    for step in inner.unbind(2):
        step = torch.baddbmm(step, hidden, recurrent)
        keep, take, show = gate(step[..., : 3 * _UNITS]).chunk(3, -1)
        cell = keep * cell + take * torch.tanh(step[..., 3 * _UNITS :])
        hidden = show * torch.tanh(cell)
        outputs.append(hidden @ to_output + output_bias)
    return torch.cat(outputs, -1)


def _memory(gate: Pointwise) -> tuple[Tensor, Tensor]:
    """Train, then the share of right bits for each seed, at the length trained on and at ten times that length."""
    cells = networks(_RATES, (2, 4 * _UNITS), (_UNITS, 4 * _UNITS), (4 * _UNITS,), (_UNITS, 1), (1,))
    stream = torch.Generator().manual_seed(1)

    def judged(length: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, bits = (cells.for_each(item) for item in _kept_bits(stream, length))
        logits = _logits(gate, inputs, cells.parameters)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, bits, reduction="none").mean((1, 2))
        return losses, ((logits > 0) == (bits > 0)).double().mean((1, 2))

    cells.train(lambda: judged(_LENGTH, stream)[0], _STEPS)
    with torch.no_grad():
        losses, right = judged(_LENGTH, torch.Generator().manual_seed(2))
        long_losses, right_long = judged(_LONG, torch.Generator().manual_seed(3))
    right_long = torch.where(long_losses.isfinite(), right_long, 0.5)  # no answer is as good as a guess
    chosen, chosen_long = cells.best(losses, right, right_long)
    return chosen, chosen_long


def _gate_functions() -> Iterator[Measurement]:
    found = {name: _memory(gate) for name, gate in _GATES.items()}
    for name, (trained, long) in found.items():
        yield Measurement(f"{name}.right", trained.mean().item(), "share")
        yield Measurement(f"{name}.long.right", long.mean().item(), "share")
    for name in list(_GATES)[1:]:
        yield from interval(f"sigmoid_over_{name}.long.right", found["sigmoid"][1] - found[name][1], "share")
    if transformers_installed():
        yield Measurement("deepseek_v3.sigmoid_routers", deepseek_v3_routers(), "sites")
        gated = trace(instance("qwen3_next", num_hidden_layers=4)).sites  # the fourth layer has softmax attention
        outputs = sum(site.kind == "gate" and site.op == "glu" and "self_attn" in site.path for site in gated)
        yield Measurement("qwen3_next.sigmoid_gates_of_attention", outputs, "sites")


C11 = Claim(
    id="C11",
    statement=Text(
        en="For gates the sigmoid is still right: in recurrent networks such as the LSTM, and where something is let "
        "through or not.",
        es="Para las compuertas la sigmoide sigue siendo adecuada: en redes recurrentes como la LSTM, y donde algo "
        "pasa o no pasa.",
        pt="Para portas a sigmoide continua adequada: em redes recorrentes como a LSTM, e onde algo passa ou não "
        "passa.",
    ),
    method=Text(
        en="LSTMs that keep the last marked bit of a sequence, with five functions for their gates, 8 seeds, the "
        "better of two learning rates: the share of right bits at the length trained on and at ten times that length, "
        "and the sigmoid's advantage there with a 95% interval; and whether DeepSeek-V3's router and Qwen3-Next's "
        "attention have sigmoids (tiny instances from transformers, traced).",
        es="LSTM que guardan el último bit marcado de una secuencia, con cinco funciones para sus compuertas, 8 "
        "semillas, la mejor de dos tasas de aprendizaje: la parte de bits correctos con la longitud entrenada y con "
        "diez veces esa longitud, y la ventaja de la sigmoide ahí con un intervalo del 95%; y si el router de "
        "DeepSeek-V3 y la atención de Qwen3-Next tienen sigmoides (modelos diminutos de transformers, trazados).",
        pt="LSTMs que guardam o último bit marcado de uma sequência, com cinco funções para suas portas, 8 sementes, a "
        "melhor de duas taxas de aprendizado: a parte de bits certos no comprimento treinado e em dez vezes esse "
        "comprimento, e a vantagem da sigmoide ali com um intervalo de 95%; e se o router do DeepSeek-V3 e a atenção "
        "do Qwen3-Next têm sigmoides (modelos minúsculos de transformers, rastreados).",
    ),
    measure=_gate_functions,
    criterion=(
        Bound(measurement="sigmoid.right", low=0.99),
        Bound(measurement="sigmoid.long.right", low=0.99),
        Bound(measurement="sigmoid_over_identity.long.right.low", low=0.05),
        Bound(measurement="deepseek_v3.sigmoid_routers", low=1),
        Bound(measurement="qwen3_next.sigmoid_gates_of_attention", low=1),
        *(
            Bound(
                measurement=f"sigmoid_over_{name}.long.right.low",
                low=0.01,
                role="caveat",
                otherwise=Text(
                    en="Right, but not alone: with the hard sigmoid or tanh in their gates LSTMs remember as well, "
                    "and with ReLU almost. Only without any function in the gates do they fail.",
                    es="Adecuada, pero no la única: con la sigmoide dura o tanh en sus compuertas las LSTM recuerdan "
                    "igual de bien, y con ReLU casi. Solo fallan sin ninguna función en las compuertas.",
                    pt="Adequada, mas não a única: com a sigmoide dura ou a tanh em suas portas as LSTMs lembram "
                    "igualmente bem, e com a ReLU quase. Só falham sem nenhuma função nas portas.",
                ),
            )
            for name in ("hard_sigmoid", "tanh", "relu")
        ),
    ),
    ops=("sigmoid", "hardsigmoid", "tanh", "relu"),
    source="Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (the forget gate); measured here",
)

_FEATURES, _TOKENS, _BINS = 8, 2048, 64
_GATED_HIDDEN, _PLAIN_HIDDEN = 15, 25  # 300 weights in three matrices and in two
_FIT_STEPS, _FIT_RATES = 250, (0.01, 0.03)


def _choose_by_sign(x: Tensor) -> Tensor:
    """The first half of the features, each passed on only where its partner in the second half is positive."""
    first, second = x.chunk(2, -1)
    return math.sqrt(2) * first * (second > 0)


def _selectivity(gain: Tensor) -> Tensor:
    """For each network, the variance of a unit's gain between tokens as a share of all variance of the gains."""
    within = gain.var(-2, correction=0).mean(-1)
    return within / (within + gain.mean(-2).var(-1, correction=0))


def _explained(gain: Tensor, own: Tensor) -> Tensor:
    """For each network, the share of the gains' variance between tokens that a unit's own input explains.

    Tokens are put in 64 bins by that input; what varies within a bin is not explained by it.
    """
    ordered = gain.gather(-2, own.argsort(-2)).unflatten(-2, (_BINS, -1))
    left = ordered.var(-2, correction=0).mean((-2, -1))
    return 1 - left / gain.var(-2, correction=0).mean(-1)


class _FeedForwards:
    """Feed-forwards of one kind, whose units are a gain times a value: f(W1 x) · W3 x, or f(z) = (f(z)/z) · z."""

    def __init__(self, function: Pointwise, *, gated: bool, frozen: bool = False) -> None:
        hidden = _GATED_HIDDEN if gated else _PLAIN_HIDDEN
        shapes = ((_FEATURES, hidden),) * (2 if gated else 1)
        self._function, self._gated = function, gated
        start = networks(_FIT_RATES, *shapes, (hidden, _FEATURES // 2))
        self._parameters = start.parameters
        self.trained = Networks(_FIT_RATES, start.parameters[1:]) if frozen else start

    def units(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gain of each unit and the value that it multiplies."""
        inner = x @ self._parameters[0]
        if self._gated:
            return self._function(inner), x @ self._parameters[1]
        return self._function(inner) / inner, inner

    def losses(self, x: Tensor) -> Tensor:
        """The mean squared error of each network."""
        gain, value = self.units(x)
        return ((gain * value) @ self._parameters[-1] - _choose_by_sign(x)).square().mean((1, 2))

    def fit(self) -> tuple[Tensor, ...]:
        """Train; then for each seed loss, selectivity and the share explained by a unit's own input."""
        stream = torch.Generator().manual_seed(1)
        self.trained.train(lambda: self.losses(self._draw(stream, 64)), _FIT_STEPS)
        with torch.no_grad():
            tokens = self._draw(stream, _TOKENS)
            losses, (gain, value) = self.losses(tokens), self.units(tokens)
            return self.trained.best(losses, losses, _selectivity(gain), _explained(gain, value))

    def _draw(self, stream: torch.Generator, tokens: int) -> Tensor:
        return self.trained.for_each(normal(stream, SEEDS, tokens, _FEATURES))


def _gains() -> Iterator[Measurement]:
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    arms = {
        "gated": _FeedForwards(silu, gated=True),
        "gated_frozen": _FeedForwards(silu, gated=True, frozen=True),
        "gelu": _FeedForwards(gelu, gated=False),
        "relu": _FeedForwards(torch.relu, gated=False),
    }
    found = {name: arm.fit() for name, arm in arms.items()}
    for name, (losses, selectivity, explained) in found.items():
        yield Measurement(f"{name}.loss", losses.mean().item(), "mean squared error")
        yield Measurement(f"{name}.selectivity", selectivity.mean().item(), "share")
        yield Measurement(f"{name}.gain_explained_by_own_input", explained.mean().item(), "share")
    yield from interval("loss_of_frozen_gate_over_learned", found["gated_frozen"][0] / found["gated"][0], "ratio")


C29 = Claim(
    id="C29",
    statement=Text(
        en="A plain activation is a fixed nonlinearity; gating is a learned one that depends on the input.",
        es="Una activación simple es una no linealidad fija; la compuerta es una no linealidad aprendida que depende "
        "de la entrada.",
        pt="Uma ativação simples é uma não linearidade fixa; a porta é uma não linearidade aprendida que depende da "
        "entrada.",
    ),
    method=Text(
        en="Gated and plain feed-forwards trained on a task of choosing features by the sign of others, 8 seeds, the "
        "better of two learning rates. A unit's gain is what its value is multiplied by: SiLU(W1·x) for W3·x, and "
        "f(z)/z for a plain unit's z. How much of its variance lies between tokens; how much of that the unit's own "
        "value explains; and the loss with the gate's matrix left at random over that with it learned, with a 95% "
        "interval.",
        es="Feed-forward con compuerta y simples, entrenados en elegir rasgos por el signo de otros, 8 semillas, la "
        "mejor de dos tasas de aprendizaje. La ganancia de una unidad es aquello por lo que se multiplica su valor: "
        "SiLU(W1·x) para W3·x, y f(z)/z para el z de una unidad simple. Qué parte de su varianza está entre tokens; "
        "qué parte de esa explica el propio valor de la unidad; y la pérdida con la matriz de la compuerta al azar "
        "entre la pérdida con ella aprendida, con un intervalo del 95%.",
        pt="Feed-forwards com porta e simples, treinados em escolher atributos pelo sinal de outros, 8 sementes, a "
        "melhor de duas taxas de aprendizado. O ganho de uma unidade é aquilo por que seu valor é multiplicado: "
        "SiLU(W1·x) para W3·x, e f(z)/z para o z de uma unidade simples. Que parte de sua variância está entre "
        "tokens; que parte dessa o próprio valor da unidade explica; e a perda com a matriz da porta ao acaso sobre a "
        "perda com ela aprendida, com um intervalo de 95%.",
    ),
    measure=_gains,
    criterion=(
        Bound(measurement="gated.selectivity", low=0.5),
        Bound(measurement="gated.gain_explained_by_own_input", high=0.75),
        Bound(measurement="gelu.gain_explained_by_own_input", low=0.95),
        Bound(measurement="relu.gain_explained_by_own_input", low=0.95),
        Bound(measurement="loss_of_frozen_gate_over_learned.low", low=1.1),
        Bound(
            measurement="gelu.selectivity",
            high=0.5,
            role="caveat",
            otherwise=Text(
                en="A plain activation's gain depends on the input as much: f(z)/z differs from token to token. What "
                "it lacks is a matrix of its own to choose by; its gain follows from the value it multiplies.",
                es="La ganancia de una activación simple depende igual de la entrada: f(z)/z cambia de un token a "
                "otro. Lo que le falta es una matriz propia con que elegir; su ganancia se sigue del valor que "
                "multiplica.",
                pt="O ganho de uma ativação simples depende da entrada na mesma medida: f(z)/z muda de um token para "
                "outro. O que lhe falta é uma matriz própria para escolher; seu ganho decorre do valor que multiplica.",
            ),
        ),
    ),
    ops=("swiglu", "silu", "gelu", "relu"),
    source="Dauphin et al. 2017; Shazeer 2020; selectivity as in the gate instrument; measured here",
)
