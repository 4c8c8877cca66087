"""Probing a causal model: later tokens are changed, and what moves in front of them knows the future.

Asked are models whose head is judged by the next tokens of their own input, and no others. In two passes over the same
two sequences, later tokens of the first are different; the second stays as it is, so that what moves there is rounding
(a mixture's experts and dynamic quantisation compute other batches in other ways). A decoder's encoder may see all of
its input, also where that holds the same tokens: inputs that hold the same are changed one by one, and models with one
input, some of whose queries meet other numbers of keys, are not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .schema import Site
from .tracing.events import AttentionEvent, Event, HeadEvent, OutputEvent, ProbeEvent
from .tracing.frames import PADDING_ARGUMENTS
from .tracing.provenance import tensors_in
from .tracing.structure import Structure
from .tracing.trace import quietly
from .tracing.tracer import Tracer

Run = Callable[[nn.Module, Any], object]
Observe = Callable[[Site, Event], None]

_ENOUGH = 4  # judged positions in front of the change, and as many tokens from it on
_MOST_LOGITS = 2**22  # numbers of a head that are compared
_MOST_VALUES = 2**19  # numbers of a block's output that are compared


def probe(structure: Structure, batch: Any, run: Run, observe: Observe) -> None:
    """Let `observe` see the moves of the head and of each block, if the model is one that must not see the future.

    run: a forward pass and its loss, without a backward pass. batch: one that `run` takes.
    """
    ids = tuple(item for item in tensors_in(_parts(batch)) if _holds_tokens(item))
    if not ids or _has_encoder(structure.model):
        return
    pair = _mapped(batch, ids[0].shape[0], lambda item: item[[0, min(1, len(item) - 1)]])
    before = _Seen(structure, pair, run)
    own = [item for item in tensors_in(_parts(pair)) if _holds_tokens(item) and before.is_judged_by_next(item)]
    if not own or before.judged is None or before.head is None or (before.reads_others and len(ids) == 1):
        return
    judged = before.judged & _real(pair, before.judged)
    places = judged[0].nonzero().flatten()
    start = int(places[len(places) // 2]) + 1
    length = own[0].shape[1]
    if len(places) // 2 < _ENOUGH or length - start < _ENOUGH:
        return
    together = _changing(structure, pair, own, start, run)
    moves = _all_moves(before, together, judged, start)
    head = before.head
    if head in moves and len(own) > 1 and moves[head].earlier.any():
        # an encoder may read the same tokens as the decoder: asked is what the logits of the changed tokens follow
        each = [_all_moves(before, _changing(structure, pair, [item], start, run), judged, start) for item in own]
        moves = min((moves, *(item for item in each if head in item)), key=lambda item: _leak(item[head]))
    for site, event in moves.items():
        observe(site, event)


def _changing(structure: Structure, pair: Any, items: Sequence[Tensor], start: int, run: Run) -> _Seen:
    """The pass over the pair with later tokens of these tensors changed."""
    return _Seen(structure, _replaced(pair, {id(item): _changed(item, start) for item in items}), run)


def _all_moves(before: _Seen, after: _Seen, judged: Tensor, start: int) -> dict[Site, ProbeEvent]:
    with quietly():
        return {
            site: _moves(first, after.values[site], judged, start)
            for site, first in before.values.items()
            if site in after.values and after.values[site].shape == first.shape
        }


def _leak(moves: ProbeEvent) -> float:
    """How far earlier logits moved, relative to the later ones; infinite where those stood still."""
    earlier, later = (float(item.amax()) if item.numel() else 0.0 for item in (moves.earlier, moves.later))
    return earlier / later if later > 0 else math.inf


class _Seen:
    """What one pass showed: the head's logits and targets, and each block's output, (2, positions, values)."""

    def __init__(self, structure: Structure, batch: Any, run: Run) -> None:
        self._logits: list[tuple[Site, Tensor]] = []
        self._targets: list[Tensor] = []
        self._length = max(item.shape[1] for item in tensors_in(_parts(batch)) if _holds_tokens(item))
        self.values: dict[Site, Tensor] = {}
        self.head: Site | None = None
        self.judged: Tensor | None = None
        self._as_many: set[bool] = set()  # keys as queries, in each attention
        torch.manual_seed(0)  # a model that draws numbers even now draws the same each time
        with torch.no_grad(), Tracer(structure, self._observe) as tracer:
            run(structure.model, batch)
        blocks = {site for site in tracer.sites if site.kind == "residual"}
        self.values = {site: item for site, item in self.values.items() if site in blocks}
        self._take_head()

    def _observe(self, site: Site, event: Event) -> None:
        if isinstance(event, HeadEvent) and event.targets is not None:
            step = -(-2 * self._length * event.logits.shape[1] // _MOST_LOGITS)
            self._logits.append((site, event.logits[:, ::step].float()))
            self._targets.append(torch.where(event.targets == event.ignore_index, -1, event.targets))
        elif isinstance(event, AttentionEvent) and event.query is not None and event.key is not None:
            self._as_many.add(event.query.shape[2] == event.key.shape[2])
        elif isinstance(event, OutputEvent) and site.kind == "residual" and event.output.dim() == 3:
            output = event.output
            if output.shape[:2] == (2, self._length) and site not in self.values:
                step = -(-output.numel() // _MOST_VALUES)
                self.values[site] = output[..., ::step].float()

    @property
    def reads_others(self) -> bool:
        """Whether some queries meet as many keys and others do not: a decoder reads its encoder, a prefix is in all."""
        return len(self._as_many) == 2

    def _take_head(self) -> None:
        """Rows of a head are positions of two sequences, perhaps without the last one."""
        if not self._logits or len({site for site, _ in self._logits}) > 1:
            return
        logits = torch.cat([item for _, item in self._logits])
        if len(logits) not in (2 * self._length, 2 * self._length - 2):
            return
        self.head = self._logits[0][0]
        self.values[self.head] = logits.reshape(2, -1, logits.shape[1])
        self.targets = torch.cat(self._targets).reshape(2, -1)
        self.judged = (self.targets >= 0)[:, : self._length - 1]

    def is_judged_by_next(self, ids: Tensor) -> bool:
        """Whether every target is the token behind its position, and none of this is so by chance."""
        if self.judged is None or ids.shape != (2, self._length):
            return False
        targets, following = self.targets[:, : self._length - 1], ids[:, 1:]
        same_as_own = (targets == ids[:, :-1])[self.judged].all()
        return bool(self.judged[0].any() & (targets == following)[self.judged].all() & ~same_as_own)


def _moves(before: Tensor, after: Tensor, judged: Tensor, start: int) -> ProbeEvent:
    """How far each position moved; 0 for those that do not belong to a group."""
    moved = (after - before).square().mean(-1).sqrt()
    positions = torch.arange(moved.shape[1], device=moved.device)
    counted = torch.zeros_like(moved, dtype=torch.bool)
    counted[:, : judged.shape[1]] = judged[:, : moved.shape[1]].to(moved.device)
    return ProbeEvent(
        earlier=torch.where(counted[0] & (positions < start), moved[0], 0),
        later=moved[0, start:],
        untouched=torch.where(counted[1], moved[1], 0),
    )


def _changed(ids: Tensor, start: int) -> Tensor:
    """The same tokens, but from `start` on in the first sequence each is the next larger one that occurs."""
    known, place = ids.unique(return_inverse=True)
    others = known[(place + 1) % len(known)]
    changed = ids.clone()
    changed[0, start:] = others[0, start:]
    return changed


def _real(batch: Any, positions: Tensor) -> Tensor:
    """Which positions hold no padding, as far as the batch tells."""
    given = batch if isinstance(batch, Mapping) else {}
    for name, marks in PADDING_ARGUMENTS.items():
        mask = given.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= positions.shape[1]:
            return mask[:, : positions.shape[1]].bool() ^ marks
    return torch.ones_like(positions)


def _holds_tokens(item: Tensor) -> bool:
    whole = not item.is_floating_point() and not item.is_complex() and item.dtype != torch.bool
    return whole and item.dim() == 2 and item.shape[1] > 2 * _ENOUGH


def _has_encoder(model: nn.Module) -> bool:
    """An encoder may see all of its input, whatever the decoder is judged by."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _parts(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch


def _mapped(value: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with every tensor of as many rows changed."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() and value.shape[0] == rows else value
    if isinstance(value, Mapping):
        return {key: _mapped(item, rows, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, rows, change) for item in value)
    return value


def _replaced(value: Any, others: Mapping[int, Tensor]) -> Any:
    """A batch with some of its tensors exchanged for others, by identity."""
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, others) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, others) for item in value)
    return value
