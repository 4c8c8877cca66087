"""One cause, one main finding: which findings follow from which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..schema import SEVERITIES, Finding, Site
from ._rule import Rule


def with_causes(findings: Sequence[Finding], rules: Mapping[str, Rule], sites: Sequence[Site]) -> tuple[Finding, ...]:
    """The same findings, each consequence with the code of the main finding it follows from.

    A finding follows from another where the other's rule explains its code and it lies at the same place or behind
    it in execution order; gradients, updates and the run as a whole feel a fault wherever it is. What is only worth
    knowing explains nothing that is worse. Of several causes the one that is itself a main finding, the worst and
    then the first counts. `explains` has no circles, so there always is a main finding.
    """
    place = {site.id: index for index, site in enumerate(sites) if site.kind != "parameter"}  # weights act anywhere
    causes: dict[int, Finding] = {}

    def main(index: int) -> Finding:
        if index not in causes:
            finding = findings[index]
            others = [
                main(other)
                for other, cause in enumerate(findings)
                if finding.code in rules[cause.code].explains
                and (cause.severity != "info" or finding.severity == "info")
                and _reaches(cause, finding, place)
            ]
            causes[index] = min(others, key=lambda item: SEVERITIES.index(item.severity), default=finding)
        return causes[index]

    return tuple(
        finding if main(index) is finding else replace(finding, cause=main(index).code)
        for index, finding in enumerate(findings)
    )


_EVERYWHERE = ("GRD", "RUN")


def _reaches(cause: Finding, consequence: Finding, place: Mapping[str, int]) -> bool:
    if consequence.code.startswith(_EVERYWHERE):
        return True
    starts = min((place[site] for site in cause.sites if site in place), default=0)
    return any(place.get(site, len(place)) >= starts for site in consequence.sites)
