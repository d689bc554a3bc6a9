"""Forest plots: estimates with their intervals beside a line of no difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PAPER,
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
    """Placebos are drawn hollow and in grey."""


@dataclass(frozen=True, kw_only=True)
class LiftRow:
    """One measure of an A/B test, as relative lift."""

    name: str
    """The measure, as a reader should see it."""
    lift: Interval
    """Treatment over control minus one; 0.05 is five per cent more."""
    true: float | None = None
    """The true lift, where a simulation knows it."""


def variant_forest(
    rows: Sequence[ForestRow],
    *,
    baseline: str,
    placebo: str | None,
    confidence: float = 0.95,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw each variant's AUC difference to the baseline and to the better placebo.

    Marks are filled where zero is outside the interval; placebos are grey and named so.

    Args:
        rows: The variants from top to bottom, without the baseline.
        baseline: Its name, for the axis.
        placebo: Name of the better placebo; None leaves the second panel out.
        confidence: Of the intervals as a family, for the axis.
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
                    ax.text(0.02, i, "is the better placebo", va="center", fontsize=8,
                            color=MUTED, transform=ax.get_yaxis_transform())  # fmt: skip
            ax.set_xlabel(f"difference in AUC (no unit), {confidence:.0%} Holm interval")
        return image_bytes(figure, image_format)


def ab_forest(
    rows: Sequence[LiftRow],
    *,
    control: str,
    treatment: str,
    confidence: float = 0.95,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw the relative lift of each measure with its interval and, where known, the true lift.

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
    with style():
        figure, axes = panels(1, 1, width=8.4, height=1.3 + 0.46 * len(rows))
        ax = axes[0, 0]
        _start(ax, [row.name for row in rows], f"{treatment} against {control}")
        for i, row in enumerate(rows):
            _interval(ax, i, row.lift, BLUE)
            if row.true is not None:
                ax.plot(row.true, i, marker="D", markersize=7, markerfacecolor="none",
                        markeredgecolor=VERMILLION, markeredgewidth=1.6, zorder=4)  # fmt: skip
            _words(ax, i, row.lift, lambda value: f"{100 * value:+.1f}%", row.true)
        ax.xaxis.set_major_formatter(lambda value, _: _percent_tick(value))
        known = any(row.true is not None for row in rows)
        ax.set_xlabel(
            f"relative lift (per cent), {confidence:.0%} interval over users"
            + ("; diamond: true lift" if known else "")
        )
        return image_bytes(figure, image_format)


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


def _interval(ax: Axes, i: int, interval: Interval, color: str) -> None:
    """A bar from low to high and a mark at the estimate, filled where zero is excluded."""
    ax.plot([interval.low, interval.high], [i, i], color=color, linewidth=2.2,
            solid_capstyle="butt")  # fmt: skip
    clear = interval.low > 0 or interval.high < 0
    ax.plot(interval.value, i, marker="o", markersize=7, markeredgewidth=1.8,
            markeredgecolor=color, markerfacecolor=color if clear else PAPER)  # fmt: skip


def _words(
    ax: Axes, i: int, interval: Interval, write: Callable[[float], str], true: float | None = None
) -> None:
    """The figures themselves, right of the panel, so that nobody has to measure the drawing."""
    text = f"{write(interval.value)}  [{write(interval.low)}, {write(interval.high)}]"
    if true is not None and math.isfinite(true):
        text += f"  true {write(true)}"
    text = text.replace("-", "\N{MINUS SIGN}")
    ax.text(1.02, i, text, va="center", fontsize=8, color=INK, transform=ax.get_yaxis_transform())
