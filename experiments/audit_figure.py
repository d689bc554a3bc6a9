"""The figure of an audit: who was taken for what, and whether probabilities mean what they say.

Shape letters: K = 3 classes.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from embeddings.relevance.audit import Audit
from experiments.figure_style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    PAPER,
    ImageFormat,
    image_bytes,
    panels,
    style,
)
from experiments.figures import CLASS_LINES, CLASS_NAMES


def audit_figure(audit: Audit, *, image_format: ImageFormat = "png") -> bytes:
    """Draw the confusion matrix and, where there are probabilities, the reliability by class.

    Args:
        audit: From ``audit_labels``.
        image_format: "svg" or "png".

    Returns:
        The image.
    """
    with style():
        count = 2 if audit.reliability else 1
        figure, axes = panels(1, count, width=4.6 * count, height=4.2)
        _draw_confusion(axes[0, 0], audit)
        if audit.reliability:
            _draw_reliability(axes[0, 1], audit)
        return image_bytes(figure, image_format)


def _draw_confusion(ax: Axes, audit: Audit) -> None:
    """Shares of each row, so that a rare class is seen as well as a common one."""
    count_KK = np.array(audit.confusion, float)
    share_KK = count_KK / np.maximum(count_KK.sum(axis=1, keepdims=True), 1)
    for row in range(len(count_KK)):
        for column in range(len(count_KK)):
            share = share_KK[row, column]
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(
                Rectangle(corner, 1, 1, facecolor=BLUE, alpha=0.55 * share, edgecolor=PAPER)
            )
            ax.text(column, row - 0.08, f"{share:.0%}", ha="center", va="center", color=INK)
            ax.text(
                column,
                row + 0.2,
                f"{count_KK[row, column]:,.0f}",
                ha="center",
                va="center",
                color=MUTED,
                fontsize=8,
            )
    names = [CLASS_NAMES[k].replace("moderately ", "moderately\n") for k in range(len(count_KK))]
    ax.set_xticks(range(len(count_KK)), names)
    ax.set_yticks(range(len(count_KK)), names)
    ax.set_xlim(-0.5, len(count_KK) - 0.5)
    ax.set_ylim(len(count_KK) - 0.5, -0.5)
    ax.grid(False)
    ax.set_xlabel(f"{audit.annotator} says")
    ax.set_ylabel("people say")
    kappa = audit.metrics.get("kappa_quadratic")
    said = "" if kappa is None else f", quadratic kappa {kappa:.3f}"
    ax.set_title(f"{audit.pairs:,} pairs{said}")


def _draw_reliability(ax: Axes, audit: Audit) -> None:
    ax.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
    for k, curve in audit.reliability.items():
        colour, line = CLASS_LINES[k]
        said, true, _ = zip(*curve, strict=True)
        label = CLASS_NAMES[k]
        ax.plot(said, true, color=colour, linestyle=line, marker="o", markersize=3.5, label=label)
    ax.legend(loc="upper left")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel(f"chance that {audit.annotator} gives")
    ax.set_ylabel("share that people gave the label")
    error = audit.metrics.get("ece_classes")
    ax.set_title("reliability" + ("" if error is None else f", mean error {error:.1%}"))
