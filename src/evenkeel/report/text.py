"""The report that a person reads: header, a row per block, the head, findings, what is missing, one closing line.

Everything from outside is drawn as rich `Text`, never as markup, and without its control characters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from ..schema import SEVERITIES, Document, Finding, Severity, Site, clean_name, printable
from .blocks import COLUMNS, MARKS, Column, filled, fitting, marks, worst
from .places import Latest, Row, Stack, latest, stacks, where
from .quantities import count, number, parameters, quantity, share
from .table import STYLES, Cell, Table
from .terminal import WIDTH, drawn, grid, safe

_PLURALS: dict[Severity, str] = {"error": "errors", "warning": "warnings", "info": "info"}

# (stat, name, how it is drawn) of the head line
_HEAD: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", lambda value: f"{number(value)} nats"),
    ("entropy", "entropy", lambda value: f"{number(value)} nats"),
    ("accuracy", "accuracy", share),
    ("ece", "calibration error", share),
    ("optimal_temperature", "best temperature", number),
    ("logit_absmax", "largest logit", number),
)


def render(
    document: Document, *, width: int | None = None, color: bool = False, new: Collection[Finding] | None = None
) -> str:
    """The whole report. width: columns, 80 if None; color: with terminal escapes; new: findings to mark as new."""
    width = width or WIDTH
    newest = latest(document.readings)
    sections = [
        _header(document),
        *_tables(document, newest, width),
        _head(document, newest),
        *_findings(document.findings, new),
        _missing(document),
        _closing(document, new),
    ]
    return drawn(sections, width, color)


def render_findings(
    document: Document, *, width: int | None = None, color: bool = False, new: Collection[Finding] | None = None
) -> str:
    """The findings alone, each with where, what was measured, why, and what to do; new: findings to mark as new."""
    return drawn(_findings(document.findings, new), width or WIDTH, color)


def render_side_by_side(
    left: Document, right: Document, titles: tuple[str, str], *, width: int | None = None, color: bool = False
) -> str:
    """Two documents beside each other: the head's numbers, findings, and the most important numbers of each block."""
    width = width or WIDTH
    sides = [_Side(document, clean_name(title)[:12]) for document, title in zip((left, right), titles, strict=True)]
    return drawn([_summaries(sides), _paired_table(sides, width)], width, color)


def _header(document: Document) -> Grid | None:
    model, data = document.model, document.data
    size = ", ".join((parameters(model.parameters), model.dtype, model.device))
    source = ", ".join((data.source, *([count(data.tokens, "token")] if data.tokens else [])))
    rows = [("tool", safe(document.tool)), ("model", safe(f"{clean_name(model.class_name)}: {size}"))]
    rows.append(("data", safe(source)))
    if data.kind == "random":
        rows.append(("", Text("random inputs: weak evidence for what real data would show", STYLES["warning"])))
    steps = sorted({reading.step for reading in document.readings})
    if len(steps) > 1:
        rows.append(("steps", Text(f"{len(steps)} measured, {steps[0]} to {steps[-1]}; each number is its newest")))
    return grid([*rows, *(("note", safe(note)) for note in document.notes)])


def _tables(document: Document, newest: Latest, width: int) -> Iterator[Text]:
    shown: dict[str, str] = {}
    for stack in stacks(document.sites):

        def table(columns: Sequence[Column], stack: Stack = stack) -> Table:
            return _table(stack, columns, newest, document.findings)

        columns = fitting(filled(stack.rows, newest), lambda chosen: table(chosen).width, width)
        shown.update({column.title: column.meaning for column in columns})
        yield Text("\n").join([safe(_title(stack), "bold"), table(columns).draw()])
    if shown:
        yield _legend(shown, document.findings)


def _table(stack: Stack, columns: Sequence[Column], newest: Latest, findings: Sequence[Finding]) -> Table:
    labels, cells = [], []
    for row in stack.rows:
        found = marks(row, columns, findings)
        labels.append(Cell(_label(stack, row), found.get(None)))
        cells.append([Cell(column.cell(row, newest), found.get(column)) for column in columns])
    return Table("block", labels, [(column.group, column.title) for column in columns], cells)


def _title(stack: Stack) -> str:
    ops = {row.ops for row in stack.rows}
    return f"{stack.title}: {ops.pop()}" if len(ops) == 1 and ops != {""} else stack.title


def _label(stack: Stack, row: Row) -> str:
    return row.label if len({other.ops for other in stack.rows}) == 1 else f"{row.label} {row.ops}"


def _legend(shown: dict[str, str], findings: Sequence[Finding]) -> Text:
    parts = [f"{title}: {meaning}" for title, meaning in shown.items()]
    present = {finding.severity for finding in findings}
    parts += [f"{MARKS[severity]} {severity}, explained below" for severity in SEVERITIES if severity in present]
    return Text("; ".join(parts), "dim")


def _head(document: Document, newest: Latest) -> Grid | None:
    heads = [site for site in document.sites if site.kind == "head" and site.status == "measured"]
    rows = []
    for site in heads:
        parts = [f"{name} {text}" for name, text in _head_numbers(site, newest)]
        severity = worst(finding for finding in document.findings if site.id in finding.sites)
        line = Text("; ".join(parts), STYLES[severity] if severity else "")
        rows.append(("head " + MARKS[severity] if severity else "head", line))
        if len(heads) > 1:
            line.append(f" ({clean_name(site.path)})")
    return grid(rows)


def _head_numbers(site: Site, newest: Latest) -> Iterator[tuple[str, str]]:
    for stat, name, draw in _HEAD:
        values = newest.get((site.id, stat, "forward"))
        if values:
            yield name, draw(values[0])


def _findings(findings: Sequence[Finding], new: Collection[Finding] | None) -> Iterator[Group]:
    """Each main finding in full, and what follows from it in a line each; the group with the worst comes first.

    A consequence that is an error says its numbers: it may be what made a command fail.
    """
    groups = _by_cause(findings)
    for group in sorted(groups, key=lambda group: min(SEVERITIES.index(item.severity) for item in group)):
        finding, *consequences = group
        line = Text()
        line.append(f"{MARKS[finding.severity]} {finding.severity} ", STYLES[finding.severity])
        line.append(printable(f"{finding.code} {finding.rule}"), "bold")
        line.append(_news(finding, new), "dim")
        details = grid([*_details(finding), *_consequences(consequences, new)])
        yield Group(line, safe(finding.message), *([details] if details else []))


def _by_cause(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Each main finding with its consequences; one whose cause is not among them stands by itself."""
    groups: dict[str, list[Finding]] = {}
    main = {finding.code for finding in findings if not finding.cause}
    found = []
    for finding in findings:
        if finding.cause not in main:
            found.append(group := [finding])
            groups.setdefault(finding.code, group)
    for finding in findings:
        if finding.cause in main:
            groups[finding.cause].append(finding)
    return found


def _news(finding: Finding, new: Collection[Finding] | None) -> str:
    return "" if new is None else " (new)" if finding in new else " (in the baseline)"


def _consequences(findings: Sequence[Finding], new: Collection[Finding] | None) -> Iterator[tuple[str, Text]]:
    for label, finding in zip(("  follows", *[""] * len(findings)), findings, strict=False):
        line = Text(f"{MARKS[finding.severity]} ", STYLES[finding.severity])
        line.append(printable(f"{finding.code} {finding.rule}: {where(finding.sites, most=2)}"), "default")
        if finding.severity == "error":
            line.append(printable(f" ({', '.join(_measured(finding))})"), "default")
        line.append(_news(finding, new), "dim")
        yield label, line


def _measured(finding: Finding) -> Iterator[str]:
    for evidence in finding.evidence:
        value, bound = (quantity(amount, evidence.unit) for amount in (evidence.value, evidence.bound))
        yield f"{evidence.stat} {value}; bound {bound}"


def _details(finding: Finding) -> Iterator[tuple[str, Text]]:
    yield "  where", safe(where(finding.sites))
    for text in _measured(finding):
        yield "  measured", safe(text)
    yield "  why", safe(finding.why)
    for label, advice in zip(("  change", *[""] * len(finding.advice)), finding.advice, strict=False):
        yield label, safe(advice)
    if finding.change is not None:
        yield ("" if finding.advice else "  change"), safe(f"{finding.change.axis} = {finding.change.value}")
    if finding.try_command:
        yield "  try", safe(finding.try_command)
    if finding.source:
        yield "  source", safe(finding.source)
    if finding.claims:
        yield "  claims", safe(", ".join(finding.claims))


def _missing(document: Document) -> Grid | None:
    """What could not be measured, grouped by reason; and the rules that could not be judged for it."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for site in document.sites:
        if site.status != "measured":
            groups[site.status.replace("_", " "), site.reason].append(site.id)
    rows = [(status, safe(f"{where(ids)}: {reason}")) for (status, reason), ids in groups.items()]
    unjudged: dict[str, list[str]] = defaultdict(list)
    for status in document.rules:
        if status.status == "not_measured":
            unjudged[status.reason or "readings missing, too few, or NaN"].append(status.code)
    rows += [("not judged", safe(f"{', '.join(codes)}: {reason}")) for reason, codes in unjudged.items()]
    return grid(rows)


def _closing(document: Document, new: Collection[Finding] | None) -> Text:
    found = Counter(finding.severity for finding in document.findings)
    parts = [count(found[severity], severity, _PLURALS[severity]) for severity in SEVERITIES if found[severity]]
    follow = sum(len(group) - 1 for group in _by_cause(document.findings))
    if follow:
        parts.append(f"{follow} of them {'a consequence' if follow == 1 else 'consequences'}")
    new_part = [f"{len(new)} new"] if new is not None else []
    outcomes = Counter(status.status for status in document.rules)
    rules = [
        f"{count(outcomes['pass'], 'rule')} passed",
        *(f"{outcomes[key]} {key.replace('_', ' ')}" for key in ("not_applicable", "not_measured") if outcomes[key]),
    ]
    severity = worst(document.findings)
    style = STYLES[severity] if severity else "green"
    return Text(f"{', '.join([*(parts or ['no findings']), *new_part])}; {', '.join(rules)}", f"bold {style}")


@dataclass(frozen=True)
class _Side:
    """One of two documents that are drawn beside each other."""

    document: Document
    title: str

    @cached_property
    def newest(self) -> Latest:
        return latest(self.document.readings)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for stack in stacks(self.document.sites) for row in stack.rows)

    @cached_property
    def head(self) -> dict[str, str]:
        sites = [site for site in self.document.sites if site.kind == "head"]
        return dict(_head_numbers(sites[-1], self.newest)) if sites else {}

    def codes(self, severity: Severity) -> str:
        return " ".join(finding.code for finding in self.document.findings if finding.severity == severity)

    def cell(self, index: int, column: Column, columns: Sequence[Column]) -> Cell:
        if index >= len(self.rows):
            return Cell()
        row = self.rows[index]
        return Cell(column.cell(row, self.newest), marks(row, columns, self.document.findings).get(column))


def _summaries(sides: Sequence[_Side]) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    for _ in sides:
        grid.add_column(overflow="fold")
    grid.add_row("", *(Text(side.title, "bold") for side in sides))
    grid.add_row("parameters", *(Text(f"{side.document.model.parameters:,}") for side in sides))
    for name in dict.fromkeys(name for side in sides for name in side.head):
        grid.add_row(name, *(Text(side.head.get(name, "")) for side in sides))
    for severity in SEVERITIES:
        codes = [side.codes(severity) for side in sides]
        if any(codes):
            grid.add_row(
                _PLURALS[severity], *(safe(text or "none", STYLES[severity] if text else "") for text in codes)
            )
    if not any(side.document.findings for side in sides):
        grid.add_row("findings", *(Text("none") for _ in sides))
    return grid


def _paired_table(sides: Sequence[_Side], width: int) -> Text | None:
    longest = max(sides, key=lambda side: len(side.rows))
    columns = [column for column in COLUMNS if any(column in filled(side.rows, side.newest) for side in sides)]
    if not columns:
        return None

    def table(chosen: Sequence[Column]) -> Table:
        return Table(
            "block",
            [Cell(row.label) for row in longest.rows],
            [(column.title, side.title) for column in chosen for side in sides],
            [
                [side.cell(index, column, chosen) for column in chosen for side in sides]
                for index in range(len(longest.rows))
            ],
        )

    return table(fitting(columns, lambda chosen: table(chosen).width, width)).draw()
