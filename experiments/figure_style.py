"""How every figure looks: colours that colour-blind readers tell apart, in light and in dark.

A figure is drawn in the light colours below on no background. ``experiments.inline_svg`` swaps
each of these exact colours for a CSS variable, so that one drawing serves both colour schemes;
``THEME`` holds the pairs. Colours never carry a meaning alone: shape, fill or a label says it too.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ImageFormat = Literal["svg", "png"]

INK = "#24292f"
MUTED = "#59636e"
GRID = "#d1d9e0"
PAPER = "#fefefe"
BLUE = "#0072b2"
VERMILLION = "#c44e00"
GREEN = "#00795a"
PURPLE = "#a03f86"
AMBER = "#8f6200"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, AMBER)
MARKERS = ("o", "s", "^", "D", "v")

THEME: dict[str, tuple[str, str]] = {
    INK: ("ink", "#e6edf3"),
    MUTED: ("muted", "#9aa4af"),
    GRID: ("grid", "#3a424c"),
    PAPER: ("paper", "#14181d"),
    BLUE: ("blue", "#58b0ea"),
    VERMILLION: ("vermillion", "#ff9152"),
    GREEN: ("green", "#3fcf9f"),
    PURPLE: ("purple", "#e596d0"),
    AMBER: ("amber", "#dfb03f"),
}
"""Light colour to the name of its CSS variable and its value in the dark."""

_RC: Any = {
    # A fixed salt makes the ids inside an SVG, and so its bytes, the same on every run.
    "svg.hashsalt": "adtower",
    # Text stays text: it takes the page's font and colour, can be searched, and weighs little.
    "svg.fonttype": "none",
    # A category called "$5 and $10" is no formula.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def style() -> Any:
    """Return a context in which figures are made and drawn in the house's look."""
    return matplotlib.rc_context(_RC)


def panels(rows: int, columns: int, *, width: float, height: float, **shared: Any) -> Any:
    """Return a figure of ``width`` by ``height`` inches and its axes, always two-dimensional.

    The figure belongs to no window and no global list: it goes when its last reader goes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def image_bytes(figure: Figure, image_format: ImageFormat) -> bytes:
    """Draw a figure; call it inside ``style()``.

    Returns:
        SVG or PNG, the same bytes each time the same figure is drawn.

    Raises:
        ValueError: If the format is neither.
    """
    buffer = io.BytesIO()
    if image_format == "svg":
        # Without these the file would carry the date and the library's home page.
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    elif image_format == "png":
        # A PNG cannot change with the page, so it brings its own paper.
        figure.savefig(buffer, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})
    else:
        raise ValueError(f"image_format is {image_format!r}; figures are written as svg or png")
    return buffer.getvalue()


def leave_bare(axes: Axes) -> None:
    """Take ticks, grid and frame away, where positions have no meaning of their own."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
