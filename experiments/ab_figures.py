"""Two looks behind an A/B test: how it went over time, and what bent scores alone would do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.special import ndtri

from experiments.always_valid import Look
from experiments.distortions import DistortionRow
from experiments.figure_style import (
    BLUE,
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

DISTORTED = ("ctr", "rpm", "welfare", "relevance")
"""Measures of the panel of distortions, those that the test has."""


def looks_figure(
    looks: Mapping[str, Sequence[Look]],
    names: Mapping[str, str],
    true: Mapping[str, float],
    *,
    confidence: float = 0.95,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw each measure over the running experiment: always-valid and usual intervals.

    Whoever stops at the first usual interval that excludes zero is wrong far more often than the
    level says; the always-valid interval may be looked at any time.

    Args:
        looks: By measure, its looks in order of time.
        names: What a reader should see of each measure.
        true: The true lift of those measures that have one.
        confidence: Of the intervals.
        image_format: "svg" or "png".

    Raises:
        ValueError: If no measure has a look.
    """
    shown = {name: rows for name, rows in looks.items() if rows}
    if not shown:
        raise ValueError("there is no look to draw; was the experiment run with looks=0?")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    z = -ndtri((1 - confidence) / 2)
    with style():
        figure, axes = panels(rows, columns, width=3.05 * columns, height=2.35 * rows + 0.5)
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        for ax, (name, one) in zip(axes.flat, shown.items(), strict=False):
            share = [100 * look.share for look in one]
            log_lift = np.log1p([look.lift for look in one])
            error = np.array([look.error for look in one])
            usual = [100 * np.expm1(log_lift + sign * z * error) for sign in (-1, 1)]
            valid = [[100 * look.low for look in one], [100 * look.high for look in one]]
            ax.axhline(0, color=INK, linewidth=1)
            ax.fill_between(share, *valid, color=PURPLE, alpha=0.18, linewidth=0)
            for edge in valid:
                ax.plot(share, edge, color=PURPLE, linewidth=1)
            for edge in usual:
                ax.plot(share, edge, color=MUTED, linewidth=1, linestyle=":")
            ax.plot(share, [100 * look.lift for look in one], color=BLUE)
            if name in true:
                ax.axhline(100 * true[name], color=VERMILLION, linewidth=1.5, linestyle="--")
            _from_the_middle_on(ax, np.concatenate([*valid, *usual]), one)
            ax.set_title(names.get(name, name), wrap=True)
        for ax in axes[:, 0]:
            ax.set_ylabel("lift (per cent)")
        figure.supxlabel("share of the requests served (per cent)", color=MUTED, fontsize=10)
        marks = [
            Line2D([], [], color=BLUE, label="estimate"),
            Line2D([], [], color=PURPLE, linewidth=1, label="always-valid interval"),
            Line2D([], [], color=MUTED, linewidth=1, linestyle=":", label="usual interval"),
        ]
        if true:
            marks.append(
                Line2D([], [], color=VERMILLION, linewidth=1.5, linestyle="--", label="truth")
            )
        figure.legend(handles=marks, loc="outside upper left", ncols=4, fontsize=8.5)
        return image_bytes(figure, image_format)


def distortion_figure(
    rows: Sequence[DistortionRow],
    names: Mapping[str, str],
    *,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw what bending a model's scores does, its order and AUC untouched, with and without gate.

    Args:
        rows: By arm and distortion.
        names: What a reader should see of each measure.
        image_format: "svg" or "png".

    Raises:
        ValueError: If there is no row, or no measure of ``DISTORTED`` in any.
    """
    measures = [name for name in DISTORTED if any(name in row.raw for row in rows)]
    if not measures:
        raise ValueError(f"no distortion has any of the measures {', '.join(DISTORTED)}")
    arms = list(dict.fromkeys(row.arm for row in rows))
    labels = [f"{row.distortion}" for row in rows]
    with style():
        figure, axes = panels(
            1, len(measures), width=1.5 + 2.1 * len(measures), height=1.5 + 0.27 * len(rows),
            sharey=True,
        )  # fmt: skip
        at = [i + 0.8 * arms.index(row.arm) for i, row in enumerate(rows)]
        for ax, name in zip(axes[0], measures, strict=True):
            ax.axvline(0, color=INK, linewidth=1)
            for y, row in zip(at, rows, strict=True):
                raw, gated = (100 * part.get(name, math.nan) for part in (row.raw, row.gated))
                ax.plot([gated, raw], [y, y], color=MUTED, linewidth=1)
                ax.plot(raw, y, "o", color=VERMILLION, markersize=6)
                ax.plot(gated, y, "s", markersize=6, markeredgecolor=BLUE, markerfacecolor=PAPER,
                        markeredgewidth=1.5)  # fmt: skip
            ax.set_title(names.get(name, name), wrap=True, fontsize=9.5)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
            ax.xaxis.set_major_formatter(FuncFormatter(_percent))
            ax.margins(x=0.12)
            ax.spines["left"].set_visible(False)
            ax.grid(axis="y", visible=False)
        axes[0, 0].set_yticks(at, labels)
        axes[0, 0].set_ylim(max(at) + 0.6, -0.6)
        axes[0, 0].tick_params(axis="y", labelcolor=INK)
        for arm in arms:
            first = next(y for y, row in zip(at, rows, strict=True) if row.arm == arm)
            axes[0, -1].text(1.02, first, arm, transform=axes[0, -1].get_yaxis_transform(),
                             va="center", fontsize=8.5, color=MUTED)  # fmt: skip
        marks = [
            Line2D([], [], color=VERMILLION, marker="o", linewidth=0, label="scores as they are"),
            Line2D([], [], markeredgecolor=BLUE, marker="s", linewidth=0, markerfacecolor=PAPER,
                   label="behind the calibration gate"),
        ]  # fmt: skip
        figure.legend(handles=marks, loc="outside upper left", ncols=2, fontsize=8.5)
        return image_bytes(figure, image_format)


def _percent(value: float, _: int | None) -> str:
    return f"{value:+g}%".replace("-", "\N{MINUS SIGN}") if value else "0"


def _from_the_middle_on(ax: Axes, edges: np.ndarray, looks: Sequence[Look]) -> None:
    """Let the axis show what the second half of the looks need; early intervals are far wider."""
    half = looks[len(looks) // 2 :]
    low = min(min(100 * look.low for look in half), 0.0)
    high = max(max(100 * look.high for look in half), 0.0)
    room = 0.12 * (high - low or 1.0)
    ax.set_ylim(max(low - room, edges.min() - room), min(high + room, edges.max() + room))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
