"""Measures what docs/mean-field.md shows: python docs/mean_field.py > docs/mean-field.md (half a minute).

Random numbers have fixed seeds; sums may differ in their last digits from one machine to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from evenkeel.facts import FACTS
from evenkeel.functional import ACTIVATIONS
from evenkeel.mean_field import Placement, Scales, predicted_scales

DEPTH = 100
_SIDE = 128
WIDTH = _SIDE**2
_TOGETHER = 8  # draws that are computed at once
_UPSTREAM = 2.0**64  # a gradient that fades by 2^-150 is then still a normal float32

LinearMap = Callable[[Tensor], Tensor]


class Stack(NamedTuple):
    """Layers h ← f(h) with f(h) = W φ(h), W of variance weight²/width, perhaps around a residual branch and a norm."""

    activation: str
    weight: float
    residual: bool = False
    norm: Placement = "none"

    @property
    def shown(self) -> str:
        """In words."""
        norm = {"none": "", "pre": ", norm before", "post": ", norm after"}[self.norm]
        return ("residual" if self.residual else "plain") + norm

    def predicted(self) -> Scales:
        """By mean-field theory."""
        return predicted_scales(self.activation, DEPTH, weight=self.weight, residual=self.residual, norm=self.norm)


def critical(name: str) -> float:
    """The standard deviation of √width·W at which a layer keeps a signal of scale 1."""
    return FACTS[name].second_moment ** -0.5


STACKS = (
    Stack("relu", critical("relu")),
    Stack("gelu", math.sqrt(2)),
    Stack("silu", math.sqrt(2)),
    Stack("tanh", 1.0),
    Stack("tanh", 1.3),
    Stack("sigmoid", critical("sigmoid")),
    Stack("relu", 1.0, residual=True),
    Stack("relu", critical("relu"), norm="pre"),
    Stack("relu2", 1.0, residual=True, norm="pre"),
    Stack("gelu", 1.0, residual=True, norm="pre"),
    Stack("sigmoid", 1.0, residual=True, norm="pre"),
    Stack("gelu", 1.0, residual=True, norm="post"),
)


def measured(stack: Stack, maps: Callable[[torch.Generator], LinearMap], width: int, draws: int) -> Scales:
    """Root mean squares of signals and gradients over units and draws; `maps` draws a layer's linear map."""
    energies: list[Tensor] = []
    for seed in range(draws // _TOGETHER):
        stream = torch.Generator().manual_seed(seed)
        signals = [torch.randn(_TOGETHER, width, generator=stream).requires_grad_()]
        for _ in range(DEPTH):
            signals.append(_layer(stack, maps(stream), signals[-1]))
        upstream = _UPSTREAM * torch.randn(_TOGETHER, width, generator=stream)
        gradients = torch.autograd.grad(signals[-1], signals, upstream)
        both = [[item.detach().double().square().mean() for item in items] for items in (signals, gradients)]
        energies.append(torch.tensor(both, dtype=torch.float64))
    forward, backward = torch.stack(energies).mean(0).sqrt()
    return Scales(tuple(forward.tolist()), tuple((backward / _UPSTREAM).tolist()))


def _layer(stack: Stack, linear: LinearMap, signal: Tensor) -> Tensor:
    read = _normed(signal) if stack.norm == "pre" else signal
    made = stack.weight * linear(ACTIVATIONS[stack.activation].function(read))
    made = signal + made if stack.residual else made
    return _normed(made) if stack.norm == "post" else made


def _normed(signal: Tensor) -> Tensor:
    return signal * torch.rsqrt(signal.square().mean(-1, keepdim=True))


def fast_map(stream: torch.Generator) -> LinearMap:
    """x ↦ H G H S x: random signs, Gaussian numbers of each draw's own, Hadamard transforms.

    As an i.i.d. Gaussian matrix does, it makes every unit N(0, mean x²), at a cost that allows stacks so wide that
    chance hardly moves them. Source: Le, Sarlós and Smola 2013, Fastfood.
    """
    shape = (_TOGETHER, _SIDE, _SIDE)
    signs = torch.randint(0, 2, shape[1:], generator=stream, dtype=torch.float32).mul_(2).sub_(1)
    numbers = torch.randn(shape, generator=stream)

    def linear(x: Tensor) -> Tensor:
        mixed = _HADAMARD @ (signs * x.view(shape)) @ _HADAMARD
        return (_HADAMARD @ (numbers * mixed) @ _HADAMARD).flatten(1)

    return linear


def _hadamard(size: int) -> Tensor:
    """Symmetric, orthogonal, ±1/√size."""
    signs = torch.ones(1, 1)
    while len(signs) < size:
        signs = torch.cat((torch.cat((signs, signs), 1), torch.cat((signs, -signs), 1)))
    return signs / math.sqrt(size)


_HADAMARD = _hadamard(_SIDE)


def scales(stack: Stack) -> Scales:
    """As measured for the page."""
    return measured(stack, fast_map, WIDTH, 16)


def row(stack: Stack, found: Scales) -> str:
    """One line of the table."""
    predicted = stack.predicted()
    forward, backward = found.forward[-1] / predicted.forward[-1], found.backward[0] / predicted.backward[0]
    cells = (
        *(stack.activation, stack.shown, f"{stack.weight:.4g}"),
        *(f"{predicted.forward[-1]:.3g}", f"{forward:.2f}", f"{predicted.backward[0]:.3g}", f"{backward:.2f}"),
    )
    return f"| {' | '.join(cells)} |"


def page() -> Iterator[str]:
    """The page, line by line."""
    yield "# Scales at initialisation"
    yield ""
    yield f"What {DEPTH} untrained layers h ← W φ(h) do to the size of signals and gradients: predicted by"
    yield "`evenkeel.mean_field.predicted_scales` from the moments of φ, and measured by `python docs/mean_field.py`,"
    yield "which made this page. All are root mean squares; signal: after the last layer, where it was 1 before the"
    yield "first; gradient: before the first layer, where it is 1 after the last. σ_w²/width is the variance of a"
    yield "weight. With a residual connection a layer is h + W φ(h); a norm is of root mean square, of what φ reads or"
    yield f"of what the layer returns. Width {WIDTH:,}, with fast random maps in place of dense Gaussian matrices (Le"
    yield "et al. 2013), and 16 draws of the weights. `tests/test_mean_field.py` holds every layer within 5% of the"
    yield "prediction, and dense matrices of width 1,024 within 10%."
    yield ""
    yield "| φ | stack | σ_w | signal | measured ÷ predicted | gradient | measured ÷ predicted |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for stack in STACKS:
        yield row(stack, scales(stack))
    yield ""
    yield "- ReLU with σ_w² = 2 (He et al. 2015) keeps both scales. GELU and SiLU with the same weights let both fade:"
    yield "  small signals are halved by them."
    yield "- tanh at σ_w = 1 lets both fade as a power of the depth; with larger weights signals settle and gradients"
    yield "  grow: chaos (Poole et al. 2016)."
    yield "- sigmoid, with weights that keep its signal, makes a gradient 0.39 times as large in each layer; with a"
    yield "  residual connection and a norm before it the gradient passes."
    yield "- A plain stack of a width in use is one draw: with ReLU, chance moves its scale by √(5·depth/width)/2 or"
    yield "  so, a third of it for 100 layers of width 1,024 (Hanin and Nica 2018)."


if __name__ == "__main__":
    print("\n".join(page()))
