"""What tests of instruments share: a site's instruments, their readings by name, events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evenkeel.instruments import Stat, for_kind
from evenkeel.tracing.events import (
    ActivationEvent,
    Event,
    ParameterEvent,
)

Numbers = dict[str, float | np.ndarray]


class AtSite:
    """All instruments of a kind, as a site of it has them."""

    def __init__(self, kind: str) -> None:
        self.parts = [create() for create in for_kind(kind)]

    def observe(self, event: Event) -> None:
        for item in self.parts:
            item.observe(event)

    def merge(self, other: AtSite) -> None:
        for own, more in zip(self.parts, other.parts, strict=True):
            own.merge(more)

    def read(self) -> dict[Stat, Tensor]:
        return {stat: value for item in self.parts for stat, value in item.read().items()}


def stats(kind: str) -> set[Stat]:
    return {stat for create in for_kind(kind) for stat in create.stats}


def read(kind: str, *events: Event) -> dict[str, np.ndarray]:
    """The readings of one instrument by stat; a stat of another phase than forward as `phase:stat`."""
    instrument = AtSite(kind)
    with torch.no_grad():
        for event in events:
            instrument.observe(event)
    return finished(instrument)


def finished(instrument: AtSite) -> dict[str, np.ndarray]:
    return {
        stat.name if stat.phase == "forward" else f"{stat.phase}:{stat.name}": value.double().numpy()
        for stat, value in instrument.read().items()
    }


def assert_twin(found: dict[str, np.ndarray], expected: Numbers) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-12, err_msg=name)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activation(x: Tensor, function: Callable[[Tensor], Tensor], channel_dim: int = -1) -> ActivationEvent:
    return ActivationEvent(input=x, output=function(x), function=function, channel_dim=channel_dim, fan_in=12)


def stepped(update: Tensor) -> ParameterEvent:
    return ParameterEvent(
        update=update,
        changed=torch.tensor([3.0, 12.0], dtype=torch.float64),
        moved=torch.tensor([5.0, 10.0], dtype=torch.float64),
        optimized=True,
        learning_rate=torch.tensor(1e-4, dtype=torch.float64),
        planned_rate=torch.tensor(3e-3, dtype=torch.float64),
    )
