"""The estimators of an A/B test, metric by metric; the self-test judges these very functions.

Shape letters: U users, L looks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from experiments.ab_counts import METRICS, Counts
from experiments.always_valid import Look, take_looks
from experiments.assignment import assign_arm
from experiments.cuped import Sums
from experiments.lift import Lift, ratio_lift
from experiments.power import PowerPlan, plan_power


def assign_users(user_ids: list[str], salt: str, *, swap: bool = False) -> NDArray[np.bool_]:
    """Return which users are in the treatment, shape (U,); ``swap`` exchanges the arms."""
    treated_U = np.array([assign_arm(user, salt) == "treatment" for user in user_ids])
    return ~treated_U if swap else treated_U


def plan_metrics(earlier_U: Counts, *, alpha: float = 0.05) -> dict[str, PowerPlan]:
    """Return what can be found in each metric that the pre-period defines."""
    return {
        name: plan_power(name, earlier_U[numerator], earlier_U[denominator], alpha=alpha)
        for name, (numerator, denominator, _) in METRICS.items()
        if numerator in earlier_U and earlier_U[numerator].sum() > 0
    }


def measure(
    seen_U: Counts,
    treated_U: NDArray[np.bool_],
    *,
    true: Mapping[str, float],
    confidence: float = 0.95,
    earlier_U: Counts | None = None,
) -> tuple[dict[str, Lift], dict[str, str]]:
    """Estimate the lift of every metric.

    Args:
        seen_U: Counts of each user in the experiment.
        treated_U: True where the user is in the treatment, shape (U,).
        true: The true lift of each metric, where known.
        confidence: Of each interval.
        earlier_U: Counts of the same users before; adjusts by them (CUPED).

    Returns:
        The lifts, and why others are undefined.
    """
    lifts: dict[str, Lift] = {}
    undefined: dict[str, str] = {}
    for name, (numerator, denominator, factor) in METRICS.items():
        if numerator not in seen_U:
            continue
        empty = _empty_arm(seen_U[numerator], treated_U, numerator)
        if empty is not None:
            undefined[name] = empty
            continue
        earlier: Sums | None = None
        if earlier_U is not None:
            earlier = (factor * earlier_U[numerator], earlier_U[denominator])
            if not earlier[1].sum() > 0:
                undefined[name] = f"no {denominator} in the pre-period"
                continue
        lifts[name] = ratio_lift(
            name,
            factor * seen_U[numerator],
            seen_U[denominator],
            treated_U,
            earlier=earlier,
            confidence=confidence,
            true=true.get(name),
        )
    return lifts, undefined


def look_often(
    seen_LU: Counts,
    treated_U: NDArray[np.bool_],
    power: Mapping[str, PowerPlan],
    *,
    alpha: float = 0.05,
) -> dict[str, tuple[Look, ...]]:
    """Look at every planned metric at every time, with always-valid intervals."""
    return {
        name: take_looks(
            seen_LU[METRICS[name][0]],
            seen_LU[METRICS[name][1]],
            treated_U,
            planned_error=plan.error,
            alpha=alpha,
        )
        for name, plan in power.items()
        if METRICS[name][0] in seen_LU and plan.error > 0
    }


def variance_reduction(plain: Lift, adjusted: Lift) -> float:
    """Return the share of the lift's variance that an adjustment takes away."""
    if not plain.error or adjusted.error is None:
        return 0.0
    return 1 - (adjusted.error / plain.error) ** 2


def _empty_arm(total_U: NDArray, treated_U: NDArray[np.bool_], what: str) -> str | None:
    for arm, mask_U in (("control", ~treated_U), ("treatment", treated_U)):
        if not total_U[mask_U].sum() > 0:
            return f"no {what} in the {arm} arm"
    return None
