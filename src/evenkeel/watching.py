"""Watching a training run: a schedule of measured steps, the cheap log of every step, and the spike trigger."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .diagnosis import Diagnosis, judge
from .errors import UsageError
from .measuring import Measurement, measure
from .records import Record
from .schema import RUN, DataInfo, ModelInfo, Reading, StepLog, clean_name
from .settings import Settings
from .tracing.provenance import tensors_in
from .tracing.structure import Structure

_WINDOW = 64
_ENOUGH = 16
_JUMP = 6.0  # robust deviations: on normal noise once in 10^9 steps; a bad batch or a blown-up step is far beyond
_SMALLEST = 0.01  # and at least one percent of the loss, for runs whose loss hardly moves


class SpikeDetector:
    """Tells a jump of the loss from its noise: deviations from the median of the last losses.

    The unit is 1.4826/√2 times the median change from one loss to the next: the deviation of normal noise, and hardly
    more where the loss is falling.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def jump(self, loss: float) -> float | None:
        """How many robust deviations this loss lies above the recent ones, if that is a jump; None if it is none."""
        if not math.isfinite(loss):
            return math.inf
        found = None
        if len(self._recent) >= _ENOUGH:
            median = statistics.median(list(self._recent)[-_ENOUGH:])
            spread = 1.4826 / math.sqrt(2) * statistics.median(abs(b - a) for a, b in pairwise(self._recent))
            deviations = (loss - median) / max(spread, 1e-12)
            if deviations > _JUMP and loss - median > _SMALLEST * abs(median):
                found = deviations
        self._recent.append(loss)
        return found


class Watch:
    """A running measurement of one model; the model is left as it was found.

    Every `every`-th step is measured (the first is), and with `on_spike` also the step after a jump of the loss. A
    step that is not measured runs no hook of evenkeel's. Use `step()` around forward, backward and optimizer step (any
    number of micro-batches), `log()` once a step, `diagnose()` at any time, `close()` at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        every: int = 50,
        record: str | Path | None = None,
        on_spike: bool = True,
        settings: Settings | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every is {every} and must be at least 1; every=1 measures each step")
        self._structure = Structure(model)
        self._optimizers = _several(optimizer)
        self._every = every
        self._on_spike = on_spike
        self._settings = settings
        self.record = Record.create(record, model_info(model), DataInfo(source="training", kind="given"))
        entries = self.record.log_entries()
        steps = (*self.record.steps(), *(entry.step for entry in entries))
        self._step = max(steps) + 1 if steps else 0
        self._triggered = False
        self._spikes = SpikeDetector()
        self._pending: deque[_Pending] = deque()
        self._samples: dict[str, Tensor] = {}
        self._running: AbstractContextManager[Measurement] | None = None
        self._measurement: Measurement | None = None
        self._open = False
        self._measured = False

    @property
    def due(self) -> bool:
        """Whether the next step is a measured one."""
        return self._step % self._every == 0 or self._triggered

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step, measured if it is due."""
        self.begin_step()
        try:
            yield
        except BaseException as error:
            self._abandon(error)
            raise
        self.end_step()

    def begin_step(self) -> None:
        """What `step()` does on entry, for loops that cannot use `with`."""
        if self._open:
            raise UsageError("a step is running already; call end_step() before the next begin_step()")
        self._resolve(wait=False)
        self._open, self._measured = True, self.due
        if self._measured:
            self._triggered = False
            self._running = measure(self._structure, self._optimizers, self._samples)
            self._measurement = self._running.__enter__()

    def end_step(self) -> None:
        """What `step()` does on exit: the readings of a measured step are in the record when it returns."""
        if not self._open:
            raise UsageError("no step is running; call begin_step() before end_step()")
        running, self._running = self._running, None
        measurement, self._measurement = self._measurement, None
        step, self._step = self._step, self._step + 1
        self._open = False
        if running is not None and measurement is not None:
            running.__exit__(None, None, None)
            self.record.append(step, measurement.sites, measurement.readings(step))

    def _abandon(self, error: BaseException) -> None:
        running, self._running, self._measurement = self._running, None, None
        if running is not None:
            running.__exit__(type(error), error, error.__traceback__)
        self._open = False
        self._step += 1

    def log(
        self,
        *,
        loss: Tensor | float | None = None,
        gradient_norm: Tensor | float | None = None,
        batch: Any = None,
    ) -> None:
        """Keep a step's loss, gradient norm and batch fingerprint; costs no wait for the device.

        Called inside `step()` it belongs to that step, called after it to the step before. loss: a scalar; of more
        values the mean is kept. gradient_norm: by default that of the gradients that are there; behind `zero_grad()`
        there are none, so call this before it or give the norm. batch: any nest of tensors. On a GPU a jump is seen
        when its loss has arrived; the next step that begins then is measured.
        """
        norm = self._gradient_norm() if gradient_norm is None else gradient_norm
        kept = [_kept(loss), _kept(norm), *(_kept(item) for item in _checksums(batch))]
        on_cuda = any(isinstance(item, Tensor) and item.is_cuda for item in (loss, norm, *tensors_in(batch)))
        event = torch.cuda.Event() if on_cuda else None
        if event is not None:
            event.record()
        entry = StepLog(step=self._step if self._open else max(self._step - 1, 0), measured=self._measured)
        self._pending.append(_Pending(entry, kept, event))
        self._resolve(wait=False)

    def _gradient_norm(self) -> Tensor | None:
        gradients = [item.grad for item in self._structure.model.parameters() if item.grad is not None]
        gradients = [item.coalesce().values() if item.is_sparse else item for item in gradients]
        return torch.nn.utils.get_total_norm(gradients) if gradients else None

    def _resolve(self, *, wait: bool = True) -> None:
        """Log the steps whose numbers have arrived from the device (all of them with `wait`)."""
        while self._pending:
            pending = self._pending[0]
            if pending.event is not None:
                if not wait and not pending.event.query():
                    return
                pending.event.synchronize()
            self._pending.popleft()
            self._log(pending)

    def _log(self, pending: _Pending) -> None:
        loss, norm, *checksums = (None if item is None else item.item() for item in pending.numbers)
        batch = hashlib.sha256(repr(checksums).encode()).hexdigest()[:16] if checksums else ""
        jump = None if loss is None else self._spikes.jump(loss)
        norm = norm or None  # exactly 0 is a gradient that zero_grad() has cleared
        self.record.log(replace(pending.entry, loss=loss, gradient_norm=norm, batch=batch, jump=jump))
        if jump is None:
            return
        self._triggered = self._triggered or self._on_spike
        reading = Reading(
            site=RUN.id, step=pending.entry.step, phase="forward", stat="loss_jump", values=(jump,), unit="deviations"
        )
        self.record.append(pending.entry.step, [RUN], [reading])

    def flush(self) -> None:
        """Write what is known so far, waiting for numbers that are still on their way from the device."""
        self._resolve()
        self.record.flush()

    def diagnose(self) -> Diagnosis:
        """What the readings so far show."""
        self.flush()
        return judge(self.record, self._settings)

    def close(self) -> None:
        """Write what is still held and close the record; a second call does nothing."""
        if self._running is not None:
            self._abandon(GeneratorExit())
        self._resolve()
        self.record.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Pending:
    """A step's numbers on their way from the device: loss, gradient norm, checksums of the batch."""

    entry: StepLog
    numbers: list[Tensor | None]
    event: torch.cuda.Event | None


def watch(
    model: nn.Module,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    every: int = 50,
    record: str | Path | None = None,
    on_spike: bool = True,
    settings: Settings | None = None,
) -> Watch:
    """Watch a model while it trains: `with watch.step(): ...` around each step, `watch.log(loss=loss)` in it.

    model: any `nn.Module`, compiled or not. optimizer: the run's, or all of them where there are several; where given,
    parameters' updates are read as well, and whether every trained parameter has its optimizer.
    every: a step in so many is measured, the first included. record: the file of the run's readings (None: in memory);
    an existing one is appended to when it is of the same model. on_spike: measure the step after a jump of the loss.
    settings: what is set otherwise than the rules do. Raises UsageError, and RecordError for a record of another model.
    """
    return Watch(model, optimizer=optimizer, every=every, record=record, on_spike=on_spike, settings=settings)


def _several(optimizer: Optimizer | Iterable[Optimizer] | None) -> tuple[Optimizer, ...]:
    if optimizer is None:
        return ()
    return tuple(map(_bare, optimizer if isinstance(optimizer, Iterable) else (optimizer,)))


def _bare(optimizer: Any) -> Optimizer:
    """The optimizer whose steps can be seen: wrappers, as accelerate's, keep it under `optimizer`."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        if not hasattr(optimizer, "optimizer"):
            raise UsageError(f"optimizer is {type(optimizer).__name__}; give a torch.optim.Optimizer, or several")
        optimizer = optimizer.optimizer
    return optimizer


def model_info(model: nn.Module) -> ModelInfo:
    """What a record says of a model; the structure hash covers parameter names, shapes and dtypes."""
    named = [(clean_name(name.replace("_orig_mod.", "")), item) for name, item in model.named_parameters()]
    inner = getattr(model, "_orig_mod", model)
    digest = hashlib.sha256()
    for name, item in named:
        digest.update(f"{name} {tuple(item.shape)} {item.dtype}\n".encode())
    dtypes = Counter(str(item.dtype).removeprefix("torch.") for _, item in named)
    devices = Counter(str(item.device) for _, item in named)
    return ModelInfo(
        class_name=clean_name(type(inner).__name__),
        parameters=sum(item.numel() for _, item in named),
        dtype=dtypes.most_common(1)[0][0] if dtypes else "none",
        device=devices.most_common(1)[0][0] if devices else "cpu",
        structure=digest.hexdigest(),
    )


def _kept(value: Tensor | float | None) -> Tensor | None:
    """A number that can be read later without holding up the device now."""
    if not isinstance(value, Tensor):
        return None if value is None else torch.tensor(float(value), dtype=torch.float64)
    value = value.detach().double().mean()
    if not value.is_cuda:
        return value
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


def _checksums(batch: Any) -> Iterator[Tensor]:
    """One integer per tensor of a batch, from at most 65,536 of its elements, on its own device."""
    for item in tensors_in(dict(batch) if isinstance(batch, Mapping) else batch):
        flat = (item.detach().coalesce().values() if item.is_sparse else item.detach()).reshape(-1)
        flat = flat[:: max(1, flat.numel() // 65_536)]
        if flat.is_floating_point():
            flat = flat.float().contiguous().view(torch.int32)
        weights = torch.arange(1, 2 * flat.numel(), 2, device=flat.device)
        yield (flat.long() * weights).sum()
