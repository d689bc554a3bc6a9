"""What better vectors buy in the click model: a slope from embedding metrics to click AUC.

Each kind of vectors has an embedding metric, measured without any click, and a test AUC of the same
click model fed with it. The slope of the second on the first is the exchange rate. Placebos are
points like any other: they anchor the line where vectors mean nothing.

The points are few, so the interval is Student's with two degrees of freedom less than points, and
the slope is told again with each point left out. Seeds of the click model are no points of their
own: they share their vectors, and with them the metric. It is a description of these vectors on
this data, not a law: a metric that rises for another reason need not buy anything.

Shape letters: P points (variants).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MEASURES = ("recall@10", "ndcg@10", "auc_2v0", "auc_2v1")
"""Embedding metrics with an exchange rate, those that were computed."""
FEWEST_POINTS = 3
"""Two points always lie on a line, so nothing could be said about chance."""


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """Click AUC bought by one embedding metric."""

    measure: str
    """Name of the embedding metric."""
    slope: float
    """Click AUC per unit of the metric; a hundredth of it is what a point (0.01) buys."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""
    p_value: float
    """Two-sided probability of a slope this steep if the metric buys nothing."""
    correlation: float
    """Pearson's, between metric and AUC over the points."""
    lowest_without_one: float
    """The smallest slope with any one point left out."""
    highest_without_one: float
    """The largest slope with any one point left out."""
    points: tuple[str, ...]
    """The variants that the line is drawn through."""

    def in_words(self) -> str:
        """Say what a point of the metric buys, and how sure that is."""
        sure = "beyond chance" if self.low > 0 or self.high < 0 else "not told from nothing"
        return (
            f"a point of {self.measure} (0.01) buys {self.slope / 100:+.5f} click AUC "
            f"[{self.low / 100:+.5f}, {self.high / 100:+.5f}], {sure}; {len(self.points)} "
            f"variants, with any one left out {self.lowest_without_one / 100:+.5f} to "
            f"{self.highest_without_one / 100:+.5f}"
        )


def exchange_rate(
    measure: str,
    metric: Mapping[str, float],
    auc: Mapping[str, float],
    *,
    confidence: float = 0.95,
) -> ExchangeRate | None:
    """Draw the least-squares line through the variants that have both figures.

    Args:
        measure: Name of the embedding metric.
        metric: Its value by variant.
        auc: Test AUC of the click model by variant, the mean over its seeds.
        confidence: Of the interval.

    Returns:
        The slope with its interval; None with fewer than three variants, or where the metric is
        the same for all, or for all but one (the rest would have no slope).

    Raises:
        ValueError: If ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
    points = tuple(n for n in metric if n in auc and math.isfinite(metric[n]))
    x_P = np.array([metric[name] for name in points])
    y_P = np.array([auc[name] for name in points])
    if len(points) < FEWEST_POINTS:
        return None
    left_out = [np.delete(np.arange(len(points)), place) for place in range(len(points))]
    if any(np.ptp(x_P[kept]) == 0 for kept in left_out):
        return None
    slope, error = _slope(x_P, y_P)
    without_one = [_slope(x_P[kept], y_P[kept])[0] for kept in left_out]
    freedom = len(points) - 2
    margin = float(stats.t.isf((1 - confidence) / 2, freedom)) * error
    if error > 0:
        p_value = float(2 * stats.t.sf(abs(slope) / error, freedom))
    else:
        p_value = 1.0 if slope == 0 else 0.0
    correlation = 0.0 if np.ptp(y_P) == 0 else float(np.corrcoef(x_P, y_P)[0, 1])
    return ExchangeRate(
        measure=measure,
        slope=slope,
        low=slope - margin,
        high=slope + margin,
        p_value=p_value,
        correlation=correlation,
        lowest_without_one=min(without_one),
        highest_without_one=max(without_one),
        points=points,
    )


def exchange_rates(
    metrics: Mapping[str, Mapping[str, float]],
    auc: Mapping[str, float],
    *,
    confidence: float = 0.95,
) -> tuple[ExchangeRate, ...]:
    """Return the exchange rate of each of ``MEASURES`` that has one.

    Args:
        metrics: Embedding metrics by variant.
        auc: Test AUC by variant.
        confidence: Of each interval.
    """
    rates = (
        exchange_rate(
            measure,
            {name: values[measure] for name, values in metrics.items() if measure in values},
            auc,
            confidence=confidence,
        )
        for measure in MEASURES
    )
    return tuple(rate for rate in rates if rate is not None)


def _slope(x_P: NDArray[np.float64], y_P: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope and its standard error; 0 for the error of two points."""
    x_P = x_P - x_P.mean()
    spread = float((x_P**2).sum())
    slope = float((x_P * y_P).sum()) / spread
    residual_P = y_P - y_P.mean() - slope * x_P
    freedom = len(x_P) - 2
    return slope, math.sqrt(float((residual_P**2).sum()) / freedom / spread) if freedom else 0.0
