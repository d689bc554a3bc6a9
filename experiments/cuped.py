"""Less noise from what was known before: a metric adjusted by the users' own earlier figures.

A user who clicked much before the experiment will click much during it, whatever the arm. What
the past foretells is subtracted; it is the same in both arms but for chance, so the lift stays.

Shape letters: U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of a ratio metric, summed within users, shape (U,) each."""


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """How much of a metric its past foretells, over both arms together."""

    coefficient: float
    """Of the earlier ratio, in units of the metric; 0 leaves the metric as it is."""
    earlier_ratio: float
    """The earlier ratio over all users."""


def fit_adjustment(now: Sums, earlier: Sums) -> Adjustment:
    """Find the coefficient that takes most variance away: cov(now, earlier) / var(earlier).

    Both are the linear terms of the delta method for a ratio of sums. The arms are pooled, so the
    adjustment knows nothing of them and swapping them changes nothing.

    Args:
        now: Sums of the experiment, of all users.
        earlier: Sums of the same users before it; a user who was not there has zeros.

    Raises:
        ValueError: If the earlier denominators sum to zero: nothing was measured before.

    Source:
        Deng, Xu, Kohavi and Walker 2013, "Improving the Sensitivity of Online Controlled
        Experiments by Utilizing Pre-Experiment Data", appendix B for ratios.
    """
    if not earlier[1].sum() > 0:
        raise ValueError(
            "the earlier denominators sum to zero, so the users have no past to adjust by; give a "
            "longer pre-period or leave the adjustment out"
        )
    now_U, earlier_U = ratio_terms(*now), ratio_terms(*earlier)
    spread = float(earlier_U @ earlier_U)
    return Adjustment(
        coefficient=float(now_U @ earlier_U) / spread if spread > 0 else 0.0,
        earlier_ratio=float(earlier[0].mean() / earlier[1].mean()),
    )


def ratio_terms(numerator_U: NDArray, denominator_U: NDArray) -> NDArray[np.float64]:
    """Return each user's part in the error of ΣY / ΣX: (Y - R X) / mean(X), summing to zero.

    Source:
        Deng, Knoblich and Lu 2018, arXiv:1803.06336.
    """
    mean_x = denominator_U.mean()
    return (numerator_U - numerator_U.mean() / mean_x * denominator_U) / mean_x
