"""One traced run of a model: the sites that tracing found, each with the call that it was known by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..schema import Site
from ..tracing.events import ActivationEvent, AttentionEvent, Event, GateEvent, HeadEvent
from ..tracing.provenance import tensors_in
from ..tracing.structure import Structure
from ..tracing.tracer import Tracer
from .tape import Entry, Tape


class Survey:
    """One run of a model on a batch, traced and written down: its sites, its places, its calls."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.model, self.batch = model, batch
        self.structure = Structure(model)
        self.tape = Tape(model)
        self._seen: list[tuple[str, Event, Entry | None]] = []
        self._modules = {
            path: self.structure.modules[identity] for identity, paths in self.structure.paths.items() for path in paths
        }
        tracer = Tracer(self.structure, self._observe)
        with as_found(model), torch.enable_grad(), tracer, self.tape:
            run(model, batch)
        self.sites = tracer.sites
        """Every site of the run, measured or not, in the order in which they ran."""

    def _observe(self, site: Site, event: Event) -> None:
        if isinstance(event, ActivationEvent | AttentionEvent | GateEvent | HeadEvent):
            self._seen.append((site.id, event, self.tape.entries[-1] if self.tape.entries else None))

    def events(self, kind: str) -> Iterator[tuple[Site, Event, Entry]]:
        """The measured sites of a kind, each with what was seen of it at its first run, and the call under way."""
        known = {site.id: site for site in self.sites if site.kind == kind and site.status == "measured"}
        for site_id, event, entry in self._seen:
            if site_id in known and entry is not None:
                yield known[site_id], event, entry

    def unmeasured(self, kind: str) -> list[Site]:
        """The sites of a kind that ran and could not be looked into."""
        return [site for site in self.sites if site.kind == kind and site.status != "measured"]

    def module_at(self, path: str) -> nn.Module:
        """The module of a path."""
        return self._modules[path]

    def path_of(self, module: nn.Module) -> str:
        """The first path under which the model holds a module."""
        return self.structure.paths[id(module)][0]

    def holders(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Every module that holds this one, and the name it has there."""
        return [
            (parent, name)
            for parent in self.model.modules()
            for name, child in parent._modules.items()
            if child is module
        ]


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a dict of arguments, a tuple of them, or a tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, nothing compiled inside; modes and random state as before afterwards."""
    training = {module: module.training for module in model.modules()}
    devices = {item.device.index for item in model.parameters() if item.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and the import alone takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(lambda: [setattr(module, "training", mode) for module, mode in training.items()])
        model.eval()
        yield


def aliases(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors that are alive are the same numbers in the same memory."""
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.stride() == second.stride()


def made_here(survey: Survey, output: Tensor, counts: Callable[[Entry], bool]) -> Entry | None:
    """The last call that made or wrote a tensor, of those that count."""
    found = [
        entry
        for entry in survey.tape.entries
        if counts(entry) and any(aliases(item, output) for item in tensors_in(entry.result))
    ]
    return found[-1] if found else None
