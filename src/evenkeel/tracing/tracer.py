"""The tracer: sees every function a model calls during a measured step and hands on the tensors of each site.

One function mode and one stack of module frames; no module's or architecture's name is ever compared with anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..schema import Site, SiteKind, SiteStatus, clean_name
from . import calls, pointwise
from .blocks import without_other_layers
from .call import Call
from .events import Event, GradientEvent, HeadEvent, OutputEvent, RouterEvent
from .frames import Frame, Frames, Structure, bare_function, in_backward
from .functions import FunctionNames
from .provenance import Candidate, Normalised, Provenance, tensors_in

Observe = Callable[[Site, Event], None]

_MOST_CALLS = 32  # further calls of one place in one pass (a loop over time) count as the last of these


@contextmanager
def quietly() -> Iterator[None]:
    """No gradients, no function modes, no autocast: how instruments measure."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield


class Tracer(TorchFunctionMode):
    """Finds the sites of one model while its code runs, and calls `observe(site, event)` at each.

    Use as a context manager around any number of forward and backward passes. `sites` then holds what was found,
    in execution order. Nothing of the model is changed; hooks and mode are gone when the context ends.
    """

    def __init__(self, structure: Structure, observe: Observe) -> None:
        super().__init__()
        self.structure = structure
        self.tags = Provenance()
        self.frames = Frames(structure, self._entered, self._exited, self._recomputed)
        self._observe = observe
        self._names = FunctionNames()
        self._handlers = calls.handlers()
        self._sites: dict[str, tuple[int, Site]] = {}
        self._calls: Counter[tuple[str, SiteKind, str]] = Counter()
        self._order = 0
        self._gradient_handles: list[RemovableHandle] = []
        self._hooked: set[str] = set()
        self._head: tuple[str, Tensor] | None = None
        self._loss_seen = False
        self.batch: int | None = None
        """The batch size of the running pass."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site seen so far, in execution order."""
        ordered = sorted(self._sites.values(), key=lambda item: item[0])
        return without_other_layers([site for _, site in ordered])

    # --- the context ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Tracer:
        self.frames.install()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self._flush_head()
        self.frames.remove()
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles.clear()
        self.tags.clear()
        self._head = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if in_backward() or self.frames.in_pointwise:
            return func(*args, **kwargs)
        name, in_place = self._names(func)
        handler = self._handlers.get(name)
        if self.frames.stack:
            self._look_for_hidden(args)
        result = handler(self, Call(func, name, in_place, args, kwargs)) if handler else func(*args, **kwargs)
        self.tags.note(result)
        return result

    def _look_for_hidden(self, args: tuple[Any, ...]) -> None:
        """Note in the running frame that a tensor came from a kernel whose inside cannot be seen."""
        for item in args:
            if isinstance(item, Tensor) and self.tags.unseen(item):
                self.tags.note(item)
                frame = self.frames.stack[-1]
                if not frame.hidden:
                    frame.hidden = frame.linears

    # --- sites ---------------------------------------------------------------------------------------------------

    def next_order(self) -> int:
        """A number that grows with execution."""
        self._order += 1
        return self._order

    def site(
        self,
        kind: SiteKind,
        op: str,
        path: str | None = None,
        *,
        status: SiteStatus = "measured",
        reason: str = "",
        order: int | None = None,
        numbered: bool = True,
    ) -> Site:
        """The site of this call; numbered by how often the same place was called in this pass."""
        path = self.frames.path if path is None else path
        call = 0
        if numbered:
            key = (path, kind, op)
            call = min(self._calls[key], _MOST_CALLS - 1)
            self._calls[key] += 1
        site = Site(path=path, kind=kind, op=op, call=call, status=status, reason=reason)
        if kind not in ("module", "residual"):
            self.frames.mark_found()
        known = self._sites.get(site.id)
        if known is None or (known[1].status != "measured" and status == "measured"):
            self._sites[site.id] = (known[0] if known else order or self.next_order(), site)
        return site

    def emit(self, site: Site, event: Event) -> None:
        """Let the instruments of a site see an event; one that fails costs its site's readings, never the step."""
        try:
            with quietly():
                self._observe(site, event)
        except Exception as error:
            reason = clean_name(f"its instrument failed with {type(error).__name__}: {error}")
            order, known = self._sites[site.id]
            self._sites[site.id] = (order, replace(known, status="not_measured", reason=reason))

    def not_measured(
        self, kind: SiteKind, op: str, reason: str, path: str | None = None, *, numbered: bool = True
    ) -> None:
        """List a site that was seen and could not be measured."""
        self.site(kind, op, path, status="not_measured", reason=reason, numbered=numbered)

    def add_candidate(self, candidate: Candidate, parts: tuple[Candidate, ...] = ()) -> None:
        """Hold an activation until its frame ends; what it is made of is no activation any more."""
        for part in parts:
            part.taken = True
        if self.frames.stack:
            self.frames.mark_found()
            self.frames.stack[-1].pending.append((self.next_order(), candidate))

    def add_normalised(self, normalised: Normalised) -> None:
        """Hold a softmax until its frame ends; by then it has met values or experts."""
        if self.frames.stack:
            self.frames.mark_found()
            self.frames.stack[-1].pending.append((self.next_order(), normalised))

    # --- frames --------------------------------------------------------------------------------------------------

    def _entered(self, frame: Frame) -> None:
        if not self.frames.stack:
            self._flush_head()
            self._calls.clear()
            self._loss_seen = False
            self._hooked.clear()
            self.tags.note([frame.inputs, dict(frame.arguments)])
            first = next(iter(tensors_in([frame.inputs, dict(frame.arguments)])), None)
            self.batch = None if first is None or first.dim() == 0 else first.shape[0]

    def _exited(self, frame: Frame, output: Any) -> None:
        if output is None:
            return
        if frame.pointwise:
            self._pointwise_module(frame, output)
        for order, item in frame.pending:
            if isinstance(item, Candidate):
                self._settle_activation(order, item)
            else:
                self._settle_normalised(order, item)
        frame.pending.clear()
        self._settle_hidden(frame)
        self._outputs(frame, output)
        if not self.frames.stack:
            self._model_output(output)

    def _pointwise_module(self, frame: Frame, output: Any) -> None:
        op = self.structure.pointwise_op(frame.module)
        if not isinstance(output, Tensor) or frame.before is None or op is None:
            return
        pointwise.module_call(self, frame, op, bare_function(frame.module), output)

    def _settle_activation(self, order: int, candidate: Candidate) -> None:
        if not candidate.taken:
            site = self.site("activation", candidate.op, candidate.path, order=order)
            self.emit(site, pointwise.activation_event(candidate))

    def _settle_normalised(self, order: int, normalised: Normalised) -> None:
        if normalised.router is not None:
            chosen, experts = normalised.router
            site = self.site("router", normalised.op, normalised.path, order=order)
            self.emit(site, RouterEvent(chosen=chosen.detach().reshape(-1, chosen.shape[-1]), experts=experts))
        elif not normalised.used and normalised.op == "softmax":
            if self.frames.stack:  # its output may still meet its use in the module around this one
                self.frames.stack[-1].pending.append((order, normalised))
            else:
                self.not_measured(
                    "activation", "softmax", "a softmax that met neither values nor a top-k choice", normalised.path
                )

    def _settle_hidden(self, frame: Frame) -> None:
        """A module between whose linear maps something ran unseen has a nonlinear place that cannot be measured."""
        if self.frames.stack:
            self.frames.stack[-1].linears += frame.linears
        if frame.hidden and not frame.found:
            kinds: dict[int, SiteKind] = {1: "activation", 2: "gate"}
            kind = kinds.get(frame.hidden, "attention")
            reason = f"a fused kernel hides its tensors; {frame.hidden} linear maps lead into it"
            self.not_measured(kind, "fused", reason, frame.path)

    def _outputs(self, frame: Frame, output: Any) -> None:
        tensors = [item for item in tensors_in(output) if item.is_floating_point() and item.dim() > 0]
        if not tensors:
            return
        if id(frame.module) in self.structure.layers:
            self._hook(self.site("residual", "block", frame.path), tensors[0], forward=True)
        for item in tensors:
            if not self.tags.first_sight(item):
                continue
            site = self.site("module", type(frame.module).__name__, frame.path, numbered=False)
            self._hook(site, item, forward=True)

    def _hook(self, site: Site, output: Tensor, *, forward: bool) -> None:
        if forward:
            self.emit(site, OutputEvent(output=output.detach()))
        if output.requires_grad:
            self._hooked.add(site.id)

            def see(gradient: Tensor) -> None:
                self.emit(site, GradientEvent(gradient=gradient.detach()))

            self._gradient_handles.append(output.register_hook(see))

    def _recomputed(self, module: nn.Module, output: Any) -> None:
        """A checkpointed call runs again inside the backward pass: only now do its tensors have gradients."""
        path = self.structure.paths[id(module)][0]
        tensors = [item for item in tensors_in(output) if item.is_floating_point() and item.requires_grad]
        sites = [Site(path=path, kind="module", op=type(module).__name__)]
        if id(module) in self.structure.layers:
            sites.append(Site(path=path, kind="residual", op="block"))
        for site in sites:
            if tensors and site.id in self._sites and site.id not in self._hooked:
                self._hook(site, tensors[0], forward=False)

    # --- the head ------------------------------------------------------------------------------------------------

    def _model_output(self, output: Any) -> None:
        logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
        if not self._loss_seen and isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() >= 2:
            self._head = (self.tags[logits].producer or "", logits)

    def _flush_head(self) -> None:
        """Logits that no loss was computed from are a head all the same."""
        if self._head is not None:
            path, logits = self._head
            self._head = None
            flat = logits.detach().reshape(-1, logits.shape[-1])
            self.emit(self.site("head", "softmax", path), HeadEvent(logits=flat))

    def head(self, path: str, event: HeadEvent) -> None:
        """The logits of a loss; they replace the model's output as the head of this pass."""
        self._head, self._loss_seen = None, True
        self.emit(self.site("head", "softmax", path), event)
