"""What one measured stretch has found so far: its sites, the meaning of its tensors, and who sees their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..schema import Site, SiteKind, SiteStatus, clean_name
from .blocks import without_other_layers
from .events import Event, HeadEvent, SigmoidHeadEvent
from .expressions import Namer
from .frames import Frame, FrameStack
from .provenance import Candidate, Normalised, Normed, Provenance, tensors_in

Observe = Callable[[Site, Event], None]

_MOST_CALLS = 32  # further calls of one place in one pass (a loop over time) count as the last of these


@contextmanager
def quietly() -> Iterator[None]:
    """No gradients, no function modes, no autocast, no hooks on saved tensors: how instruments measure."""
    with (
        torch.no_grad(),
        torch._C.DisableTorchFunction(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield


class Trace:
    """The state of tracing: `frames` says where we are, `tags` what tensors mean, `sites` what was found."""

    def __init__(self, namer: Namer, observe: Observe) -> None:
        self.namer = namer
        self.frames = FrameStack()
        self.tags = Provenance()
        self.latest: Site | None = None
        """The site that was seen last."""
        self.batch: int | None = None
        """The batch size of the running pass."""
        self._observe = observe
        self._sites: dict[str, tuple[int, Site]] = {}
        self._calls: Counter[tuple[str, SiteKind, str]] = Counter()
        self._order = 0
        self._head: tuple[str, Tensor] | None = None
        self._loss_seen = False

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site seen so far, in execution order."""
        ordered = sorted(self._sites.values(), key=lambda item: item[0])
        return without_other_layers([site for _, site in ordered])

    def knows(self, site: Site) -> bool:
        """Whether this site was seen already."""
        return site.id in self._sites

    def begin_pass(self, frame: Frame) -> None:
        """The model itself is called: calls are counted anew."""
        self.flush_head()
        self._calls.clear()
        self._loss_seen = False
        given = [frame.inputs, dict(frame.arguments)]
        self.tags.note(given)
        first = next(iter(tensors_in(given)), None)
        self.batch = None if first is None or first.dim() == 0 else first.shape[0]

    def close(self) -> None:
        """Forget the tensors."""
        self.frames.clear()
        self.tags.clear()
        self._head = None

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
        if kind not in ("module", "residual", "norm"):
            self.frames.mark_found()
        known = self._sites.get(site.id)
        if known is None or (known[1].status != "measured" and status == "measured"):
            self._sites[site.id] = (known[0] if known else order or self.next_order(), site)
        self.latest = site
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
        self._hold(candidate)

    def add_normalised(self, normalised: Normalised) -> None:
        """Hold a softmax until its frame ends; by then it has met values or experts."""
        self._hold(normalised)

    def add_normed(self, normed: Normed) -> None:
        """Hold a norm that is spelled out until its frame ends; by then it has its gain and bias."""
        if self.frames.stack:
            self.frames.stack[-1].pending.append((self.next_order(), normed))

    def reads_stream(self, tensor: Tensor) -> bool:
        """Whether a tensor still holds what the running block was given; outside of blocks everything does."""
        marks = [frame.mark for frame in self.frames.stack if frame.mark]
        return not marks or any(mark in self.tags.carried(tensor) for mark in marks)

    def _hold(self, item: Candidate | Normalised) -> None:
        if self.frames.stack:
            self.frames.mark_found()
            self.frames.stack[-1].pending.append((self.next_order(), item))

    def head(self, path: str, events: Iterable[HeadEvent | SigmoidHeadEvent], op: str = "softmax") -> None:
        """The logits of a loss, in parts; they replace the model's output as the head of this pass."""
        self._head, self._loss_seen = None, True
        site = self.site("head", op, path)
        for event in events:
            self.emit(site, event)

    def model_output(self, logits: Tensor) -> None:
        """The model's own logits: the head, if no loss of them is computed."""
        if not self._loss_seen:
            self._head = (self.tags[logits].producer or "", logits)

    def flush_head(self) -> None:
        """Logits that no loss was computed from are a head all the same."""
        if self._head is not None:
            path, logits = self._head
            self._head = None
            flat, epsilon = logits.detach().reshape(-1, logits.shape[-1]), self.tags[logits].epsilon
            self.emit(self.site("head", "softmax", path), HeadEvent(logits=flat, epsilon=epsilon))
