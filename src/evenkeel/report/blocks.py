"""The table of a model's blocks: which numbers of a block are shown, and which of them a finding points at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..schema import SEVERITIES, Finding, Phase, Severity, SiteKind
from .places import Latest, Row
from .quantities import largest, share_span, span

MARKS: Mapping[Severity, str] = {"error": "✗", "warning": "!", "info": "·"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number per block; of several columns those with the lowest rank are shown where room is short."""

    group: str
    title: str
    kind: SiteKind
    stat: str
    draw: Callable[[Sequence[float]], str]
    rank: int
    meaning: str
    phase: Phase = "forward"

    def values(self, row: Row, latest: Latest) -> tuple[float, ...]:
        """The stat's values at all sites of its kind in the row."""
        found = [latest.get((site.id, self.stat, self.phase), ()) for site in row.sites if site.kind == self.kind]
        return tuple(value for values in found for value in values)

    def cell(self, row: Row, latest: Latest) -> str:
        """What is shown of the row; empty where nothing was read."""
        values = self.values(row, latest)
        return self.draw(values) if values else ""


COLUMNS = (
    Column(
        group="activation",
        title="flat",
        kind="activation",
        stat="small_gradient_share",
        draw=share_span,
        rank=1,
        meaning="slope below 1% of its largest",
    ),
    Column(
        group="activation",
        title="dead",
        kind="activation",
        stat="dead_channel_share",
        draw=share_span,
        rank=6,
        meaning="channels without gradient for any token",
    ),
    Column(
        group="gate",
        title="open",
        kind="gate",
        stat="gate_open_share",
        draw=share_span,
        rank=4,
        meaning="gate values above half of their rms",
    ),
    Column(
        group="gate",
        title="select",
        kind="gate",
        stat="selectivity",
        draw=share_span,
        rank=7,
        meaning="share of the gate's variance between tokens",
    ),
    Column(
        group="attention",
        title="entropy",
        kind="attention",
        stat="entropy_relative",
        draw=share_span,
        rank=2,
        meaning="of its maximum, lowest to highest head",
    ),
    Column(
        group="attention",
        title="logit",
        kind="attention",
        stat="max_logit",
        draw=largest,
        rank=5,
        meaning="largest attention logit",
    ),
    Column(
        group="router",
        title="load",
        kind="router",
        stat="load_entropy_relative",
        draw=share_span,
        rank=8,
        meaning="evenness of the experts' load (entropy of its maximum)",
    ),
    Column(
        group="block output",
        title="rms",
        kind="residual",
        stat="residual_rms",
        draw=span,
        rank=3,
        meaning="of the block's output",
    ),
    Column(
        group="block output",
        title="gradient",
        kind="residual",
        stat="gradient_rms",
        phase="backward",
        draw=span,
        rank=0,
        meaning="rms of the loss's gradient there",
    ),
)


def filled(rows: Sequence[Row], latest: Latest) -> tuple[Column, ...]:
    """The columns that have a number in some row."""
    return tuple(column for column in COLUMNS if any(column.values(row, latest) for row in rows))


def fitting(columns: Sequence[Column], width: Callable[[Sequence[Column]], int], room: int) -> tuple[Column, ...]:
    """As many columns as fit in the room together, the most important ones, in their own order; at least one."""
    chosen = list(columns)
    while len(chosen) > 1 and width(chosen) > room:
        chosen.remove(max(chosen, key=lambda column: column.rank))
    return tuple(chosen)


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The highest severity among some findings; None where there are none."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)


def marks(row: Row, columns: Sequence[Column], findings: Sequence[Finding]) -> dict[Column | None, Severity]:
    """The worst finding at each column of a row; under None, of what no shown column stands for.

    A finding points at the columns whose stat is its evidence, else at the first of its site's kind.
    """
    found: dict[Column | None, Severity] = {}
    for finding in sorted(findings, key=lambda item: SEVERITIES.index(item.severity), reverse=True):
        stats = {evidence.stat for evidence in finding.evidence}
        for site in row.sites:
            if site.id in finding.sites:
                candidates = [column for column in columns if column.kind == site.kind]
                exact = [column for column in candidates if column.stat in stats]
                found.update(dict.fromkeys(exact or candidates[:1] or [None], finding.severity))
    return found
