"""A diagnosis: what was measured, and what the rules find in it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from .records import Record
from .report import text
from .rules import judge as apply_rules
from .schema import SEVERITIES, Document, Finding


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Document):
    """The document that inspecting and watching return: sites, readings, rule statuses, findings."""

    def to_text(self, width: int | None = None, color: bool = False) -> str:
        """The report for a person. width: columns, 80 if None; color: with terminal escapes."""
        return text.render(self, width=width, color=color)


def judge(record: Record) -> Diagnosis:
    """Apply every rule to the readings of all steps.

    Findings come by severity, then by where their first site runs.
    """
    sites, readings = record.sites(), record.readings()
    findings, statuses = apply_rules(sites, readings, record.log_entries(), record.model, record.data)
    place = {site.id: index for index, site in enumerate(sites)}

    def order(finding: Finding) -> tuple[int, int]:
        first = min((place.get(site, len(place)) for site in finding.sites), default=len(place))
        return SEVERITIES.index(finding.severity), first

    return Diagnosis(
        tool=f"evenkeel {version('evenkeel')}",
        model=record.model,
        data=record.data,
        sites=sites,
        readings=readings,
        findings=tuple(sorted(findings, key=order)),
        rules=statuses,
        notes=record.notes,
    )
