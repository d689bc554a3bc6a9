"""The figures of a report, drawn from plain numbers; each function returns the image's bytes.

Shape letters: N products on a map, B bins of a reliability curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from experiments.category_map import CategoryMap
from experiments.figure_style import (
    BLUE,
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    VERMILLION,
    ImageFormat,
    image_bytes,
    leave_bare,
    panels,
    style,
)
from ranking.calibration import ReliabilityCurve
from ranking.metrics import auc

CLASS_NAMES = {0: "irrelevant", 1: "moderately relevant", 2: "relevant"}
CLASS_LINES: dict[int, tuple[str, Literal["--", "-.", "-"]]] = {
    0: (MUTED, "--"),
    1: (VERMILLION, "-."),
    2: (BLUE, "-"),
}
LONGEST_NAME = 28
"""Letters of a category's name that fit on a map."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a training figure."""

    panel: str
    """Curves of one panel share axes; also the panel's title."""
    name: str
    """Written at the line's end."""
    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    """With unit, as "step"."""
    y_label: str
    """With unit, as "loss (nats)"."""


def figure_4(maps: Sequence[CategoryMap], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw product maps side by side: each category in its own colour and shape, named in place.

    Args:
        maps: One panel each, off the shelf first by custom; the same products in each.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is no map.
    """
    if not maps:
        raise ValueError("there is no map to draw; make one with experiments.category_map")
    names = sorted({str(category) for one in maps for category in one.category_N})
    with style():
        figure, axes = panels(1, len(maps), width=4.3 * len(maps), height=4.4)
        for ax, one in zip(axes[0], maps, strict=True):
            leave_bare(ax)
            ax.set_aspect("equal", adjustable="datalim")
            for i, category in enumerate(names):
                point_N2 = one.point_N2[one.category_N == category]
                if not len(point_N2):
                    continue
                ax.scatter(
                    *point_N2.T,
                    s=13,
                    color=SERIES[i % len(SERIES)],
                    marker=MARKERS[(i // len(SERIES) + i) % len(MARKERS)],
                    linewidths=0,
                    alpha=0.75,
                )
            _name_in_place(ax, one)
            silhouette = f"{one.silhouette:.3f}".replace("-", "\N{MINUS SIGN}")
            ax.set_title(f"{one.name}\nsilhouette {silhouette}", linespacing=1.4)
        return image_bytes(figure, image_format)


def figure_5(
    cosine: Mapping[str, Mapping[int, NDArray[np.floating]]],
    *,
    auc_2v1: Mapping[str, float] | None = None,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw how the cosine of query and product spreads within each relevance class.

    Args:
        cosine: Panel name to relevance label (0, 1, 2) to cosines; panels from top to bottom,
            off the shelf first by custom.
        auc_2v1: AUC of the cosine for telling 2 from 1, by panel; computed where it is not given.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is nothing to draw, a label is not 0, 1 or 2, or a cosine is not
            within [-1, 1].
    """
    known = {name: _checked_cosines(name, by_label) for name, by_label in cosine.items()}
    if not known:
        raise ValueError("there are no cosines to draw; give at least one panel")
    everything = np.concatenate([c for by_label in known.values() for c in by_label.values()])
    margin = 0.05 * max(float(np.ptp(everything)), 0.1)
    grid = np.linspace(everything.min() - margin, everything.max() + margin, 240)
    with style():
        figure, axes = panels(len(known), 1, width=8.6, height=0.4 + 2.1 * len(known), sharex=True)
        for ax, (name, by_label) in zip(axes[:, 0], known.items(), strict=True):
            given = (auc_2v1 or {}).get(name)
            ax.set_title(f"{name}: {_auc_text(by_label, given)}")
            for label, (color, line) in CLASS_LINES.items():
                if label in by_label:
                    density = _density(by_label[label], grid)
                    ax.fill_between(grid, density, color=color, alpha=0.16, linewidth=0)
                    ax.plot(grid, density, color=color, linestyle=line)
            _name_classes(ax, by_label)
            ax.set_yticks([])
            ax.set_ylabel("density")
            ax.grid(axis="y", visible=False)
            ax.set_ylim(bottom=0)
        axes[-1, 0].set_xlabel("cosine of query and product (no unit)")
        return image_bytes(figure, image_format)


def calibration_figure(
    curves: Mapping[str, ReliabilityCurve], *, image_format: ImageFormat = "svg"
) -> bytes:
    """Draw observed against predicted click rate, a panel a variant, all on the same axes.

    Args:
        curves: Variant to its curve; both axes are logarithmic, since click rates span decades.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("there is no reliability curve to draw; give at least one variant")
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    seen = np.concatenate([np.r_[c.predicted_B, c.observed_B] for c in curves.values()])
    seen = seen[seen > 0]
    low, high = (seen.min() * 0.7, min(seen.max() * 1.4, 1.0)) if len(seen) else (0.001, 1.0)
    with style():
        figure, axes = panels(
            rows,
            columns,
            width=2.6 * columns + 0.5,
            height=2.5 * rows + 0.4,
            sharex=True,
            sharey=True,
        )
        for ax in axes.flat[len(curves) :]:
            ax.set_visible(False)
        for ax, (name, curve) in zip(axes.flat, curves.items(), strict=False):
            ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=name)
            ax.set_aspect("equal")
            ax.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="--")
            bottom_B = np.maximum(curve.low_B, low)
            ax.vlines(curve.predicted_B, bottom_B, curve.high_B, color=BLUE, linewidth=1.2)
            ax.plot(curve.predicted_B, curve.observed_B, "o", color=BLUE, markersize=3.6)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(_decade_ticks(low, high))
                axis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g}%"))
                axis.set_minor_locator(NullLocator())
        for ax in axes.flat[max(len(curves) - columns, 0) : len(curves)]:
            # The last of each column; below it there may be an empty place.
            ax.tick_params(labelbottom=True)
        figure.supxlabel("predicted click rate", color=MUTED, fontsize=10)
        figure.supylabel("observed click rate", color=MUTED, fontsize=10)
        return image_bytes(figure, image_format)


def training_curves(curves: Sequence[Curve], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw training curves, one panel a kind, each line named at its end.

    Long curves (more than 60 points) are drawn faintly, with their running mean on top.

    Args:
        curves: The lines; those of one panel share axes and must share their labels.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is no curve, or x and y of one differ in length or are empty.
    """
    if not curves:
        raise ValueError("there is no curve to draw; give at least one")
    for curve in curves:
        if len(curve.x) != len(curve.y) or not len(curve.x):
            raise ValueError(
                f"the curve {curve.name!r} has {len(curve.x)} x and {len(curve.y)} y values; "
                "it needs equally many, at least one"
            )
    by_panel: dict[str, list[Curve]] = {}
    for curve in curves:
        by_panel.setdefault(curve.panel, []).append(curve)
    columns = min(2, len(by_panel))
    rows = math.ceil(len(by_panel) / columns)
    with style():
        figure, axes = panels(rows, columns, width=4.4 * columns, height=3.0 * rows)
        for ax in axes.flat[len(by_panel) :]:
            ax.set_visible(False)
        for ax, (panel, lines) in zip(axes.flat, by_panel.items(), strict=False):
            ax.set(title=panel, xlabel=lines[0].x_label, ylabel=lines[0].y_label)
            for i, curve in enumerate(lines):
                _curve(ax, curve, i)
            if max(len(curve.x) for curve in lines) > 1:
                ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            _name_ends(ax, lines)
        return image_bytes(figure, image_format)


def _curve(ax: Axes, curve: Curve, i: int) -> None:
    color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
    x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
    if len(x) <= 60:
        line = ("-", "--", ":")[i // len(SERIES) % 3]
        ax.plot(x, y, color=color, marker=marker, markersize=3.5, linestyle=line, linewidth=1.4)
        return
    width = max(len(x) // 30, 2)
    ax.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
    mean = np.convolve(y, np.full(width, 1 / width), mode="valid")
    ax.plot(x[width // 2 :][: len(mean)], mean, color=color)


def _name_ends(ax: Axes, lines: Sequence[Curve]) -> None:
    """Write each curve's name right of its end, moved apart where names would overlap."""
    if len(lines) == 1 and lines[0].name == lines[0].panel:
        return
    low, high = ax.get_ylim()
    gap = (high - low) * 0.062
    order = sorted(range(len(lines)), key=lambda i: lines[i].y[-1])
    height = -math.inf
    heights: dict[int, float] = {}
    for i in order:
        height = max(float(lines[i].y[-1]), height + gap)
        heights[i] = height
    # A crowd at the top is pushed down again as one, so that no name leaves the panel.
    ceiling = high
    for i in reversed(order):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    last = max(float(curve.x[-1]) for curve in lines)
    first = min(float(curve.x[0]) for curve in lines)
    room = 0.05 * (last - first or 1.0)
    for i, curve in enumerate(lines):
        color = SERIES[i % len(SERIES)]
        ax.annotate(
            curve.name,
            (float(curve.x[-1]), float(curve.y[-1])),
            xytext=(last + room, heights[i]),
            va="center",
            color=color,
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.6, "shrinkB": 2},
        )


def _name_in_place(ax: Axes, one: CategoryMap) -> None:
    """Write each category at the median of its products, nudged off earlier names."""
    span = float(np.ptp(one.point_N2[:, 1])) or 1.0
    placed: list[NDArray[np.float64]] = []
    for category in sorted(set(one.category_N.tolist())):
        spot = np.median(one.point_N2[one.category_N == category], axis=0).astype(np.float64)
        for _ in range(len(placed)):
            close = [p for p in placed if abs(p[1] - spot[1]) < 0.045 * span
                     and abs(p[0] - spot[0]) < 0.35 * span]  # fmt: skip
            if not close:
                break
            spot[1] = max(p[1] for p in close) + 0.05 * span
        placed.append(spot)
        shown = category if len(category) <= LONGEST_NAME else f"{category[: LONGEST_NAME - 1]}…"
        # A pale box and no outline: an outlined text would be drawn as shapes, not as text.
        box = {"boxstyle": "round,pad=0.12", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.7}
        centred = {"ha": "center", "va": "center", "fontsize": 8, "color": INK}
        ax.text(float(spot[0]), float(spot[1]), shown, bbox=box, **centred)


def _checked_cosines(
    name: str, by_label: Mapping[int, NDArray[np.floating]]
) -> dict[int, NDArray[np.float64]]:
    """The cosines that are there, as arrays; a label without any pair is left out."""
    unknown = sorted(set(by_label) - set(CLASS_NAMES))
    if unknown:
        raise ValueError(f"{name}: relevance labels {unknown}; allowed are 0, 1 and 2")
    known = {
        label: np.asarray(cosine_N, np.float64).ravel()
        for label, cosine_N in sorted(by_label.items())
        if len(cosine_N)
    }
    if not known:
        raise ValueError(f"{name}: no pair of any relevance class has a cosine")
    for label, cosine_N in known.items():
        if not (np.abs(cosine_N) <= 1.001).all():
            raise ValueError(
                f"{name}, label {label}: cosines reach {np.abs(cosine_N).max()}; they lie within "
                "[-1, 1]. Were the vectors not of unit length?"
            )
    return known


def _auc_text(by_label: Mapping[int, NDArray[np.float64]], given: float | None) -> str:
    if given is None:
        if not {1, 2} <= set(by_label):
            return "AUC 2 against 1: needs pairs of both classes"
        label_N = np.repeat([0.0, 1.0], [len(by_label[1]), len(by_label[2])])
        given = auc(label_N, np.concatenate([by_label[1], by_label[2]]))
    return f"AUC relevant against moderately relevant {given:.3f}"


def _density(value_N: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian kernel density with Silverman's bandwidth, at least two steps of the grid."""
    quartiles = np.subtract(*np.percentile(value_N, [75, 25])) / 1.34
    spread = min(float(value_N.std()), quartiles) if quartiles > 0 else float(value_N.std())
    width = max(0.9 * spread * len(value_N) ** -0.2, 2 * (grid[1] - grid[0]))
    # Binned first, so that the cost does not grow with the number of pairs.
    edges = np.r_[grid - (grid[1] - grid[0]) / 2, grid[-1] + (grid[1] - grid[0]) / 2]
    share = np.histogram(value_N, bins=edges)[0] / len(value_N)
    kernel = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / width) ** 2)
    return kernel @ share / (width * math.sqrt(2 * math.pi))


def _name_classes(ax: Axes, by_label: Mapping[int, NDArray[np.float64]]) -> None:
    """Name the classes beside the panel; within it the names would lie on the curves."""
    marks = [
        Line2D([], [], color=color, linestyle=line, linewidth=1.8,
               label=f"{label} {CLASS_NAMES[label]}\n({len(by_label[label]):,} pairs)")
        for label, (color, line) in CLASS_LINES.items()
        if label in by_label
    ]  # fmt: skip
    ax.legend(handles=marks, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)


def _decade_ticks(low: float, high: float) -> FixedLocator:
    """Ticks at 1, 2 and 5 times each power of ten, thinned to 1 over wide ranges."""
    steps = (1.0,) if high / low > 300 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return FixedLocator([tick for tick in ticks if low <= tick <= high])
