"""Watching a run of Hugging Face's `Trainer`: `trainer.add_callback(WatchCallback(every=50, record="run.sqlite"))`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from ...diagnosis import Diagnosis
from ...errors import UsageError
from ...settings import Settings
from ...tracing.trace import quietly
from ...watching import Watch, watch


class WatchCallback(TrainerCallback):
    """Watches the model of a `Trainer` while it trains; the parameters are those of `evenkeel.watch`.

    A step reaches from `on_step_begin` to `on_step_end`, over all the micro-batches that it accumulates. Parameters'
    gradients are read as they are summed up, so before they are clipped; frozen parameters are not read.

    `Trainer` tells its callbacks neither the loss nor the batch of a step. So in every step one hook on the outermost
    module keeps both, without waiting for the device, and the norm of the gradients is taken where the backward pass
    ends, before clipping. With several processes or a gradient scaler (fp16) the gradients are not the final ones at
    that point, and no norm is logged. Where the model is compiled, or does not return the loss itself (label smoothing,
    `compute_loss_func`), what `Trainer` logs every `logging_steps` steps is kept instead: their mean loss, and the
    gradient norm of the last of them.

    In a run of several processes the first one watches its own share of the data. An exception inside a step ends
    `train()` without a word to the callbacks; `close()` then takes the hooks off the model.
    """

    def __init__(
        self,
        *,
        every: int = 50,
        record: str | Path | None = None,
        on_spike: bool = True,
        settings: Settings | None = None,
    ) -> None:
        self._every, self._record, self._on_spike, self._settings = every, record, on_spike, settings
        self._watch: Watch | None = None
        self._diagnosis: Diagnosis | None = None
        self._tap: _Tap | None = None

    @property
    def diagnosis(self) -> Diagnosis:
        """What the readings show: while training runs, those so far; after it, all of them.

        Raises UsageError where nothing was watched: before `train()`, and in every process but the first.
        """
        if self._watch is not None:
            return self._watch.diagnose()
        if self._diagnosis is None:
            raise UsageError("nothing was watched yet; give the callback to a Trainer and call train() first")
        return self._diagnosis

    def close(self) -> None:
        """Take every hook off the model, keep the diagnosis and close the record; a second call does nothing."""
        running, tap = self._watch, self._tap
        self._watch = self._tap = None
        if tap is not None:
            tap.remove()
        if running is not None:
            self._diagnosis = running.diagnose()
            running.close()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the record. Raises UsageError under DataParallel, which trains copies of the model in other threads."""
        if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
            raise UsageError(
                f"Trainer would copy the model to {args.n_gpu} devices in every step, and copies cannot be watched; "
                "start one process per device (torchrun), or show it one device (CUDA_VISIBLE_DEVICES=0)"
            )
        self.close()  # a run that an exception ended may be open still
        if state.is_world_process_zero:
            own = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper takes no hooks
            self._watch = watch(
                model,
                optimizer=own,
                every=self._every,
                record=self._record,
                on_spike=self._on_spike,
                settings=self._settings,
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin a step, measured if it is due."""
        if self._watch is None:
            return
        self._watch.begin_step()
        if not args.torch_compile and model._compiled_call_impl is None:  # a hook would become part of its graph
            self._tap = _Tap(model, args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the step: its readings are in the record."""
        if self._watch is None:
            return
        if self._tap is not None:
            self._tap.remove()
            if self._tap.losses:
                self._watch.log(loss=self._tap.loss(), gradient_norm=self._tap.norm, batch=self._tap.batches)
        self._watch.end_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        """Keep the Trainer's own loss and gradient norm where the step did not show them."""
        told = self._tap is not None and self._tap.losses
        if self._watch is not None and not told and "loss" in logs:
            self._watch.log(loss=logs["loss"], gradient_norm=logs.get("grad_norm"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the run and close the record."""
        self.close()


class _Tap:
    """What one step's forward calls take and return, and the norm of the gradients where its last backward ends."""

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        self.losses: list[Tensor] = []
        self.batches: list[Any] = []
        self.norm: Tensor | None = None
        self._shares = False
        self._processes = args.world_size if args.average_tokens_across_devices else 1
        self._final = args.parallel_mode == ParallelMode.NOT_PARALLEL and not args.fp16
        self._model = model
        self._handle = model.register_forward_hook(self._see, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def loss(self) -> Tensor:
        """The step's loss as the Trainer reports it: micro-batches' shares added up, or their means averaged."""
        losses = torch.stack(self.losses)
        return losses.sum() * self._processes if self._shares else losses.mean()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return
        self.losses.append(loss.detach())
        self.batches.append((args, kwargs))
        self._shares = kwargs.get("num_items_in_batch") is not None
        if self._final:
            loss.register_hook(self._at_backward)

    def _at_backward(self, gradient: Tensor) -> None:
        Variable._execution_engine.queue_callback(self._read_norm)  # runs when this backward pass is through

    def _read_norm(self) -> None:
        with quietly():
            gradients = [item.grad for item in self._model.parameters() if item.grad is not None]
            self.norm = get_total_norm(gradients) if gradients else None
