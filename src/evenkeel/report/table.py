"""Right-aligned numbers under two-line titles, with a place for a mark behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.text import Text

from ..schema import Severity
from .blocks import MARKS

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}

LONGEST_LABEL = 30


@dataclass(frozen=True)
class Cell:
    """A number as text, and the severity of the finding that points at it; style: where none does."""

    text: str = ""
    mark: Severity | None = None
    style: str = ""


@dataclass(frozen=True)
class Table:
    """labels: one per row, under `corner`; heads: (group, title) per column; cells: per row, one per column."""

    corner: str
    labels: Sequence[Cell]
    heads: Sequence[tuple[str, str]]
    cells: Sequence[Sequence[Cell]]

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        return self._label_width + sum(width + 2 for width in self._widths)

    @property
    def _label_width(self) -> int:
        return max(cell_len(text) for text in (self.corner, *(_cut(cell.text) for cell in self.labels))) + 2

    @property
    def _widths(self) -> list[int]:
        texts = ([title, *(row[index].text for row in self.cells)] for index, (_, title) in enumerate(self.heads))
        widths = [max(map(cell_len, column)) for column in texts]
        for group, indices in self._groups():
            taken = sum(widths[index] + 2 for index in indices) - 2
            widths[indices[-1]] += max(0, cell_len(group) - taken)
        return widths

    def _groups(self) -> list[tuple[str, list[int]]]:
        numbered = groupby(enumerate(self.heads), key=lambda item: item[1][0])
        return [(group, [index for index, _ in items]) for group, items in numbered]

    def draw(self) -> Text:
        """The table as lines of text."""
        widths = self._widths
        grouped = any(group for group, _ in self.heads)
        lines = [self._group_line(widths)] if grouped else []
        lines.append(_line(Cell(self.corner), self._label_width, self._titles, widths))
        for line in lines:
            line.stylize("dim")
        for label, row in zip(self.labels, self.cells, strict=True):
            lines.append(_line(Cell(_cut(label.text), label.mark), self._label_width, row, widths))
        return Text("\n").join(lines)

    @property
    def _titles(self) -> list[Cell]:
        return [Cell(title) for _, title in self.heads]

    def _group_line(self, widths: Sequence[int]) -> Text:
        line = Text(" " * self._label_width)
        for group, indices in self._groups():
            taken = sum(widths[index] + 2 for index in indices)
            line.append(" " * (taken - 2 - cell_len(group)) + group + "  ")
        line.rstrip()
        return line


def _line(label: Cell, label_width: int, row: Sequence[Cell], widths: Sequence[int]) -> Text:
    line = Text()
    _append(line, label)
    line.append(" " * (label_width - 1 - cell_len(label.text)))
    for cell, width in zip(row, widths, strict=True):
        line.append(" " * (width - cell_len(cell.text)))
        _append(line, cell)
        line.append(" ")
    line.rstrip()
    return line


def _append(line: Text, cell: Cell) -> None:
    style = STYLES[cell.mark] if cell.mark else cell.style
    line.append(cell.text + (MARKS[cell.mark] if cell.mark else " "), style)


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else "…" + label[-LONGEST_LABEL + 1 :]
