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
    max_logit. Over all visible scores: score_mean, score_std. masked_rows counts rows that see nothing. A mean over no
    rows is NaN (a head all of whose rows are masked); relative entropies are left out where no row can see two keys.
    score_scale, what products of queries and keys are multiplied by, and head_dim are there where a call tells them.
    """

    kind: ClassVar[SiteKind] = "attention"
    ENTROPY = Stat("entropy", "nats", axis="head")
    ENTROPY_RELATIVE = Stat("entropy_relative", "share", axis="head")
    ENTROPY_RELATIVE_MIN = Stat("entropy_relative_min", "share", axis="head")
    MAX_LOGIT = Stat("max_logit", "logits", axis="head")
    SCORE_MEAN = Stat("score_mean", "logits", axis="head")
    SCORE_STD = Stat("score_std", "logits", axis="head")
    PARTICIPATION = Stat("participation", "keys", axis="head")
    SOFTMAX_GAIN = Stat("softmax_gain", "1", axis="head")
    SINK_MASS = Stat("sink_mass", "share", axis="head")
    MASKED_ROWS = Stat("masked_rows", "rows", axis="head")
    SCORE_SCALE = Stat("score_scale", "1")
    HEAD_DIM = Stat("head_dim", "channels")
    stats: ClassVar[tuple[Stat, ...]] = (
        ENTROPY,
        ENTROPY_RELATIVE,
        ENTROPY_RELATIVE_MIN,
        MAX_LOGIT,
        SCORE_MEAN,
        SCORE_STD,
        PARTICIPATION,
        SOFTMAX_GAIN,
        SINK_MASS,
        MASKED_ROWS,
        SCORE_SCALE,
        HEAD_DIM,
    )

    def __init__(self) -> None:
        self._summary: AttentionSummary | None = None
        self._most_keys = 0
        self._scale: tuple[float, int] | None = None

    def observe(self, event: Event) -> None:
        assert isinstance(event, AttentionEvent)
        if event.scores is not None:
            queries, keys = event.scores.shape[2:]
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
            self._take_in(AttentionSummary.of(rows, event.padded_queries), most_keys)

    def merge(self, other: AttentionInstrument) -> None:
        self._scale = self._scale or other._scale
        if other._summary is not None:
            self._take_in(other._summary, other._most_keys)

    def _take_in(self, new: AttentionSummary, most_keys: int) -> None:
        self._most_keys = max(self._most_keys, most_keys)
        self._summary = new if self._summary is None else self._summary.merged(new)

    def read(self) -> Mapping[Stat, Tensor]:
        if self._summary is None:
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
        found[self.MAX_LOGIT] = torch.where(summary.rows > 0, summary.maximum, torch.nan)
        found[self.SCORE_MEAN] = summary.score_mean
        found[self.SCORE_STD] = (summary.score_deviation / summary.scores).sqrt()
        found[self.MASKED_ROWS] = summary.masked
        if self._scale is not None:
            scale, dim = (torch.full_like(summary.maximum[0], float(number)) for number in self._scale)
            found |= {self.SCORE_SCALE: scale, self.HEAD_DIM: dim}
        return found
