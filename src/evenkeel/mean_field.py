"""How untrained wide layers scale signals and gradients, predicted from the moments of their activation.

In the limit of infinite width every unit of a layer is Gaussian at initialisation, so all that a layer does to the size
of a signal is in E φ(√q z)², and all it does to that of a gradient in E φ′(√q z)², z ~ N(0, 1). At q = 1 these are the
moments in evenkeel.facts. Sources: Poole et al. 2016 (signals); Schoenholz et al. 2017 (gradients); Yang and
Schoenholz 2017 (residual connections).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .errors import UsageError
from .reference.activations import REFERENCES

Pointwise = Callable[[Tensor], Tensor]
Placement = Literal["none", "pre", "post"]

_LOG_SIZES, _STEP = (-32.0, 2.5), 1 / 256  # of |z|, from 1e-14 to 12


class Scales(NamedTuple):
    """Root mean squares through a stack, `depth` + 1 of each: before the first layer, and after every one."""

    forward: tuple[float, ...]
    """Of the signal h, over units, inputs and draws of the weights."""
    backward: tuple[float, ...]
    """Of the gradient to h; the one that arrives after the last layer is 1."""


def predicted_scales(
    activation: str | Pointwise,
    depth: int,
    *,
    weight: float = 1.0,
    bias: float = 0.0,
    residual: bool = False,
    norm: Placement = "none",
    start: float = 1.0,
) -> Scales:
    """The scale of signal and gradient through a stack of layers f(h) = W φ(h) + b, at initialisation.

    W ~ N(0, weight²/width) and b ~ N(0, bias²), independent. With q the energy E h² of a unit, each layer makes
    q ← weight²·E φ(√q z)² + bias² and multiplies a gradient's energy by χ = weight²·E φ′(√q z)².
    residual: h + f(h); f is uncorrelated with h, so that energies add, and χ becomes 1 + χ. norm: of root mean square
    and without parameters. "pre": of what f reads; q in the moments is then 1, and χ is divided by q. "post": of the
    layer's result; q is then 1 after each layer, and χ is divided by what it was before.
    activation: a name of evenkeel.facts, or a function of a float64 tensor, elementwise. depth: layers, at least 1.
    start: the scale of h before the first layer. Scales are root mean squares, per unit.
    Raises UsageError for arguments that cannot be. Holds while depth is far below width; energies then differ from draw
    to draw by a share of the order of √(depth/width), several times that for functions that are mostly 0.
    Source: Poole et al. 2016; Schoenholz et al. 2017; Yang and Schoenholz 2017.
    """
    if depth < 1 or norm not in get_args(Placement):
        raise UsageError(
            f"depth is {depth} and norm is {norm!r}; give a depth of 1 or more, and {', '.join(get_args(Placement))}"
        )
    if not (0 < weight < math.inf and 0 <= bias < math.inf and 0 < start < math.inf):
        raise UsageError(
            f"weight is {weight}, bias is {bias} and start is {start}; give finite numbers, of which weight and start "
            "are above 0, for instance 1, 0 and 1"
        )
    function = REFERENCES[activation] if isinstance(activation, str) else activation
    energy, energies, gains = start**2, [start**2], []
    for _ in range(depth):
        value, slope = gaussian_moments(function, 1.0 if norm == "pre" else math.sqrt(energy))
        gain = weight**2 * slope / (energy if norm == "pre" else 1.0)
        made = weight**2 * value + bias**2
        energy, gain = (energy + made, 1 + gain) if residual else (made, gain)
        if norm == "post":
            energy, gain = 1.0, gain / energy
        energies.append(energy)
        gains.append(gain)
    gradients = [1.0]
    for gain in reversed(gains):
        gradients.append(gradients[-1] * gain)
    return Scales(tuple(map(math.sqrt, energies)), tuple(map(math.sqrt, reversed(gradients))))


def gaussian_moments(function: Pointwise, scale: float = 1.0) -> tuple[float, float]:
    """E φ(s·z)² and E φ′(s·z)² for z ~ N(0, 1), s the scale, from 1e-4 to 1e4; off by less than 1e-8 of themselves.

    Where φ′ jumps elsewhere than at 0 (relu6, hardsigmoid, hardswish), by less than 1e-4. The trapezoid rule over
    log |z| on either side of 0, in float64: as fine at the function's own scale as at the density's, and blind to a
    kink at 0.
    """
    size = torch.exp(torch.arange(*_LOG_SIZES, _STEP, dtype=torch.float64))
    share = size * torch.exp(-(size**2) / 2) * (_STEP / math.sqrt(2 * math.pi))
    x = (scale * torch.cat((-size, size))).requires_grad_()
    with torch.enable_grad():
        value = function(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return float((value.detach() ** 2 * share.repeat(2)).sum()), float((slope**2 * share.repeat(2)).sum())
