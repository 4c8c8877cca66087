"""One measured stretch of a model's work: tracing on, instruments at every site, then finished readings.

`Measurement` holds the instruments of all sites and merges; `measure(...)` is the context in which they see tensors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from .instruments import Instrument, Stat, for_kind
from .schema import Reading, Site, SiteKind, clean_name
from .tracing.events import Event, ParameterEvent
from .tracing.structure import Structure
from .tracing.trace import quietly
from .tracing.tracer import Tracer

_SHORT = (torch.bfloat16, torch.float16)
_SAMPLE = 4096  # elements of a parameter


class Measurement:
    """The instruments of every site that was seen; measurements of several passes merge into one."""

    def __init__(self) -> None:
        self._sites: dict[str, Site] = {}
        self._instruments: dict[str, list[Instrument]] = {}
        self._of_kind: dict[SiteKind, tuple[type[Instrument], ...]] = {}

    def observe(self, site: Site, event: Event) -> None:
        """Let the instruments of a site see an event; the first event creates them."""
        instruments = self._instruments.get(site.id)
        if instruments is None:
            if site.kind not in self._of_kind:
                self._of_kind[site.kind] = for_kind(site.kind)
            instruments = self._instruments[site.id] = [create() for create in self._of_kind[site.kind]]
            self._sites[site.id] = site
        for instrument in instruments:
            instrument.observe(event)

    def replace(self, site: Site, event: Event) -> None:
        """The same, forgetting what the site's instruments saw before (a gradient that is still being summed)."""
        self._instruments.pop(site.id, None)
        self.observe(site, event)

    def conclude(self, sites: tuple[Site, ...]) -> None:
        """Take over the traced sites in their order, and drop what turned out to be none of them."""
        parameters = [site for site in self._sites.values() if site.kind == "parameter"]
        self._sites = {site.id: site for site in (*sites, *parameters)}
        measured = {key for key, site in self._sites.items() if site.status == "measured"}
        self._instruments = {key: value for key, value in self._instruments.items() if key in measured}

    def merge(self, other: Measurement) -> None:
        """Take in everything that another measurement of the same model saw."""
        for site in other.sites:
            known = self._sites.get(site.id)
            if known is None or known.status != "measured":
                self._sites[site.id] = site
        for site_id, instruments in other._instruments.items():
            if site_id not in self._instruments:
                self._instruments[site_id] = instruments
            else:
                for own, more in zip(self._instruments[site_id], instruments, strict=True):
                    own.merge(more)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._sites.values())

    def readings(self, step: int) -> list[Reading]:
        """Finished numbers of every site; the one place where measuring waits for the device."""
        found: list[tuple[str, Stat, Tensor]] = []
        for site_id in self._sites:
            for instrument in self._instruments.get(site_id, ()):
                found += [(site_id, stat, value.double().reshape(-1)) for stat, value in instrument.read().items()]
        if not found:
            return []
        values = _on_host([value for _, _, value in found])
        readings, start = [], 0
        for site_id, stat, value in found:
            end = start + value.numel()
            readings.append(
                Reading(
                    site=site_id,
                    step=step,
                    phase=stat.phase,
                    stat=stat.name,
                    values=tuple(values[start:end]),
                    unit=stat.unit,
                    axis=stat.axis,
                )
            )
            start = end
        return readings


def _on_host(values: list[Tensor]) -> list[float]:
    """All numbers in order, with one transfer from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in values:
        by_device.setdefault(value.device, []).append(value)
    numbers = {device: iter(torch.cat(parts).tolist()) for device, parts in by_device.items()}
    return [next(numbers[value.device]) for value in values for _ in range(value.numel())]


@contextmanager
def measure(
    structure: Structure, optimizers: Iterable[Optimizer] = (), samples: dict[str, Tensor] | None = None
) -> Iterator[Measurement]:
    """Measure everything that the model does inside the context: forward, backward, steps of these optimizers.

    samples: what is kept of 16-bit weights from one measured step to the next, of a run.
    Hooks and the function mode exist only inside. A compiled model runs its eager code here.
    """
    measurement = Measurement()
    tracer = Tracer(structure, measurement.observe)
    parameters = _Parameters(structure.model, measurement, {} if samples is None else samples)
    with ExitStack() as stack:
        stack.enter_context(eagerly())
        stack.callback(parameters.remove)
        parameters.install(tuple(optimizers))
        stack.enter_context(tracer)
        yield measurement
    parameters.finish()
    measurement.conclude((*tracer.sites, *_not_reached(structure, tracer.sites)))


@contextmanager
def eagerly() -> Iterator[None]:
    """A compiled model runs its eager code inside."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled then, and the import alone takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _not_reached(structure: Structure, sites: tuple[Site, ...]) -> Iterator[Site]:
    reached = {site.path for site in sites}
    for path, op in structure.activation_modules():
        if path not in reached:
            yield Site(
                path=path,
                kind="activation",
                op=op,
                status="not_reached",
                reason="the measured data never reached this module",
            )


class _Parameters:
    """Trained parameters: weights as they are, gradients as they are summed up (before clipping), updates."""

    def __init__(self, model: nn.Module, measurement: Measurement, samples: dict[str, Tensor]) -> None:
        self._measurement = measurement
        self._samples = samples
        self._trained = {
            clean_name(name.replace("_orig_mod.", "")): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._widths = _widths(model)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: set[str] = set()
        self._before: dict[str, Tensor] = {}

    def install(self, optimizers: tuple[Optimizer, ...]) -> None:
        for name, parameter in self._trained.items():
            if parameter.is_leaf:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._gradient_hook(name)))
        for optimizer, names in zip(optimizers, self._shared_out(optimizers), strict=True):
            self._handles.append(optimizer.register_step_pre_hook(self._before_step(names)))
            self._handles.append(optimizer.register_step_post_hook(self._after_step(names)))

    def _shared_out(self, optimizers: tuple[Optimizer, ...]) -> list[list[str]]:
        """Whose steps each parameter is seen at: those of the optimizer that holds it, of the first where none does."""
        holder = {id(item): number for number, optimizer in enumerate(optimizers) for item in _held(optimizer)}
        shares: list[list[str]] = [[] for _ in optimizers]
        for name, parameter in self._trained.items() if optimizers else ():
            shares[holder.get(id(parameter), 0)].append(name)
        return shares

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before.clear()

    def finish(self) -> None:
        """Weights that no gradient reached are read as well."""
        with quietly():
            for name, parameter in self._trained.items():
                if name not in self._seen:
                    self._measurement.observe(_site(name), self._weight(name, _own(parameter)))

    def _weight(self, name: str, weight: Tensor, gradient: Tensor | None = None) -> ParameterEvent:
        return ParameterEvent(weight=weight, gradient=gradient, width=self._widths.get(id(self._trained[name]), 0.0))

    def _gradient_hook(self, name: str):
        def see(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._seen.add(name)
                gradient = _own(parameter.grad)
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                with quietly():
                    self._measurement.replace(_site(name), self._weight(name, _own(parameter), gradient))

        return see

    def _before_step(self, names: list[str]):
        def see(*_: object) -> None:
            self._before |= {name: _own(self._trained[name]).clone() for name in names}

        return see

    def _after_step(self, names: list[str]):
        def see(optimizer: Optimizer, *_: object) -> None:
            with quietly():
                rates: dict[int, tuple[Tensor | None, Tensor | None]] = {}
                for group in optimizer.param_groups:
                    rates |= dict.fromkeys(map(id, group["params"]), (_rate(group.get("lr")), _planned(group)))
                for name in names:
                    before, parameter = self._before.pop(name), self._trained[name]
                    if name not in self._seen:
                        self._seen.add(name)
                        self._measurement.observe(_site(name), self._weight(name, before))
                    held = id(parameter) in rates
                    rate, planned = rates.get(id(parameter), (None, None))
                    update = torch.sub(_own(parameter), before, out=before)
                    event = ParameterEvent(
                        update=update,
                        changed=_changed(parameter, update, optimizer) if held else None,
                        moved=self._moved(name, parameter) if held else None,
                        optimized=held,
                        learning_rate=rate,
                        planned_rate=planned,
                    )
                    self._measurement.observe(_site(name), event)

        return see

    def _moved(self, name: str, parameter: Tensor) -> Tensor | None:
        """Like `_changed`, but of a sample and since the first measured step, whose values are kept now."""
        gradient = parameter.grad
        if parameter.dtype not in _SHORT or gradient is None or gradient.is_sparse:
            return None
        every = max(1, -(-_own(parameter).numel() // _SAMPLE))
        values, live = (_own(item).reshape(-1)[::every] for item in (parameter, gradient))
        before = self._samples.get(name)
        if before is None or before.shape != values.shape:
            self._samples[name] = values.clone()
            return None
        return torch.stack([((values != before) & (live != 0)).sum(), (live != 0).sum()]).double()


def _own(tensor: Tensor) -> Tensor:
    """Its values; of one that lies in several processes, those that lie in this one."""
    to_local = getattr(tensor, "to_local", None)
    return (tensor if to_local is None else to_local()).detach()


def _site(name: str) -> Site:
    return Site(path=name, kind="parameter", op="parameter")


def _held(optimizer: Optimizer) -> Iterator[Tensor]:
    return (item for group in optimizer.param_groups for item in group["params"])


def _rate(value: Any) -> Tensor | None:
    """A learning rate; None where an optimizer chooses its own, as Adafactor does."""
    return torch.as_tensor(value, dtype=torch.float64) if isinstance(value, int | float | Tensor) else None


def _planned(group: dict[str, Any]) -> Tensor | None:
    """The largest of a group's learning rate and those that torch's schedulers note beside it."""
    rates = [rate for name in ("lr", "initial_lr", "max_lr") if (rate := _rate(group.get(name))) is not None]
    return torch.stack([rate.to(rates[0].device) for rate in rates]).amax() if rates else None


def _widths(model: nn.Module) -> dict[int, float]:
    """sqrt(inputs * outputs) of every parameter that is a linear map: matrices, stacked or not, and convolutions.

    Tables that are looked up are none, though an output head may share one; nor are vectors kept with more dimensions.
    """
    tables = {
        id(item) for module in model.modules() if isinstance(module, nn.Embedding) for item in module.parameters()
    }
    groups = {id(module.weight): module.groups for module in model.modules() if isinstance(module, _ConvNd)}
    widths = {}
    for parameter in model.parameters():
        if parameter.dim() < 2 or id(parameter) in tables:
            continue
        rows, columns = parameter.shape[:2] if id(parameter) in groups else parameter.shape[-2:]
        rows //= groups.get(id(parameter), 1)  # outputs that an input reaches; the inputs that an output sees are few
        taps = parameter[0, 0].numel() if id(parameter) in groups else 1
        if min(rows, columns) * taps > 1:
            widths[id(parameter)] = math.sqrt(rows * columns) * taps
    return widths


def _changed(parameter: Tensor, update: Tensor, optimizer: Optimizer) -> Tensor | None:
    """How many elements with a gradient have another value since the step, and how many there are; of 16-bit weights.

    Where the optimizer keeps the same weights in float32 nothing is lost, and all of them count as changed.
    """
    gradient = parameter.grad
    if parameter.dtype not in _SHORT or gradient is None or gradient.is_sparse:
        return None
    live, weight = _own(gradient) != 0, _own(parameter)
    changed, all_live = ((update != 0) & live).sum(), live.sum()
    for kept in optimizer.state.get(parameter, {}).values():
        if isinstance(kept, Tensor) and kept.dtype == torch.float32 and kept.shape == parameter.shape:
            changed = torch.where((_own(kept).to(weight.dtype) == weight).all(), all_live, changed)
    return torch.stack([changed, all_live]).double()
