"""What better vectors buy in clicks: a point a variant, and the line through them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.comparison import Comparison
from experiments.exchange_rate import ExchangeRate
from experiments.figure_style import (
    BLUE,
    INK,
    MUTED,
    PAPER,
    ImageFormat,
    image_bytes,
    panels,
    style,
)


def exchange_figure(
    comparison: Comparison,
    measures: Sequence[str],
    names: dict[str, str],
    *,
    image_format: ImageFormat = "svg",
) -> bytes:
    """Draw click AUC over an embedding metric, a panel a metric.

    Args:
        comparison: With exchange rates and the variants' embedding metrics.
        measures: Which of the metrics to draw, of those that have a rate.
        names: What a reader should see of each metric.
        image_format: "svg" or "png".

    Raises:
        ValueError: If none of ``measures`` has an exchange rate.
    """
    rates = [rate for rate in comparison.exchange if rate.measure in measures]
    if not rates:
        raise ValueError(f"no exchange rate of {', '.join(measures)} was computed")
    with style():
        figure, axes = panels(1, len(rates), width=4.4 * len(rates), height=3.5)
        for ax, rate in zip(axes[0], rates, strict=True):
            _panel(ax, comparison, rate)
            ax.set_xlabel(f"{names.get(rate.measure, rate.measure)} of the vectors, no clicks used")
        axes[0, 0].set_ylabel("test AUC of clicks")
        return image_bytes(figure, image_format)


def _panel(ax: Axes, comparison: Comparison, rate: ExchangeRate) -> None:
    x = np.array([comparison.embedding[name][rate.measure] for name in rate.points])
    rows = [comparison[name] for name in rate.points]
    y = np.array([row.auc for row in rows])
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, y.mean() + rate.slope * (ends - x.mean()), color=BLUE, linewidth=1.4)
    room = float(np.ptp(y)) or 0.01
    for one, row in zip(x, rows, strict=True):
        placebo = row.name in comparison.controls
        ax.plot(one, row.auc, "o" if not placebo else "x", color=MUTED if placebo else BLUE,
                markersize=6, markeredgewidth=1.6, zorder=5)  # fmt: skip
    middle = (x.min() + x.max()) / 2
    ax.set_ylim(y.min() - 0.18 * room, y.max() + 0.3 * room)
    low, high = ax.get_ylim()
    gap = 0.07 * (high - low)
    # Names are moved apart upwards, each side of the panel by itself.
    for side in (True, False):
        floor = -np.inf
        for i in sorted((i for i in range(len(x)) if (x[i] > middle) == side), key=lambda i: y[i]):
            floor = max(y[i], floor + gap)
            ax.annotate(
                rate.points[i],
                (x[i], y[i]),
                xytext=(x[i] + (-1 if side else 1) * 0.045 * (x.max() - x.min()), floor),
                ha="right" if side else "left",
                va="center",
                fontsize=8,
                color=INK,
                zorder=4,
                bbox={
                    "boxstyle": "round,pad=0.1",
                    "facecolor": PAPER,
                    "edgecolor": "none",
                    "alpha": 0.8,
                },
            )
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    sure = "beyond chance" if rate.low > 0 or rate.high < 0 else "not told from nothing"
    ax.set_title(f"{rate.slope / 100:+.5f} AUC a point, {sure}".replace("-", "\N{MINUS SIGN}", 1))
