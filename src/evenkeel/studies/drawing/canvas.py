"""The parts that figures are made of, as SVG elements: text, lines, boxes and axes; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from .scales import Scale

INK, SOFT, GRID, BAND, PAPER = "#1f2328", "#5f6873", "#e6e9ed", "#e9eef4", "#ffffff"
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SMALL = 11.5
CHARACTER = 7.8  # px of an average one at 13 px, in the widest of these fonts

Place = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Where a panel's data are drawn."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def middle(self) -> float:
        """Between left and right."""
        return self.left + self.width / 2


def add(parent: Element, tag: str, **attributes: str | float) -> Element:
    """A new last child; `stroke_width` stands for the attribute stroke-width, `class_` for class."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    drawn = {name: value if isinstance(value, str) else f"{round(value, 2):g}" for name, value in named.items()}
    return SubElement(parent, tag, drawn)


def write(parent: Element, x: float, y: float, text: str, **attributes: str | float) -> Element:
    """A line of text with its baseline at y; further attributes as SVG names them."""
    element = add(parent, "text", x=x, y=y, **attributes)
    element.text = text
    return element


def minus(number: str) -> str:
    """A number as it is set in print, with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def line(parent: Element, places: Iterable[Place], colour: str, width: float, **attributes: str | float) -> Element:
    """A line through places."""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return add(parent, "polyline", points=drawn, fill="none", stroke=colour, stroke_width=width, **attributes)


def polygon(parent: Element, places: Iterable[Place], colour: str, **attributes: str | float) -> Element:
    """A filled area between places."""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return add(parent, "polygon", points=drawn, fill=colour, **attributes)


def clipped(parent: Element, box: Box) -> Element:
    """A group that shows nothing outside of the box; places in it count as outside."""
    view = f"{box.left:g} {box.top:g} {box.width:g} {box.height:g}"
    return add(parent, "svg", x=box.left, y=box.top, width=box.width, height=box.height, viewBox=view)


def heading(parent: Element, x: float, y: float, letter: str, title: str, hint: str) -> None:
    """A panel's letter and title, with how to read it behind."""
    element = write(parent, x, y, "", font_size=14)
    SubElement(element, "tspan", {"font-weight": "bold"}).text = letter
    SubElement(element, "tspan", {"dx": "10", "font-weight": "bold"}).text = title
    SubElement(element, "tspan", {"dx": "14", "font-size": str(SMALL), "fill": SOFT}).text = hint


def horizontal_axis(parent: Element, box: Box, scale: Scale, ticks: Sequence[tuple[float, str]], title: str) -> None:
    """Lines across the box at the ticks, their labels below, and under these what the axis is of."""
    for value, label in ticks:
        line(parent, [(scale(value), box.top), (scale(value), box.bottom)], GRID, 1)
        write(parent, scale(value), box.bottom + 16, minus(label), font_size=SMALL, fill=SOFT, text_anchor="middle")
    line(parent, [(box.left, box.bottom), (box.right, box.bottom)], SOFT, 1)
    write(parent, box.middle, box.bottom + 36, title, font_size=SMALL, fill=SOFT, text_anchor="middle")


def vertical_axis(parent: Element, box: Box, scale: Scale, ticks: Sequence[tuple[float, str]]) -> None:
    """Lines across the box at the ticks, their labels to the left."""
    for value, label in ticks:
        line(parent, [(box.left, scale(value)), (box.right, scale(value))], GRID, 1)
        write(parent, box.left - 8, scale(value) + 4, minus(label), font_size=SMALL, fill=SOFT, text_anchor="end")
