"""Forest plots: estimates with their intervals beside a line of no difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PAPER,
    PURPLE,
    VERMILLION,
    ImageFormat,
    image_bytes,
    panels,
    style,
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and how far it can be trusted."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"the interval [{self.low}, {self.high}] does not hold its estimate {self.value}; "
                "were the ends swapped, or is one NaN?"
            )


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """One variant of the forest plot."""

    name: str
    """Name of the variant."""
    against_baseline: Interval
    """AUC minus the baseline's."""
    against_placebo: Interval | None = None
    """AUC minus the better placebo's; None where there is none."""
    is_placebo: bool = False
    """Placebos are drawn in grey."""


@dataclass(frozen=True, kw_only=True)
class LiftRow:
    """One measure of an A/B test, as relative lift."""

    name: str
    """The measure, as a reader should see it."""
    lift: Interval
    """Treatment over control minus one; 0.05 is five per cent more."""
    true: float | None = None
    """The true lift, where a simulation knows it."""
    cuped: Interval | None = None
    """The same lift, adjusted by the users' own past."""
    always_valid: Interval | None = None
    """The last look's interval, which holds at all looks at once."""
    detectable: float | None = None
    """Lift that was to be found in most such experiments; drawn as a band around zero."""


@dataclass(frozen=True, kw_only=True)
class LiftKind:
    """One way of reading an experiment, as it is drawn."""

    field: str
    """Of ``LiftRow``."""
    label: str
    color: str
    marker: str


LIFT_KINDS = (
    LiftKind(field="lift", label="at the end", color=BLUE, marker="o"),
    LiftKind(field="cuped", label="CUPED", color=GREEN, marker="s"),
    LiftKind(field="always_valid", label="always valid", color=PURPLE, marker="^"),
)


def variant_forest(
    rows: Sequence[ForestRow],
    *,
    baseline: str,
    placebo: str | None,
    confidence: float = 0.95,
    adjusted: str = "Holm ",
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw each variant's AUC difference to the baseline and to the better placebo.

    Marks are filled where zero is outside the interval; placebos are grey and named so.

    Args:
        rows: The variants from top to bottom, without the baseline.
        baseline: Its name, for the axis.
        placebo: Name of the better placebo; None leaves the second panel out.
        confidence: Of the intervals, for the axis.
        adjusted: What else the axis says of the intervals; empty where each stands alone.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("there is no variant to draw beside the baseline; compare at least two")
    kinds: list[tuple[str, str, list[Interval | None]]] = [
        (f"AUC minus {baseline}", BLUE, [row.against_baseline for row in rows])
    ]
    second = [row.against_placebo for row in rows]
    if placebo is not None:
        kinds.append((f"AUC minus {placebo}, the better placebo", GREEN, second))
    with style():
        figure, axes = panels(
            1, len(kinds), width=1.7 + 4.5 * len(kinds), height=1.1 + 0.42 * len(rows), sharey=True
        )
        names = [f"{row.name} (placebo)" if row.is_placebo else row.name for row in rows]
        for ax, (title, color, intervals) in zip(axes[0], kinds, strict=True):
            _start(ax, names, title)
            for i, (row, interval) in enumerate(zip(rows, intervals, strict=True)):
                if interval is not None and not (intervals is second and row.name == placebo):
                    _interval(ax, i, interval, MUTED if row.is_placebo else color)
                    _words(ax, i, interval, lambda value: f"{value:+.4f}")
                elif row.name == placebo:
                    ax.text(1.02, i, "is the better placebo", va="center", fontsize=8,
                            color=MUTED, transform=ax.get_yaxis_transform())  # fmt: skip
            ax.set_xlabel(f"difference in AUC (no unit), {confidence:.0%} {adjusted}interval")
        return image_bytes(figure, image_format)


def ab_forest(
    rows: Sequence[LiftRow],
    *,
    control: str,
    treatment: str,
    confidence: float = 0.95,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw the relative lift of each measure with its intervals and, where known, the true lift.

    Args:
        rows: The measures from top to bottom.
        control: Name of the variant in arm A.
        treatment: Name of the variant in arm B.
        confidence: Of each interval.
        image_format: "svg" or "png".

    Returns:
        The image.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("there is no lift to draw; give at least one measure")
    kinds = [k for k in LIFT_KINDS if any(getattr(row, k.field) is not None for row in rows)]
    known = any(row.true is not None for row in rows)
    apart = 0.26
    with style():
        height = 1.3 + (0.2 + 0.26 * len(kinds)) * len(rows) + 0.25 * (len(kinds) > 1)
        figure, axes = panels(1, 1, width=8.6, height=height)
        ax = axes[0, 0]
        _start(ax, [row.name for row in rows], f"{treatment} against {control}")
        for i, row in enumerate(rows):
            if row.detectable is not None:
                ax.fill_betweenx([i - 0.44, i + 0.44], -row.detectable, row.detectable,
                                 color=MUTED, alpha=0.16, linewidth=0)  # fmt: skip
            for j, kind in enumerate(kinds):
                interval = getattr(row, kind.field)
                if interval is None:
                    continue
                at = i + apart * (j - (len(kinds) - 1) / 2)
                _interval(ax, at, interval, kind.color, kind.marker)
                true = row.true if kind.field == "lift" else None
                _words(ax, at, interval, lambda value: f"{100 * value:+.1f}%", true)
            if row.true is not None:
                ax.plot([row.true] * 2, [i - 0.44, i + 0.44], color=VERMILLION, linewidth=1.6,
                        linestyle=(0, (2, 1.2)), zorder=4)  # fmt: skip
        reach = _reach(rows)
        ax.set_xlim(-reach, reach)
        ax.xaxis.set_major_formatter(lambda value, _: _percent_tick(value))
        ax.set_xlabel(f"relative lift (per cent), {confidence:.0%} interval over users")
        _explain(figure, ax, kinds, known, any(row.detectable is not None for row in rows))
        return image_bytes(figure, image_format)


def _explain(figure: Figure, ax: Axes, kinds: Sequence[LiftKind], known: bool, band: bool) -> None:
    """Say below the axes what marks, line and band mean, where there is more than one mark."""
    marks: list[Artist] = [
        Line2D([], [], color=kind.color, marker=kind.marker, linewidth=2.2, label=kind.label)
        for kind in kinds
        if len(kinds) > 1
    ]
    if known:
        marks.append(
            Line2D([], [], color=VERMILLION, linewidth=1.6, linestyle=(0, (2, 1.2)), label="truth")
        )
    if band:
        marks.append(Patch(facecolor=MUTED, alpha=0.16, label="too small to be found"))
    if marks:
        figure.legend(handles=marks, loc="outside lower left", ncols=3, fontsize=8.5)


def _reach(rows: Sequence[LiftRow]) -> float:
    """Half the axis: one measure that hardly anything is known of must not flatten the others."""
    ends = [
        max(abs(interval.low), abs(interval.high), abs(row.true or 0.0))
        for row in rows
        for kind in LIFT_KINDS
        if (interval := getattr(row, kind.field)) is not None
    ]
    return 1.08 * min(max(ends), 3 * sorted(ends)[len(ends) // 2]) or 0.01


def _percent_tick(value: float) -> str:
    return f"{100 * value:+.3g}%".replace("-", "\N{MINUS SIGN}") if value else "0"


def _start(ax: Axes, names: Sequence[str], title: str) -> None:
    ax.set_title(title)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=INK, linewidth=1.1)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _interval(ax: Axes, i: float, interval: Interval, color: str, marker: str = "o") -> None:
    """A bar from low to high and a mark at the estimate, filled where zero is excluded."""
    ax.plot([interval.low, interval.high], [i, i], color=color, linewidth=2.2,
            solid_capstyle="butt")  # fmt: skip
    clear = interval.low > 0 or interval.high < 0
    ax.plot(interval.value, i, marker=marker, markersize=6.5, markeredgewidth=1.6,
            markeredgecolor=color, markerfacecolor=color if clear else PAPER)  # fmt: skip


def _words(
    ax: Axes, i: float, interval: Interval, write: Callable[[float], str], true: float | None = None
) -> None:
    """The figures themselves, right of the panel, so that nobody has to measure the drawing."""
    text = f"{write(interval.value)}  [{write(interval.low)}, {write(interval.high)}]"
    if true is not None and math.isfinite(true):
        text += f"  true {write(true)}"
    text = text.replace("-", "\N{MINUS SIGN}")
    ax.text(1.02, i, text, va="center", fontsize=8, color=INK, transform=ax.get_yaxis_transform())
