"""What a rule is: data about one fault, examples of it, and the function that finds it in measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..schema import Change, Evidence, Phase, Severity, Site, SiteKind
from ._examples import Example
from ._measurements import Measurements

Bounds = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Need:
    """A reading without which a site cannot be judged; below `at_least` it is too little evidence."""

    kind: SiteKind
    stat: str
    phase: Phase = "forward"
    at_least: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One place where a bound was passed. Cases of one rule and severity become one finding.

    The finding tells evidence and message of the case with the largest `excess`, and lists the sites of all. change:
    the remedy at this place, where it is another than the rule's.
    """

    severity: Severity
    sites: tuple[Site, ...]
    evidence: tuple[Evidence, ...]
    message: str
    excess: float
    change: Change | None = None


def anywhere(site: Site) -> bool:
    """Applies to every site of a rule's kinds."""
    return True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One fault: how it shows, from which bound on, why it matters and what to do about it.

    needs: the readings it judges by, all of one kind of site; a rule without needs judges the log of the run.
    applies: which sites of that kind it is about. severities: those it can give, worst first. measures, severity,
    bound: text for the rule's page; severity is how it is decided, bound comes with its derivation. bounds: the
    numbers in that derivation that a project may set otherwise, by name. explains: codes of the rules whose
    findings follow from this fault at the same place or behind it; they are told under it. advice: ordered by
    evidence. claims: ids of the claims behind it. firing, silent: measurements on which it must fire and must stay
    silent; its tests are made from them. judge: gets all measurements, the sites whose needs are met by numbers
    other than NaN, in execution order, and the bounds, and gives the cases it finds.
    """

    code: str
    name: str
    needs: tuple[Need, ...]
    applies: Callable[[Site], bool] = anywhere
    measures: str
    severities: tuple[Severity, ...]
    severity: str
    bound: str
    bounds: Bounds = field(default_factory=dict)
    explains: tuple[str, ...] = ()
    why: str
    advice: tuple[str, ...]
    change: Change | None = None
    claims: tuple[str, ...] = ()
    try_command: str
    source: str
    firing: tuple[Example, ...]
    silent: tuple[Example, ...]
    judge: Callable[[Measurements, tuple[Site, ...], Bounds], Iterable[Case]]

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site it judges; none for a rule about the run's log."""
        return tuple(dict.fromkeys(need.kind for need in self.needs))
