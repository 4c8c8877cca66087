"""One measured stretch of a model's work: tracing on, instruments at every site, then finished readings.

`Measurement` holds the instruments of all sites and merges; `measure(...)` is the context in which they see tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .instruments import Instrument, Stat, for_kind
from .schema import Reading, Site, clean_name
from .tracing.events import Event, ParameterEvent
from .tracing.structure import Structure
from .tracing.trace import quietly
from .tracing.tracer import Tracer


class Measurement:
    """The instruments of every site that was seen; measurements of several passes merge into one."""

    def __init__(self) -> None:
        self._sites: dict[str, Site] = {}
        self._instruments: dict[str, list[Instrument]] = {}

    def observe(self, site: Site, event: Event) -> None:
        """Let the instruments of a site see an event; the first event creates them."""
        if site.id not in self._instruments:
            self._instruments[site.id] = [create() for create in for_kind(site.kind)]
            self._sites[site.id] = site
        for instrument in self._instruments[site.id]:
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
def measure(structure: Structure, optimizer: Optimizer | None = None) -> Iterator[Measurement]:
    """Measure everything that the model does inside the context: forward, backward, optimizer steps.

    Hooks and the function mode exist only inside. A compiled model runs its eager code here.
    """
    measurement = Measurement()
    tracer = Tracer(structure, measurement.observe)
    parameters = _Parameters(structure.model, measurement)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and the import alone takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(parameters.remove)
        parameters.install(optimizer)
        stack.enter_context(tracer)
        yield measurement
    parameters.finish()
    measurement.conclude((*tracer.sites, *_not_reached(structure, tracer.sites)))


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

    def __init__(self, model: nn.Module, measurement: Measurement) -> None:
        self._measurement = measurement
        self._trained = {
            clean_name(name.replace("_orig_mod.", "")): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: set[str] = set()
        self._before: dict[str, Tensor] = {}

    def install(self, optimizer: Optimizer | None) -> None:
        for name, parameter in self._trained.items():
            if parameter.is_leaf:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._gradient_hook(name)))
        if optimizer is not None:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

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
                    self._measurement.observe(_site(name), ParameterEvent(weight=parameter.detach()))

    def _gradient_hook(self, name: str):
        def see(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._seen.add(name)
                gradient = parameter.grad.detach()
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                with quietly():
                    self._measurement.replace(_site(name), ParameterEvent(weight=parameter.detach(), gradient=gradient))

        return see

    def _before_step(self, *_: object) -> None:
        self._before = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    def _after_step(self, *_: object) -> None:
        with quietly():
            for name, before in self._before.items():
                if name not in self._seen:
                    self._seen.add(name)
                    self._measurement.observe(_site(name), ParameterEvent(weight=before))
                update = torch.sub(self._trained[name].detach(), before, out=before)
                self._measurement.observe(_site(name), ParameterEvent(update=update))
        self._before = {}


def _site(name: str) -> Site:
    return Site(path=name, kind="parameter", op="parameter")
