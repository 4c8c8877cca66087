"""Attention per head: entropy, maximum, scores, participation, gain and sink, over all rows that see a key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional import attention_statistics, score_statistics
from ..functional._attention_summary import AttentionSummary
from ..schema import SiteKind
from ..tracing.events import AttentionEvent, Event
from ._protocol import Stat


class AttentionInstrument:
    """Exact over every row that sees at least one key; rows of known padding are left out.

    Means over rows: entropy (nats), entropy_relative (entropy / log visible keys, rows with at least two),
    participation (1/Σp²), softmax_gain (1 − Σp²), sink_mass (weight of the first key). Extremes: entropy_relative_min,
    max_logit, and max_logit_rise: the most that a row's largest score lies above the mean of its visible scores. Over
    all visible scores: score_mean, score_std. masked_rows counts rows that see nothing. A mean over no rows is NaN (a
    head all of whose rows are masked); relative entropies are left out where no row can see two keys.
    score_scale, what products of queries and keys are multiplied by, and head_dim are there where a call tells them.
    max_logit and its rise are infinite where scores that the model made by itself (no fused call) overflowed.
    added_max: the largest value that a call added to the product of queries and keys, as ALiBi's bias.
    blind_rows: of the masked rows, those that are no padding by the mask either: where queries and keys are the same
    tokens, a token that sees nothing and that nobody sees is padding.
    """

    kind: ClassVar[SiteKind] = "attention"
    ENTROPY = Stat("entropy", "nats", axis="head")
    ENTROPY_RELATIVE = Stat("entropy_relative", "share", axis="head")
    ENTROPY_RELATIVE_MIN = Stat("entropy_relative_min", "share", axis="head")
    MAX_LOGIT = Stat("max_logit", "logits", axis="head")
    MAX_LOGIT_RISE = Stat("max_logit_rise", "logits", axis="head")
    SCORE_MEAN = Stat("score_mean", "logits", axis="head")
    SCORE_STD = Stat("score_std", "logits", axis="head")
    PARTICIPATION = Stat("participation", "keys", axis="head")
    SOFTMAX_GAIN = Stat("softmax_gain", "1", axis="head")
    SINK_MASS = Stat("sink_mass", "share", axis="head")
    MASKED_ROWS = Stat("masked_rows", "rows", axis="head")
    BLIND_ROWS = Stat("blind_rows", "rows", axis="head")
    SCORE_SCALE = Stat("score_scale", "1")
    HEAD_DIM = Stat("head_dim", "channels")
    ADDED_MAX = Stat("added_max", "logits")
    stats: ClassVar[tuple[Stat, ...]] = (
        ENTROPY,
        ENTROPY_RELATIVE,
        ENTROPY_RELATIVE_MIN,
        MAX_LOGIT,
        MAX_LOGIT_RISE,
        SCORE_MEAN,
        SCORE_STD,
        PARTICIPATION,
        SOFTMAX_GAIN,
        SINK_MASS,
        MASKED_ROWS,
        BLIND_ROWS,
        SCORE_SCALE,
        HEAD_DIM,
        ADDED_MAX,
    )

    def __init__(self) -> None:
        self._summary: AttentionSummary | None = None
        self._blind: Tensor | None = None
        self._overflowed: Tensor | None = None
        self._added: Tensor | None = None
        self._most_keys = 0
        self._scale: tuple[float, int] | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, AttentionEvent)
        if event.added is not None and event.added.numel():
            self._note_added(event.added.amax().double())
        if event.scores is not None:
            queries, keys = event.scores.shape[2:]
            self._note_overflow((event.scores == torch.inf).any(3).any(2).any(0))
            rows = score_statistics(event.scores, visible=event.visible)
        else:
            assert event.query is not None and event.key is not None
            if not math.isnan(event.factor):
                self._scale = event.scale * event.factor, event.query.shape[-1]
            queries, keys = event.query.shape[2], event.key.shape[2]
            rows = attention_statistics(
                event.query,
                event.key,
                scale=event.scale,
                causal=event.causal,
                mask=event.mask,
                softcap=event.softcap,
                window=event.window,
            )
        if rows.visible.numel():
            most_keys = min(queries, keys) if event.causal else keys
            self._take_in(AttentionSummary.of(rows, event.padded_queries), most_keys, _blind(event, rows.visible, keys))

    def merge(self, other: AttentionInstrument) -> None:
        self._scale = self._scale or other._scale
        if other._added is not None:
            self._note_added(other._added)
        if other._overflowed is not None:
            self._note_overflow(other._overflowed)
        if other._summary is not None and other._blind is not None:
            self._take_in(other._summary, other._most_keys, other._blind)

    def _note_added(self, largest: Tensor) -> None:
        self._added = largest if self._added is None else torch.maximum(self._added, largest)

    def _note_overflow(self, heads: Tensor) -> None:
        self._overflowed = heads if self._overflowed is None else self._overflowed | heads

    def _take_in(self, new: AttentionSummary, most_keys: int, blind: Tensor) -> None:
        self._blind = blind if self._blind is None else self._blind + blind
        self._most_keys = max(self._most_keys, most_keys)
        self._summary = new if self._summary is None else self._summary.merged(new)

    def read(self) -> Mapping[Stat, Tensor]:
        if self._summary is None or self._blind is None:
            return {}
        summary = self._summary
        found = {
            self.ENTROPY: summary.entropy / summary.rows,
            self.PARTICIPATION: summary.participation / summary.rows,
            self.SOFTMAX_GAIN: summary.softmax_gain / summary.rows,
            self.SINK_MASS: summary.sink_mass / summary.rows,
        }
        if self._most_keys >= 2:
            several = summary.several
            found[self.ENTROPY_RELATIVE] = summary.relative_entropy / several
            found[self.ENTROPY_RELATIVE_MIN] = torch.where(several > 0, summary.least_relative_entropy, torch.nan)
        for stat, largest in ((self.MAX_LOGIT, summary.maximum), (self.MAX_LOGIT_RISE, summary.rise)):
            largest = torch.where(summary.rows > 0, largest, torch.nan)
            found[stat] = largest if self._overflowed is None else torch.where(self._overflowed, torch.inf, largest)
        found[self.SCORE_MEAN] = summary.score_mean
        found[self.SCORE_STD] = (summary.score_deviation / summary.scores).sqrt()
        found[self.MASKED_ROWS] = summary.masked
        found[self.BLIND_ROWS] = self._blind
        if self._scale is not None:
            scale, dim = (torch.full_like(summary.maximum[0], float(number)) for number in self._scale)
            found |= {self.SCORE_SCALE: scale, self.HEAD_DIM: dim}
        if self._added is not None:
            found[self.ADDED_MAX] = self._added
        return found


def _blind(event: AttentionEvent, visible: Tensor, keys: int) -> Tensor:
    """How many queries of each head see nothing though they are no padding; visible: (batch, heads, queries)."""
    blind = visible == 0
    if event.padded_queries is not None:
        blind = blind & ~event.padded_queries[:, None]
    unseen = _seen_by_nobody(event) if visible.shape[2] == keys else None
    if unseen is not None:
        blind = blind & ~unseen
    return blind.sum((0, 2)).double()


def _seen_by_nobody(event: AttentionEvent) -> Tensor | None:
    """Which keys the mask hides from every query, (batch or 1, heads or 1, keys); None without a mask."""
    mask = event.mask if event.scores is None else event.visible
    if mask is None and event.scores is not None:
        mask = event.scores[:, :1]  # what is padding is padding to every head
    if mask is None or mask.dim() < 2:
        return None
    shown = mask if mask.dtype == torch.bool else mask > _hidden_below(mask.dtype)
    return ~shown[(None,) * (4 - shown.dim())].any(2)


def _hidden_below(dtype: torch.dtype) -> float:
    """What models add to hide a key: at the least BERT's -10,000, at the most the dtype's minimum."""
    return max(torch.finfo(dtype).min / 2, -9.9e3)
