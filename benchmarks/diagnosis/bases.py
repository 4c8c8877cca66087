"""Trained bases: each is trained once, its weights are kept on disk, and many cases start from copies of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor, nn

from evenkeel.directories import demo_directory
from evenkeel.faults import Batch, Patient, Recipe, run

from .odd import ODD
from .zoo import FAMILIES, Family, Size

EVERY_FAMILY: dict[str, Family] = FAMILIES | ODD

STEPS = (40, 160)
"""Tens and hundreds: how long bases are trained."""

_ROWS, _LENGTH = 8, 64


@dataclass(frozen=True, order=True)
class Base:
    """A family's model of a size and seed, untrained (steps 0) or after one of STEPS of training."""

    family: str
    size: Size
    seed: int
    steps: int

    def model(self) -> nn.Module:
        """A fresh copy in eval mode; trained now where it has not been kept."""
        family = EVERY_FAMILY[self.family]
        model = family.build(self.size, self.seed)
        if self.steps:
            model.load_state_dict(self._weights(model))
        return family.dressed(model).eval()

    def keep(self) -> None:
        """Train the model and keep its weights, unless they are there."""
        self._weights(EVERY_FAMILY[self.family].build(self.size, self.seed))

    def recipe(self, steps: int) -> Recipe:
        """How the model is trained, from where it is, for a number of steps."""
        return Recipe(learning_rate=learning_rate(self.size), steps=steps, seed=self.seed)

    def stream(self) -> Iterator[Batch]:
        """What the model is trained on."""
        return EVERY_FAMILY[self.family].batches(rows=_ROWS, length=_LENGTH, seed=self.seed)

    def _weights(self, untrained: nn.Module) -> dict[str, Tensor]:
        depth, width = self.size
        name = f"{self.family}-{depth}x{width}-seed{self.seed}-{self.steps}-{self._digest(untrained)}.pt"
        path = cache_directory() / name
        if not path.exists():
            with torch.random.fork_rng(devices=[]):  # dropout draws from torch's generator
                torch.manual_seed(self.seed)
                run(self.recipe(self.steps), Patient(untrained, ()), self.stream())
            _save(untrained, path)
        return torch.load(path, weights_only=True)

    def _digest(self, untrained: nn.Module) -> str:
        """Of what goes into the training: versions, recipe, first weights and first batch."""
        settings = (self.recipe(self.steps).learning_rate, _ROWS, _LENGTH)
        digest = hashlib.sha256(f"{torch.__version__} {version('transformers')} {settings}".encode())
        for tensors in (untrained.state_dict(), next(self.stream())):
            for name, tensor in tensors.items():
                digest.update(name.encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def learning_rate(size: Size) -> float:
    """One at which every family of this size learns: the wider and the deeper, the smaller."""
    return 3e-3 * (64 / size.width) ** 0.5 * min(1.0, (6 / size.depth) ** 0.5)


def cache_directory() -> Path:
    """Where the bases are kept: `$EVENKEEL_CACHE/diagnosis`, else `evenkeel/diagnosis` in the user's cache."""
    return demo_directory().parent / "diagnosis"


def _save(model: nn.Module, path: Path) -> None:
    """Whole or not at all, also where two processes save the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(model.state_dict(), file)
    os.replace(file.name, path)
