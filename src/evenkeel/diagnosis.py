"""A diagnosis: what was measured, and what the rules find in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from .records import Record
from .report import text
from .report.places import where
from .rules import RULES, matches
from .rules import judge as apply_rules
from .schema import (
    SEVERITIES,
    DataInfo,
    Document,
    Finding,
    ModelInfo,
    Reading,
    RuleStatus,
    Site,
    StepLog,
)
from .settings import Settings, ignored


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Document):
    """The document that inspecting and watching return: sites, readings, rule statuses, findings."""

    def to_text(self, width: int | None = None, color: bool = False) -> str:
        """The report for a person. width: columns, 80 if None; color: with terminal escapes."""
        return text.render(self, width=width, color=color)


@dataclass(frozen=True)
class Judgement:
    """What the rules say to some readings under a project's settings; notes: what the settings changed."""

    findings: tuple[Finding, ...]
    statuses: tuple[RuleStatus, ...]
    notes: tuple[str, ...]


def judge(record: Record, settings: Settings | None = None) -> Diagnosis:
    """Apply every rule to the readings of all steps, as a project's settings say (None: as the rules are).

    Findings come by severity, then by where their first site runs. What the settings changed is in the notes.
    """
    sites, readings = record.sites(), record.readings()
    judgement = judge_readings(sites, readings, record.log_entries(), record.model, record.data, settings)
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
        findings=tuple(sorted(judgement.findings, key=order)),
        rules=judgement.statuses,
        notes=(*record.notes, *judgement.notes),
    )


def judge_readings(
    sites: Sequence[Site],
    readings: Sequence[Reading],
    log_entries: Sequence[StepLog],
    model: ModelInfo,
    data: DataInfo,
    settings: Settings | None = None,
) -> Judgement:
    """The same for readings that are in no record; findings come in the order of the catalogue."""
    settings = settings or Settings()

    def judged(settings: Settings) -> tuple[tuple[Finding, ...], tuple[RuleStatus, ...]]:
        overrides, ignore = settings.overrides, settings.ignore
        return apply_rules(sites, readings, log_entries, model, data, overrides, ignore=ignore)

    findings, statuses = judged(settings)
    everything, _ = judged(replace(settings, suppress=())) if settings.suppress else (findings, statuses)
    passed = {item.code for item in statuses if item.status == "pass"}
    return Judgement(findings, statuses, tuple(_notes(settings, everything, passed)))


def _notes(settings: Settings, everything: Sequence[Finding], passed: Collection[str]) -> Iterator[str]:
    """What the settings changed; everything: the findings without suppressions; passed: codes judged without one.

    A suppression is unused only where its rule was judged and found nothing there: another command may need it.
    """
    judged = {finding.code for finding in everything} | set(passed)
    for code, override in settings.rules.items():
        changes = [
            f"{name} {value:g} (by default {RULES[code].bounds[name]:g})" for name, value in override.bounds.items()
        ]
        changes += [f"severity {override.severity}"] if override.severity else []
        if changes:
            yield f"{code} is set otherwise{f' in {settings.source}' if settings.source else ''}: {', '.join(changes)}"
    if settings.ignore:
        yield ignored(settings.ignore)
    for suppression in settings.suppress:
        hidden: dict[str, list[str]] = {}
        for finding in everything:
            if suppression.code in ("", finding.code):
                sites = [site for site in finding.sites if matches(suppression.sites, site)]
                hidden.setdefault(finding.code, []).extend(sites)
        told = [f"{code} at {where(sites)}" for code, sites in hidden.items() if sites]
        if told:
            yield f"suppressed: {', '.join(told)}{f' ({suppression.reason})' if suppression.reason else ''}"
        elif not suppression.code or suppression.code in judged:
            yield f"unused suppression, it hides nothing: {suppression}"
