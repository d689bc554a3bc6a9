"""Boxes with text, and arrows between them, drawn as SVG in the colours of every figure.

Lengths are in units of the drawing; text is set by the page, so widths of text are estimates and
what might not fit is cut with an ellipsis.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.figure_style import INK, MUTED, PAPER

TEXT = 12.5
SMALL = 11.0
LINE = 16.0
PADDING = 9.0
LETTER = 0.56
"""Mean width of a letter over the size of the text."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where a box lies."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Its middle from left to right."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width


class BoxDrawing:
    """A drawing that boxes, arrows and words are put into, and that ends as the bytes of an SVG."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.bottom = 0.0
        """Lower edge of the lowest thing drawn so far."""
        self._frames = ElementTree.Element("g")
        self._arrows = ElementTree.Element("g")
        self._boxes = ElementTree.Element("g")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        title: str,
        lines: Sequence[str | tuple[str, str]] = (),
        *,
        color: str = MUTED,
        note: str = "",
    ) -> Box:
        """Draw a box as high as its text.

        Args:
            x: Left edge.
            y: Upper edge.
            width: Of the box.
            title: First line, set bold.
            lines: Further lines; a pair is set at the left and at the right edge.
            color: Of the frame and of the bar at its left.
            note: A last line, small and pale.
        """
        height = 2 * PADDING + LINE * (1 + len(lines)) + (LINE if note else 0) - 3
        made = Box(x=x, y=y, width=width, height=height)
        frame = {"fill": PAPER, "stroke": color, "stroke-width": "1.2", "rx": "5"}
        _add(self._boxes, "rect", x=x, y=y, width=width, height=height, **frame)
        room = width - 2 * PADDING
        at = y + PADDING + TEXT - 1.5
        self._text(x + PADDING, at, _cut(title, room / 1.08, TEXT), weight="600")
        for line in lines:
            at += LINE
            left, right = (line, "") if isinstance(line, str) else line
            taken = len(right) * LETTER * TEXT + 8 if right else 0.0
            self._text(x + PADDING, at, _cut(left, room - taken, TEXT))
            if right:
                self._text(made.right - PADDING, at, right, anchor="end")
        if note:
            self._text(x + PADDING, at + LINE, note, size=SMALL, color=MUTED)
        self.bottom = max(self.bottom, made.bottom)
        return made

    def frame(self, x: float, y: float, width: float, height: float, title: str, color: str) -> Box:
        """Draw a dashed frame behind everything, its title inside its upper edge."""
        look = {"fill": "none", "stroke": color, "stroke-width": "1.2", "rx": "9"}
        look["stroke-dasharray"] = "5 4"
        _add(self._frames, "rect", x=x, y=y, width=width, height=height, **look)
        self._text(x + 12, y + 20, title, size=13.5, weight="600", color=color)
        self.bottom = max(self.bottom, y + height)
        return Box(x=x, y=y, width=width, height=height)

    def arrow(self, *points: Point, color: str = MUTED) -> None:
        """Draw a line through the points, with a head at the last."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        look = {"fill": "none", "stroke": color, "stroke-width": "1.4"}
        _add(self._arrows, "path", d=f"M {path}", **look)
        (x0, y0), (x, y) = points[-2:]
        if abs(y - y0) >= abs(x - x0):
            back = -7 if y > y0 else 7
            head = f"M {x:g} {y:g} l -4 {back} l 8 0 z"
        else:
            back = -7 if x > x0 else 7
            head = f"M {x:g} {y:g} l {back} -4 l 0 8 z"
        _add(self._arrows, "path", d=head, fill=color, stroke="none")

    def words(self, x: float, y: float, text: str, *, anchor: str = "start") -> None:
        """Set small pale words."""
        self._text(x, y, text, size=SMALL, color=MUTED, anchor=anchor)
        self.bottom = max(self.bottom, y + 4)

    def to_svg(self) -> bytes:
        """Return the drawing, as high as what is in it."""
        root = ElementTree.Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {self.width:g} {self.bottom + 10:g}",
        )
        root.extend([self._frames, self._arrows, self._boxes])
        return ElementTree.tostring(root, encoding="utf-8")

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = TEXT,
        weight: str = "400",
        color: str = INK,
        anchor: str = "start",
    ) -> None:
        style = {"font-size": f"{size:g}", "font-weight": weight, "text-anchor": anchor}
        _add(self._boxes, "text", x=x, y=y, fill=color, **style).text = text


def _add(parent: ElementTree.Element, tag: str, **attributes: float | str) -> ElementTree.Element:
    words = {
        name: value if isinstance(value, str) else f"{value:g}"
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, words)


def _cut(text: str, room: float, size: float) -> str:
    letters = max(int(room / (LETTER * size)), 1)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
