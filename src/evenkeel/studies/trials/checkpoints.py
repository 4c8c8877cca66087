"""Where a trial stands, on disk: from there it goes on as if it had never been stopped."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from ..results import Evaluation


@dataclass
class Progress:
    """What a trial has come to so far; all that a checkpoint keeps beside weights, moments and the watch's record.

    batches: a digest of all batches so far, in their order. seconds: of training and evaluating. paces: of each step.
    """

    step: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    batches: str = ""
    seconds: float = 0.0
    paces: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """One trial's file. of: what the trial is, as text; a file of another trial, torn or foreign, counts as none."""

    path: Path
    of: str

    @property
    def record(self) -> Path:
        """Where the trial's watch writes; what it held at the checkpoint is kept in that."""
        return self.path.with_suffix(".record")

    def save(self, model: nn.Module, optimizer: Optimizer, done: Progress) -> None:
        """Whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}")
        record = self.record.read_bytes() if self.record.exists() else b""
        state = {"of": self.of, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"progress": asdict(done), "record": record}, partial)
        partial.replace(self.path)

    def restore(self, model: nn.Module, optimizer: Optimizer, device: str) -> Progress:
        """Put what is kept in place; a fresh start, and no record, where there is nothing that can be used."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.parent.glob(f"{self.record.name}*"):
            leftover.unlink(missing_ok=True)
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
            if state["of"] != self.of:
                return Progress()
            kept = state["progress"]
            done = Progress(**{**kept, "evaluations": [Evaluation(**item) for item in kept["evaluations"]]})
        except Exception:  # missing, torn by a power cut, or of another version: none of these is worth a stop
            return Progress()
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if state["record"]:
            self.record.write_bytes(state["record"])
        return done
