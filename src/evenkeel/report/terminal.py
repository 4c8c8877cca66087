"""Sections of a report as the lines of a terminal: at a width, with or without colour, markup never obeyed."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ..schema import printable

WIDTH = 80


def drawn(sections: Iterable[RenderableType | None], width: int, color: bool) -> str:
    """The sections below each other with an empty line between; None is left out."""
    console = Console(
        file=io.StringIO(),
        width=width,
        height=100,  # with both sizes given, rich asks neither the terminal nor the environment
        color_system="standard" if color else None,
        no_color=not color,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        for section in sections:
            if section is not None:
                console.print(section)
                console.print()
    lines = (line.rstrip() for line in capture.get().split("\n"))
    return "\n".join(lines).strip("\n") + "\n"


def safe(text: str, style: str = "") -> Text:
    """A text from outside without its control characters."""
    return Text(printable(text), style)


def grid(rows: Iterable[tuple[str, Text]]) -> Grid | None:
    """Labels on the left, text wrapped on the right; None without rows."""
    table = Grid.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), text)
    return table if table.row_count else None
