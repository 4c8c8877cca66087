"""The tracer: sees every function a model calls during a measured step and hands on the tensors of each site.

One function mode and one stack of module frames; no module's or architecture's name is ever compared with anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..schema import Site, SiteKind, clean_name
from . import norms, pointwise
from .call import Call
from .calls import handlers
from .events import GradientEvent, OutputEvent, RouterEvent, StreamEvent
from .frames import Frame
from .functions import ADDING_PRODUCTS, MIXING, QUESTIONS, FunctionNames
from .handed import Handed, before_others
from .hooks import ModuleHooks, in_backward, in_transform
from .provenance import Candidate, Normalised, Normed, tensors_in
from .structure import Structure, bare_function
from .trace import Observe, Trace


class Tracer(TorchFunctionMode):
    """Finds the sites of one model while its code runs, and calls `observe(site, event)` at each.

    Use as a context manager around any number of forward and backward passes. `sites` then holds what was found,
    in execution order. Nothing of the model is changed; hooks and mode are gone when the context ends.
    """

    def __init__(self, structure: Structure, observe: Observe) -> None:
        super().__init__()
        self._structure = structure
        self._trace = Trace(structure.namer, observe)
        self._hooks = ModuleHooks(structure, self._trace.frames, self._entered, self._exited, self._recomputed)
        self._names = FunctionNames()
        self._handlers = handlers()
        self._gradient_handles: list[RemovableHandle] = []
        self._hooked: set[str] = set()
        self._left: list[tuple[Site, int, bool]] = []  # blocks that have ended, their marks, whether those came along
        self._handed = Handed(self._trace, self._hook)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site seen so far, in execution order."""
        return self._trace.sites

    def __enter__(self) -> Tracer:
        self._hooks.install()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self._trace.flush_head()
            self._tell_of_streams()
        self._hooks.remove()
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles.clear()
        self._trace.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        trace = self._trace
        if in_backward() or in_transform() or trace.frames.in_pointwise:
            return func(*args, **kwargs)
        name, in_place = self._names(func)
        if name in QUESTIONS:
            return func(*args, **kwargs)
        if trace.frames.stack:
            self._look_for_hidden(args)
        result = self._interpreted(Call(func, name, in_place, args, kwargs))
        trace.tags.note(result)
        if trace.frames.stack and name not in MIXING:
            self._carry(result, args[:1] if name in ADDING_PRODUCTS else (*args, *kwargs.values()))
        return result

    def _interpreted(self, call: Call) -> Any:
        """Run a call and take note of what it means; a failure to understand it never reaches the model."""
        handler = self._handlers.get(call.name)
        if handler is None:
            return call.run()
        try:
            return handler(self._trace, call)
        except Exception as error:
            if call.started and not call.finished:
                raise  # the model's own error
            if self._trace.frames.stack:
                reason = clean_name(f"this call could not be followed: {type(error).__name__}: {error}")
                self._trace.not_measured("module", call.name, reason, numbered=False)
            return call.result if call.finished else call.run()

    def _carry(self, result: Any, given: tuple[Any, ...]) -> None:
        """What a call that mixes no channels or tokens gives may hold all that it was given."""
        tags = self._trace.tags
        marks: frozenset[int] = frozenset().union(*(tags.carried(item) for item in tensors_in(given)))
        if marks:
            tags.carry(result, marks)

    def _may_carry_all(self, unseen: Tensor, *frames: Frame) -> None:
        """Of a tensor of unknown origin nobody can say that it does not hold a block's input."""
        marks = frozenset(frame.mark for frame in (*self._trace.frames.stack, *frames) if frame.mark)
        self._trace.tags.carry(unseen, marks)

    def _look_for_hidden(self, args: tuple[Any, ...]) -> None:
        """Note in the running frame that a tensor came from a kernel whose inside cannot be seen."""
        tags = self._trace.tags
        for item in args:
            if isinstance(item, Tensor) and tags.unseen(item):
                tags.note(item)
                self._may_carry_all(item)
                frame = self._trace.frames.stack[-1]
                if not frame.hidden:
                    frame.hidden = frame.linears

    def _entered(self, frame: Frame) -> None:
        if not self._trace.frames.stack:
            self._hooked.clear()
            self._tell_of_streams()
            self._trace.begin_pass(frame)
        else:
            self._look_for_hidden((*frame.inputs, *frame.arguments.values()))
        self._handed.entered(frame)
        layer = id(frame.module) in self._structure.layers
        if not (layer or self._left) or (stream := frame.given) is None:
            return
        tags = self._trace.tags
        self._left = [(site, mark, carries or mark in tags.carried(stream)) for site, mark, carries in self._left]
        if layer:
            self._tell_of_streams()
            frame.mark = self._trace.next_order()
            running = {around.mark for around in self._trace.frames.stack}
            tags.carry(stream, tags.carried(stream) & running | {frame.mark})

    def _tell_of_streams(self) -> None:
        """The next block begins: what has not come past the last one by now does not."""
        for site, _, carries in self._left:
            self._trace.emit(site, StreamEvent(carries_input=carries))
        self._left.clear()

    def _exited(self, frame: Frame, output: Any) -> None:
        if output is None:
            return
        for item in tensors_in(output):
            if self._trace.tags.unseen(item):
                self._may_carry_all(item, frame)
        if frame.pointwise:
            self._pointwise_module(frame, output)
        for order, item in frame.pending:
            if isinstance(item, Candidate):
                self._settle_activation(order, item)
                item.settled()
            elif isinstance(item, Normed):
                site = self._trace.site("norm", item.op, item.path, order=order)
                self._trace.emit(site, norms.event(item))
                item.settled()
            else:
                self._settle_normalised(order, item)
        frame.pending.clear()
        self._settle_hidden(frame)
        self._outputs(frame, output)
        if not self._trace.frames.stack:
            logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
            if isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() >= 2:
                self._trace.model_output(logits)

    def _pointwise_module(self, frame: Frame, output: Any) -> None:
        op = self._structure.pointwise_op(frame.module)
        if not isinstance(output, Tensor) or frame.before is None or op is None:
            return
        pointwise.module_call(self._trace, frame, op, bare_function(frame.module), output)

    def _settle_activation(self, order: int, candidate: Candidate) -> Site | None:
        if candidate.taken:
            return None
        site = self._trace.site("activation", candidate.op, candidate.path, order=order)
        self._trace.emit(site, pointwise.activation_event(candidate))
        return site

    def _settle_normalised(self, order: int, normalised: Normalised) -> None:
        if normalised.router is not None:
            chosen, experts = normalised.router
            site = self._trace.site("router", normalised.op, normalised.path, order=order)
            scores = normalised.scores.detach().movedim(normalised.dim, -1)
            event = RouterEvent(
                chosen=chosen.detach().reshape(-1, chosen.shape[-1]),
                experts=experts,
                scores=scores if scores.shape[-1] == experts else None,
            )
            self._trace.emit(site, event)
        elif not normalised.used and normalised.op == "softmax":
            if self._trace.frames.stack:  # its output may still meet its use in the module around this one
                self._trace.frames.stack[-1].pending.append((order, normalised))
            else:
                self._trace.not_measured(
                    "activation", "softmax", "a softmax that met neither values nor a top-k choice", normalised.path
                )

    def _settle_hidden(self, frame: Frame) -> None:
        """A module between whose linear maps something ran unseen has a nonlinear place that cannot be measured."""
        if self._trace.frames.stack:
            self._trace.frames.stack[-1].linears += frame.linears
        if frame.hidden and not frame.found:
            kinds: dict[int, SiteKind] = {1: "activation", 2: "gate"}
            kind = kinds.get(frame.hidden, "attention")
            reason = f"a fused kernel hides its tensors; {frame.hidden} linear maps lead into it"
            self._trace.not_measured(kind, "fused", reason, frame.path)

    def _outputs(self, frame: Frame, output: Any) -> None:
        tensors = [item for item in tensors_in(output) if item.is_floating_point()]
        if not tensors or _makes_constants(frame, tensors[0]):
            return
        if id(frame.module) in self._structure.layers and tensors[0].dim() > 0:
            self._block(frame, tensors[0])
        for item in tensors:
            new = self._trace.tags.first_sight(item)
            if new or (frame.parts and item is tensors[0]):
                site = self._trace.site("module", type(frame.module).__name__, frame.path, numbered=False)
                self._hook(site, item)
                if new:
                    self._trace.emit(site, OutputEvent(output=item.detach()))
        self._gradient_handles += self._handed.left(frame, tensors[0])

    def _block(self, frame: Frame, output: Tensor) -> None:
        site = self._trace.site("residual", "block", frame.path)
        given = frame.given
        if given is None or given.shape != output.shape:
            self._trace.emit(site, OutputEvent(output=output.detach()))
        else:
            self._trace.emit(site, OutputEvent(output=output.detach(), input=given.detach()))
            tags = self._trace.tags
            self._left.append((site, frame.mark, frame.mark in tags.carried(output)))
        self._hook(site, output)

    def _hook(self, site: Site, output: Tensor) -> None:
        if output.requires_grad:
            self._hooked.add(site.id)
            kept = output.detach() if site.kind == "residual" else None  # the next block keeps it as well
            version = 0 if kept is None else kept._version

            def see(gradient: Tensor | None) -> None:
                if gradient is not None:
                    whole = None if kept is None or kept._version != version else kept  # not written to since
                    self._trace.emit(site, GradientEvent(gradient=gradient.detach(), output=whole))

            self._gradient_handles.append(before_others(output, see))

    def _recomputed(self, module: nn.Module, output: Any) -> None:
        """A checkpointed call runs again inside the backward pass: only now do its tensors have gradients."""
        path = self._structure.paths[id(module)][0]
        tensors = [item for item in tensors_in(output) if item.is_floating_point() and item.requires_grad]
        sites = [Site(path=path, kind="module", op=type(module).__name__)]
        if id(module) in self._structure.layers:
            sites.append(Site(path=path, kind="residual", op="block"))
        for site in sites:
            if tensors and self._trace.knows(site) and site.id not in self._hooked:
                self._hook(site, tensors[0])


def _makes_constants(frame: Frame, output: Tensor) -> bool:
    """Whether a module makes masks or positions: it has no parameters, and nothing it returns has a gradient."""
    return not (frame.pointwise or output.requires_grad or frame.has_parameters)
