"""Judging: every rule over one set of measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ..schema import (
    SEVERITIES,
    DataInfo,
    Finding,
    ModelInfo,
    Reading,
    RuleOutcome,
    RuleStatus,
    Severity,
    Site,
    StepLog,
    clean_name,
)
from ._causes import with_causes
from ._measurements import Measurements
from ._rule import Bounds, Case, Rule


@dataclass(frozen=True, kw_only=True)
class Override:
    """What a project sets otherwise than a rule does.

    bounds: some of its numbers, by name. severity: that of all its findings. silent_at: globs on ids or paths of the
    sites at which nothing is found; a finding loses these sites, and is none where no site is left.
    """

    bounds: Bounds = field(default_factory=dict)
    severity: Severity | None = None
    silent_at: tuple[str, ...] = ()

    def applied(self, case: Case) -> Case | None:
        """A case as the project sees it; None where it is silent at all of its sites."""
        sites = tuple(site for site in case.sites if not matches(self.silent_at, site.id))
        return replace(case, sites=sites, severity=self.severity or case.severity) if sites else None


def matches(globs: Iterable[str], site_id: str) -> bool:
    """Whether a glob fits a site's id or its path: `layers.0.*` is all of a layer, `*.softmax` every softmax."""
    path = site_id.rpartition(":")[0]
    return any(fnmatchcase(site_id, glob) or fnmatchcase(path, glob) for glob in globs)


_AS_IT_IS = Override()


def judge_all(
    rules: Iterable[Rule],
    sites: Iterable[Site],
    readings: Iterable[Reading],
    log_entries: Iterable[StepLog],
    model: ModelInfo,
    data: DataInfo,
    overrides: Mapping[str, Override],
) -> tuple[tuple[Finding, ...], tuple[RuleStatus, ...]]:
    """Apply rules to measurements; one status per rule, findings in the order of the rules, consequences marked."""
    rules = tuple(rules)
    measurements = Measurements(tuple(sites), tuple(readings), tuple(log_entries), model, data)
    findings: list[Finding] = []
    statuses: list[RuleStatus] = []
    for rule in rules:
        found, outcome = apply(rule, measurements, overrides.get(rule.code, _AS_IT_IS))
        findings += found
        reason = _lacking(rule, measurements) if outcome == "not_measured" else ""
        statuses.append(RuleStatus(code=rule.code, status=outcome, reason=reason))
    known = {rule.code: rule for rule in rules}
    return with_causes(findings, known, measurements.sites), tuple(statuses)


def apply(
    rule: Rule, measurements: Measurements, override: Override = _AS_IT_IS
) -> tuple[tuple[Finding, ...], RuleOutcome]:
    """What one rule finds, and how far it could judge.

    A rule passes only where it judged at least one site and no site's readings were NaN.
    """
    if not rule.needs:
        if not measurements.log:
            return (), "not_applicable"
        found = _findings(rule, measurements, (), override)
        return found, "fail" if found else "pass"
    concerned = _concerned(rule, measurements)
    if not concerned or not (measurements.is_of_a_run or all(need.phase != "update" for need in rule.needs)):
        return (), "not_applicable"  # an inspection takes no steps
    met = [site for site in concerned if _read(rule, measurements, site)]
    sound = tuple(site for site in met if not _has_nan(rule, measurements, site))
    found = _findings(rule, measurements, sound, override) if sound else ()
    if found:
        return found, "fail"
    return (), "pass" if sound and len(sound) == len(met) else "not_measured"


def _read(rule: Rule, measurements: Measurements, site: Site) -> bool:
    """Whether every needed reading is there, with enough evidence behind it."""
    for need in rule.needs:
        values = measurements.values(site, need.stat, need.phase)
        if not values or (need.at_least is not None and min(values) < need.at_least):
            return False
    return True


def _concerned(rule: Rule, measurements: Measurements) -> list[Site]:
    return [site for kind in rule.kinds for site in measurements.of_kind(kind) if rule.applies(site)]


def _lacking(rule: Rule, measurements: Measurements) -> str:
    """What kept a rule from judging a site, of those it is about the one at which the fewest of its needs lack."""
    lacking = [_lacking_at(rule, measurements, site) for site in _concerned(rule, measurements)]
    return min(filter(None, lacking), key=len, default=("",))[0]


def _lacking_at(rule: Rule, measurements: Measurements, site: Site) -> tuple[str, ...]:
    place = clean_name(site.path) or "the model"
    found = []
    for need in rule.needs:
        values = measurements.values(site, need.stat, need.phase)
        if not values and need.phase == "update" and not measurements.has_updates:
            found.append("no step of an optimizer was measured; give watch(..., optimizer=...) those of the run")
        elif not values:
            found.append(f"no {need.stat} was read at {place}")
        elif need.at_least is not None and min(values) < need.at_least:
            few = f"{need.stat} is {min(values):,.0f} at {place}"
            found.append(f"{few}, too few to judge by; it takes {need.at_least:,.0f}")
        elif any(map(math.isnan, values)):
            found.append(f"{need.stat} is NaN at {place}")
    return tuple(found)


def _has_nan(rule: Rule, measurements: Measurements, site: Site) -> bool:
    return any(math.isnan(value) for need in rule.needs for value in measurements.values(site, need.stat, need.phase))


def _findings(
    rule: Rule, measurements: Measurements, sites: tuple[Site, ...], override: Override
) -> tuple[Finding, ...]:
    found = rule.judge(measurements, sites, {**rule.bounds, **override.bounds})
    cases = (override.applied(case) for case in found)
    return tuple(_merged(rule, tuple(case for case in cases if case is not None)))


def _merged(rule: Rule, cases: tuple[Case, ...]) -> Iterator[Finding]:
    """One finding per severity: the worst case tells, all cases' sites are listed."""
    for severity in SEVERITIES:
        group = [case for case in cases if case.severity == severity]
        if not group:
            continue
        worst = max(group, key=lambda case: case.excess)
        yield Finding(
            code=rule.code,
            rule=rule.name,
            severity=severity,
            sites=tuple(dict.fromkeys(site.id for case in group for site in case.sites)),
            evidence=worst.evidence,
            message=worst.message,
            why=rule.why,
            advice=rule.advice,
            change=worst.change or rule.change,
            claims=rule.claims,
            try_command=rule.try_command,
            source=rule.source,
        )
