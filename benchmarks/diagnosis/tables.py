"""What the outcomes show: shares with Wilson's 95% intervals, a confusion table, every miss by name; in Markdown."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from evenkeel.faults import FAULTS

from .cases import SPLITS, Case
from .peers import PEERS
from .trial import Outcome, Told

Judged = tuple[Case, Outcome]

ALWAYS_ALLOWED = frozenset({"ACT103", "ARC703"})
"""They tell a choice, at info; every model that made it shows them."""

TOP_LEVEL = 3
_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    @classmethod
    def of(cls, items: Iterable[bool]) -> Share:
        """How many of the items are true."""
        known = list(items)
        return cls(sum(known), len(known))

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval: the shares p that lie within z·√(p(1−p)/n) of what was seen."""
        if not self.total:
            return 0.0, 1.0
        seen, square = self.value, _QUANTILE**2 / self.total
        centre = seen + square / 2
        half = math.sqrt(square * (seen * (1 - seen) + square / 4))
        low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
        return (0.0 if self.count == 0 else low), (1.0 if self.count == self.total else high)

    def __str__(self) -> str:
        if not self.total:
            return "–"
        low, high = self.interval
        return f"{self.count}/{self.total} = {100 * self.value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def loud(outcome: Outcome) -> tuple[Told, ...]:
    """Findings at warning or above."""
    return tuple(item for item in outcome.told if item.severity != "info")


def is_found(case: Case, outcome: Outcome) -> bool:
    """Whether one of the codes of the case's fault fired, at any severity."""
    return any(item.code in _codes(case) for item in outcome.told)


def is_warned(case: Case, outcome: Outcome) -> bool:
    """Whether one of them fired at warning or above."""
    return any(item.code in _codes(case) for item in loud(outcome))


def forbidden(case: Case, outcome: Outcome) -> tuple[str, ...]:
    """Codes at warning or above that the case's fault does not allow."""
    fault = FAULTS[str(case.fault)]
    allowed = {*fault.codes, *fault.may, *ALWAYS_ALLOWED}
    return tuple(dict.fromkeys(item.code for item in loud(outcome) if item.code not in allowed))


def is_placed(case: Case, outcome: Outcome) -> bool:
    """Whether a finding of the fault's codes names its place: its first site lies there, or half of its sites do."""
    places = {_block(place) for place in outcome.places}
    told = [item.sites for item in outcome.told if item.code in _codes(case) and item.sites]
    right = [[_block(site.rpartition(":")[0]) in places for site in sites] for sites in told]
    return any(item[0] or Share.of(item).value >= 0.5 for item in right)


def is_brief(outcome: Outcome) -> bool:
    """Whether few enough findings at warning or above stand by themselves."""
    return sum(not item.cause for item in loud(outcome)) <= TOP_LEVEL


def _codes(case: Case) -> tuple[str, ...]:
    return FAULTS[str(case.fault)].codes


def _block(path: str) -> str:
    """The block of a path: up to its first number; the whole path where it has none."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else path


def render(judged: Sequence[Judged]) -> str:
    """All tables of the cases that have an outcome."""
    lines: list[str] = []
    for split in SPLITS:
        of_split = [item for item in judged if item[0].split == split]
        if of_split:
            lines += [f"## Split `{split}`", "", *_split(of_split)]
    return "\n".join(lines)


def _split(judged: Sequence[Judged]) -> Iterator[str]:
    sick = [item for item in judged if item[0].fault is not None and not item[1].reason]
    healthy = [item for item in judged if item[0].fault is None]
    yield from _summary(sick, healthy)
    yield from _by_fault(sick)
    yield from _confusion(sick, healthy)
    yield from _peers(sick, healthy)
    yield from _listed(judged, sick, healthy)


def _summary(sick: Sequence[Judged], healthy: Sequence[Judged]) -> Iterator[str]:
    localised = [item for item in sick if item[1].places and is_found(*item)]
    rows = {
        "sick models that get their fault's code": Share.of(is_found(*item) for item in sick),
        "sick models that get it at warning or above": Share.of(is_warned(*item) for item in sick),
        "healthy models with a finding at warning or above": Share.of(bool(loud(item[1])) for item in healthy),
        "sick models with a code that the fault does not allow": Share.of(bool(forbidden(*item)) for item in sick),
        "found faults with a place, in which the right block is named": Share.of(
            is_placed(*item) for item in localised
        ),
        f"sick models with at most {TOP_LEVEL} findings that stand by themselves": Share.of(
            is_brief(item[1]) for item in sick
        ),
    }
    yield from table(("", "share [95%]"), ((name, str(share)) for name, share in rows.items()))


def _by_fault(sick: Sequence[Judged]) -> Iterator[str]:
    groups = _grouped(sick, lambda case: str(case.fault))

    def row(name: str, group: Sequence[Judged]) -> tuple[str, ...]:
        localised = [item for item in group if item[1].places and is_found(*item)]
        return (
            f"`{name}`",
            " ".join(FAULTS[name].codes),
            str(Share.of(is_found(*item) for item in group)),
            str(Share.of(is_warned(*item) for item in group).count),
            str(Share.of(is_placed(*item) for item in localised)),
            str(Share.of(bool(forbidden(*item)) for item in group).count),
            str(Share.of(is_brief(item[1]) for item in group).count),
        )

    header = ("fault", "codes", "found", "as a warning", "placed", "not allowed", f"≤ {TOP_LEVEL} main findings")
    yield from table(header, (row(name, group) for name, group in groups.items()))


def _confusion(sick: Sequence[Judged], healthy: Sequence[Judged]) -> Iterator[str]:
    """How many models of each fault show each code at warning or above, in percent."""
    groups = _grouped(sick, lambda case: str(case.fault)) | {"healthy": list(healthy)}
    counts = {
        name: Counter(code for _, outcome in group for code in {item.code for item in loud(outcome)})
        for name, group in groups.items()
    }
    codes = sorted({code for counter in counts.values() for code in counter})

    def row(name: str) -> tuple[str, ...]:
        total = len(groups[name])
        cells = (round(100 * counts[name][code] / total) if counts[name][code] else None for code in codes)
        return (f"`{name}`", *("" if cell is None else str(cell) for cell in cells))

    yield "Models with a code at warning or above, in percent:"
    yield ""
    yield from table(("fault", *codes), (row(name) for name in groups if groups[name]))


def _peers(sick: Sequence[Judged], healthy: Sequence[Judged]) -> Iterator[str]:
    sick, healthy = ([item for item in group if item[1].peers] for group in (sick, healthy))

    def judged_by(name: str, group: Sequence[Judged]) -> list[tuple[str, ...]]:
        verdicts = [outcome.peers.get(name) for _, outcome in group]
        return [verdict for verdict in verdicts if verdict is not None]

    rows = [
        (
            "evenkeel",
            str(Share.of(is_found(*item) for item in sick)),
            str(Share.of(bool(loud(item[1])) for item in sick)),
            str(Share.of(bool(loud(item[1])) for item in healthy)),
        )
    ]
    for name in PEERS:
        said, false = judged_by(name, sick), judged_by(name, healthy)
        if said or false:
            rows.append((name, "", str(Share.of(map(bool, said))), str(Share.of(map(bool, false)))))
    if len(rows) > 1:
        yield "Beside other tools, on the same models: every tenth case asks them. They do not name these faults, so"
        yield "that whatever they say of a sick model at warning or above counts for them."
        yield ""
        yield from table(("", "sick: the fault's code", "sick: anything", "healthy: anything"), rows)


def _listed(judged: Sequence[Judged], sick: Sequence[Judged], healthy: Sequence[Judged]) -> Iterator[str]:
    def codes(outcome: Outcome) -> str:
        return " ".join(dict.fromkeys(item.code for item in loud(outcome))) or "nothing"

    lists = {
        "Missed": [(case, codes(outcome)) for case, outcome in sick if not is_found(case, outcome)],
        "False alarms": [(case, codes(outcome)) for case, outcome in healthy if loud(outcome)],
        "Codes that the fault does not allow": [
            (case, " ".join(forbidden(case, outcome))) for case, outcome in sick if forbidden(case, outcome)
        ],
        "Found, but elsewhere": [
            (case, ", ".join(outcome.places))
            for case, outcome in sick
            if outcome.places and is_found(case, outcome) and not is_placed(case, outcome)
        ],
        f"More than {TOP_LEVEL} main findings": [
            (case, codes(outcome)) for case, outcome in sick if not is_brief(outcome)
        ],
        "No place for the fault": [(case, outcome.reason) for case, outcome in judged if outcome.reason],
    }
    for title, entries in lists.items():
        yield from listed(title, [(f"python benchmarks/faults.py --case {case.id}", what) for case, what in entries])


def listed(title: str, entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A list of what each entry is and what is to be said of it; nothing of none."""
    if entries:
        yield f"### {title}: {len(entries)}"
        yield ""
        yield from (f"- `{what}` {said}" for what, said in entries)
        yield ""


def _grouped(judged: Sequence[Judged], key: Callable[[Case], str]) -> dict[str, list[Judged]]:
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        groups[key(item[0])].append(item)
    return dict(groups)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
