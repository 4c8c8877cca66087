"""The trial that a study runs by default: a small Transformer trained on bytes, the same for the same point."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice

import torch
from torch import Tensor

from ...diagnosis import Diagnosis
from ...nn import Transformer, TransformerConfig
from ...nn.initialisation import first_deviations
from ...training import adamw, byte_batches, learning_rate_share, training_step
from ...watching import Watch, watch
from ..comparison import ArmPlan
from ..points import Point
from ..results import Evaluation, TrialResult
from .checkpoints import Checkpoint, Progress
from .corpus import Corpus
from .objectives import Session, now
from .predictions import copy_loss, predictions, row_losses

LAST_EVALUATIONS = 3
"""A trial's loss is the mean of so many evaluations, the last ones."""

_EVALUATIONS = 10
_LAST_GAP = 50  # the last evaluations are a fiftieth of the steps apart
_MEASURED = 4  # steps of a paired trial that a watch measures beside the first
CHECKPOINT_EVERY = 15.0
"""Seconds between two checkpoints of a trial."""
_COPIED_ROWS = 32  # about so many, spread over the held-out text


@dataclass(frozen=True, eq=False)
class LanguageTrials:
    """Trains the arm of a point on the corpus and tries it on the held-out tokens.

    The weights start from streams keyed by (seed, name), the order of batches by the seed alone. Every trial has as
    many steps of `rows` windows, AdamW, a tenth of the steps to warm up and a cosine, gradients clipped to norm 1. The
    loss is that of the distribution over the vocabulary, whatever the arm trains on: of a sigmoid head the renormalised
    one. Sources: Loshchilov and Hutter 2019 (AdamW).
    """

    plans: Mapping[str, ArmPlan]
    corpus: Corpus
    rows: int
    steps: int
    device: str = "cpu"

    def __call__(self, point: Point, session: Session) -> TrialResult:
        config = TransformerConfig.from_dict(self.plans[point.arm].config)
        model = Transformer(config, seed=point.seed).to(self.device)
        held_out = self.corpus.windows(config.context).to(self.device)
        hashes = parameter_hashes(model) | {"held_out": _digest(held_out)}
        optimizer = adamw(model, learning_rate=point.learning_rate)
        checkpoint = Checkpoint(session.checkpoint, self._of(point))
        done = checkpoint.restore(model, optimizer, self.device)
        measured = _measuring(point, model, optimizer, self.steps, checkpoint)
        try:
            self._train(point, session, model, optimizer, held_out, done, measured, checkpoint)
            diagnosis = None if measured is None else measured.diagnose()
        finally:
            if measured is not None:
                measured.close()
        last = [item.loss for item in done.evaluations[-LAST_EVALUATIONS:]]
        start, loss = done.evaluations[0].loss, sum(last) / len(last)
        return TrialResult(
            point=point,
            loss=loss,
            start=start,
            diverged=not (math.isfinite(loss) and loss <= start),
            evaluations=tuple(done.evaluations),
            copy_loss=copy_loss(model, held_out[:: max(1, len(held_out) // _COPIED_ROWS)]),
            health={} if diagnosis is None else health(diagnosis) | predictions(model, held_out),
            findings=() if diagnosis is None else _codes(diagnosis),
            hashes=hashes | {"batches": done.batches},
            seconds=done.seconds,
            device=self.device,
            versions=f"evenkeel {version('evenkeel')}, torch {torch.__version__}",
            tokens_per_second=self.rows * config.context / statistics.median(done.paces) if done.paces else math.nan,
            finished=now(),
        )

    def _train(
        self,
        point: Point,
        session: Session,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        held_out: Tensor,
        done: Progress,
        measured: Watch | None,
        checkpoint: Checkpoint,
    ) -> None:
        """Go on from where a trial stands to its last step; behind a loss that is not finite it only reads batches."""
        evaluated, saved, finite = evaluation_steps(self.steps), time.monotonic(), True
        batches = self._batches(point.seed, model.config.context)
        for batch in islice(batches, done.step, None):
            begun = time.perf_counter()
            if finite and done.step in evaluated:
                finite = _evaluated(done, model, held_out)
            if done.step >= self.steps:
                return
            if not finite:
                done.step, done.batches = done.step + 1, _digest(batch, done.batches)
                continue
            paced = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = point.learning_rate * learning_rate_share(done.step, self.steps)
            training_step(model.train(), optimizer, batch, measured)
            done.step += 1
            done.batches = _digest(batch, done.batches)
            done.paces.append(time.perf_counter() - paced)
            done.seconds += time.perf_counter() - begun
            session.progress(done.step / self.steps)
            if session.stopping() or time.monotonic() - saved > CHECKPOINT_EVERY:
                if measured is not None:
                    measured.flush()
                checkpoint.save(model, optimizer, done)
                saved = time.monotonic()
                session.check()

    def _batches(self, seed: int, context: int) -> Iterator[Tensor]:
        stream = byte_batches(self.corpus.training, context=context, size=self.rows, seed=seed)
        return (batch.to(self.device) for batch in stream)

    def _of(self, point: Point) -> str:
        """All that decides what a trial comes to, for its checkpoint."""
        config = self.plans[point.arm].config
        return json.dumps([point.to_dict(), config, self.corpus.digest, self.rows, self.steps, version("evenkeel")])

    def pace(self, arm: str, *, steps: int = 4) -> float:
        """Seconds that a step of an arm takes here, the shortest of a few."""
        config = TransformerConfig.from_dict(self.plans[arm].config)
        model = Transformer(config).to(self.device)
        optimizer = adamw(model, learning_rate=1e-6)
        taken = []
        for batch in islice(self._batches(0, config.context), steps):
            begun = time.perf_counter()
            training_step(model, optimizer, batch).item()
            taken.append(time.perf_counter() - begun)
        return min(taken)


def evaluation_steps(steps: int) -> frozenset[int]:
    """After which steps a trial is evaluated: at its start, evenly, and close together at its end."""
    gap = max(1, steps // _LAST_GAP)
    evenly = {round(steps * share / _EVALUATIONS) for share in range(_EVALUATIONS + 1)}
    return frozenset(evenly | {max(0, steps - gap * back) for back in range(LAST_EVALUATIONS)})


def _evaluated(done: Progress, model: Transformer, held_out: Tensor) -> bool:
    """Evaluate once at each step; whether the loss is finite."""
    if not done.evaluations or done.evaluations[-1].step != done.step:
        loss = row_losses(model, held_out).mean().item()
        done.evaluations.append(Evaluation(step=done.step, loss=loss))
    return math.isfinite(done.evaluations[-1].loss)


def parameter_hashes(model: Transformer) -> dict[str, str]:
    """A digest of each parameter as it is; those of one name have to be the same in every arm.

    A name has the parameter's shape, and the first deviation where the config says another than N(0, 1/fan_in): what
    arms start otherwise on purpose is not what they have in common.
    """
    deviations = first_deviations(model.config)
    return {
        f"parameter {name} {'x'.join(map(str, item.shape))}"
        + (f" ±{deviations[name]:.6g}" if name in deviations else ""): _digest(item.detach())
        for name, item in model.named_parameters()
    }


def _digest(tensor: Tensor, before: str = "") -> str:
    return hashlib.sha256(before.encode() + tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


_HEALTH = {
    "attention entropy / maximum": ("entropy_relative", "mean"),
    "largest attention logit": ("max_logit", "max"),
    "activation: dead units": ("dead_channel_share", "mean"),
    "activation: flat slopes": ("small_gradient_share", "mean"),
    "activation: mean's energy": ("mean_energy", "mean"),
    "largest output logit": ("logit_absmax", "max"),
}
_REDUCED = {"mean": statistics.fmean, "max": max}
_GRADIENT = "gradient: first block / last"


def health(diagnosis: Diagnosis) -> dict[str, float]:
    """Numbers of the last measured step that say how a model is: over all sites and heads, one for each name."""
    last = max((item.step for item in diagnosis.readings), default=0)
    by_stat: dict[str, list[float]] = {}
    for reading in diagnosis.readings:
        if reading.step == last:
            by_stat.setdefault(reading.stat, []).extend(value for value in reading.values if math.isfinite(value))
    numbers = {name: _REDUCED[how](by_stat[stat]) for name, (stat, how) in _HEALTH.items() if by_stat.get(stat)}
    through = [item for item in diagnosis.readings if item.stat == "gradient_rms" and ":residual" in item.site]
    passed = [item.values[0] for item in through if item.step == last]
    if len(passed) > 1 and passed[-1] > 0:
        numbers[_GRADIENT] = passed[0] / passed[-1]
    return numbers


def _codes(diagnosis: Diagnosis) -> tuple[str, ...]:
    return tuple(sorted({item.code for item in diagnosis.findings if item.severity != "info"}))


def _measuring(
    point: Point, model: Transformer, optimizer: torch.optim.Optimizer, steps: int, checkpoint: Checkpoint
) -> Watch | None:
    """A watch over a trial that is compared, at the same steps in every arm: the first, and at last near the end."""
    if point.role != "paired":
        return None
    every = max(1, (steps - 1) // _MEASURED)
    return watch(model, optimizer=optimizer, every=every, record=checkpoint.record, on_spike=False)
