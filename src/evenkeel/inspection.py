"""Inspecting a model once: a few batches forward and backward, everything measured, then judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .diagnosis import Diagnosis, judge
from .errors import NothingMeasuredError, UsageError
from .measuring import Measurement, eagerly, measure
from .probing import probe
from .records import Record
from .schema import DataInfo, in_one_line
from .settings import Settings
from .tracing.provenance import tensors_in
from .tracing.structure import Structure
from .watching import model_info

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]

_NONLINEAR = ("activation", "gate", "attention", "router", "head", "residual")


def inspect(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    backward: bool = True,
    loss: Loss | None = None,
    data: DataInfo | None = None,
    notes: Sequence[str] = (),
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure a model on some batches and say what is wrong and what to change.

    model: any `nn.Module`; it runs in eval mode (no dropout, no running statistics, but for batch norms
    that have none yet, which use the batch's) and is left as it was found:
    training mode, gradients, random state. One that is judged by the next tokens of its own input is also asked, on
    two sequences of the first batch, whether it sees them. batches: an iterable of keyword dicts (`model(**batch)`),
    tensors (`model(batch)`) or tuples (`model(*batch)`). backward: also measure gradients. loss: `loss(output, batch)`
    to differentiate; by default `output.loss`, and where there is none the sum of squares of the output.
    data, notes: what the report says of the batches. settings: what is set otherwise than the rules do. progress:
    called with (batches done, batches in all or 0).
    Raises UsageError for an empty iterable, NothingMeasuredError where no site could be measured.
    """
    structure = Structure(model)
    total = Measurement()
    count, tokens, remarks = 0, 0, list(notes)
    size = len(batches) if isinstance(batches, Sequence) else 0
    with _as_found(model), _normed_by_batches(model):
        for batch in batches:
            with measure(structure) as measurement:
                _run(model, batch, loss, backward)
            total.merge(measurement)
            model.zero_grad(set_to_none=True)
            if not count:
                remarks += _probed(structure, batch, loss, total)
            count, tokens = count + 1, tokens + _tokens(batch)
            if progress is not None:
                progress(count, size)
    if count == 0:
        raise UsageError("there are no batches to measure on; give at least one dict, tensor or tuple")
    if not any(site.kind in _NONLINEAR and site.status == "measured" for site in total.sites):
        raise NothingMeasuredError(
            f"no activation, gate, attention, router or head could be measured in this {type(model).__name__}; "
            "is it a transformer, and do the batches reach its layers?"
        )
    record = Record.create(None, model_info(model), data or DataInfo(source="batches", kind="given", tokens=tokens))
    for note in remarks:
        record.add_note(note)
    record.append(0, total.sites, total.readings(0))
    return judge(record, settings)


def _run(model: nn.Module, batch: Any, loss: Loss | None, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        output = _output(model, batch)
        if not backward:
            return
        objective = loss(output, batch) if loss is not None else _default_loss(output)
        if objective.requires_grad:
            objective.backward()


def _output(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _probed(structure: Structure, batch: Any, loss: Loss | None, total: Measurement) -> list[str]:
    """Probe the model on a part of a batch that it has just run on; what is to be said where that fails."""

    def run(model: nn.Module, part: Any) -> None:
        output = _output(model, part)
        if loss is not None:
            loss(output, part)

    try:
        with eagerly():
            probe(structure, batch, run, total.observe)
    except Exception as error:  # the batch as a whole ran: only two of its sequences do not
        return [f"whether earlier positions see later tokens could not be asked: {in_one_line(error)}"]
    return []


def _default_loss(output: Any) -> Tensor:
    given = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(given, Tensor):
        return given
    values = output.values() if isinstance(output, Mapping) else [output]
    tensors = [item for value in values for item in tensors_in(value) if item.is_floating_point()]
    if not tensors:
        raise UsageError(
            f"the model returned {type(output).__name__} without a floating-point tensor, so there is no loss to "
            "differentiate; give loss=..., or backward=False"
        )
    return torch.stack([item.float().square().sum() for item in tensors]).sum()


def _tokens(batch: Any) -> int:
    """How many token ids a batch holds; 0 where its tensors are no token ids."""
    if isinstance(batch, Mapping):
        batch = batch.get("input_ids")
    first = next(iter(tensors_in(batch)), None)
    return 0 if first is None or first.is_floating_point() else first.numel()


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode, no decoding cache, empty gradients inside; all that and the random state as before afterwards."""
    config = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    training = {module: module.training for module in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        try:
            model.eval()
            model.zero_grad(set_to_none=True)
            if config is not None and cache:
                config.use_cache = False  # a cache is for decoding; filled in place, it can break the backward pass
            yield
        finally:
            if config is not None and cache:
                config.use_cache = cache
            for module, mode in training.items():
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def _normed_by_batches(model: nn.Module) -> Iterator[None]:
    """Batch norms that have never seen a batch have no statistics of their own: inside they use each batch's.

    With the 0 and 1 that they start with they are no norms at all, and the signal of a sound model dies out.
    """
    unused = [module for module in model.modules() if isinstance(module, _BatchNorm) and _has_seen_none(module)]
    buffers = [(buffer, buffer.clone()) for module in unused for buffer in module.buffers(recurse=False)]
    hooks = [module.register_forward_pre_hook(_by_its_batch, with_kwargs=True) for module in unused]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in buffers:
            buffer.copy_(value)


def _has_seen_none(norm: _BatchNorm) -> bool:
    """Whether its statistics are those it was made with; converted checkpoints have others, and a count of 0."""
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())


def _by_its_batch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = next(iter(tensors_in((args, kwargs))))
    module.training = given.numel() > given.shape[1]  # one value in each channel has no spread
