"""Attention per head: entropy, maximum, scores, participation, gain and sink, over all rows that see a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..functional import AttentionStatistics, attention_statistics, score_statistics
from ..schema import SiteKind
from ..tracing.events import AttentionEvent, Event
from ._protocol import Stat

_MEANS = ("entropy", "participation", "softmax_gain", "sink_mass")


class AttentionInstrument:
    """Exact over every row that sees at least one key; rows of known padding are left out.

    Means over rows: entropy (nats), entropy_relative (entropy / log visible keys, rows with at least two),
    participation (1/Σp²), softmax_gain (1 − Σp²), sink_mass (weight of the first key). Extremes: entropy_relative_min,
    max_logit. Over all visible scores: score_mean, score_std. masked_rows counts rows that see nothing. A mean over no
    rows is NaN (a head all of whose rows are masked); relative entropies are left out where no row can see two keys.
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
    )

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] | None = None
        self._most_keys = 0

    def observe(self, event: Event) -> None:
        assert isinstance(event, AttentionEvent)
        if event.scores is not None:
            queries, keys = event.scores.shape[2:]
            rows = score_statistics(event.scores, visible=event.visible)
        else:
            assert event.query is not None and event.key is not None
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
            self._take_in(_over_rows(rows, event.padded_queries), min(queries, keys) if event.causal else keys)

    def merge(self, other: AttentionInstrument) -> None:
        if other._sums is not None:
            self._take_in(other._sums, other._most_keys)

    def _take_in(self, new: dict[str, Tensor], most_keys: int) -> None:
        self._most_keys = max(self._most_keys, most_keys)
        self._sums = new if self._sums is None else _merged(self._sums, new)

    def read(self) -> Mapping[Stat, Tensor]:
        if self._sums is None:
            return {}
        sums = self._sums
        rows, several = sums["rows"], sums["several"]
        found = {stat: sums[stat.name] / rows for stat in self.stats if stat.name in _MEANS}
        if self._most_keys >= 2:
            found[self.ENTROPY_RELATIVE] = sums["entropy_relative"] / several
            found[self.ENTROPY_RELATIVE_MIN] = torch.where(several > 0, sums["entropy_relative_min"], torch.nan)
        found[self.MAX_LOGIT] = torch.where(rows > 0, sums["max_logit"], torch.nan)
        found[self.SCORE_MEAN] = sums["score_mean"]
        found[self.SCORE_STD] = (sums["score_deviation"] / sums["scores"]).sqrt()
        found[self.MASKED_ROWS] = sums["masked_rows"]
        return found


def _over_rows(rows: AttentionStatistics, padded: Tensor | None) -> dict[str, Tensor]:
    """Sums over batch and queries, per head."""
    wanted = torch.ones_like(rows.visible) if padded is None else (~padded)[:, None, :].expand_as(rows.visible).double()
    one, two = (wanted * (rows.visible >= least) for least in (1, 2))
    relative = rows.entropy / rows.visible.clamp(min=2).log()
    scores = (one * rows.visible).sum((0, 2))
    mean = (one * rows.visible * rows.score_mean).sum((0, 2)) / scores
    deviation = rows.score_deviation + rows.visible * (rows.score_mean - mean[:, None]).square()
    return {
        "rows": one.sum((0, 2)),
        "several": two.sum((0, 2)),
        "masked_rows": (wanted * (rows.visible == 0)).sum((0, 2)),
        **{name: torch.where(one > 0, getattr(rows, name), 0).sum((0, 2)) for name in _MEANS},
        "entropy_relative": torch.where(two > 0, relative, 0).sum((0, 2)),
        "entropy_relative_min": torch.where(two > 0, relative, torch.inf).amin((0, 2)),
        "max_logit": torch.where(one > 0, rows.maximum, -torch.inf).amax((0, 2)),
        "scores": scores,
        "score_mean": mean,
        "score_deviation": torch.where(one > 0, deviation, 0).sum((0, 2)),
    }


def _merged(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: first[name] + second[name] for name in first}
    found["entropy_relative_min"] = torch.minimum(first["entropy_relative_min"], second["entropy_relative_min"])
    found["max_logit"] = torch.maximum(first["max_logit"], second["max_logit"])
    means = [torch.where(item["scores"] > 0, item["score_mean"], 0) for item in (first, second)]
    distance = means[1] - means[0]
    share = second["scores"] / found["scores"]
    found["score_mean"] = means[0] + distance * share
    found["score_deviation"] += distance.square() * first["scores"] * share
    return found
