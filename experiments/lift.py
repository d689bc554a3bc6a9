"""The lift of a ratio metric between two arms, with users as the units of chance.

CTR is clicks over impressions, but users and not impressions are assigned to arms: one user's
impressions are alike, and treating them as independent gives false alarms in a third of A/A tests.
So numerator and denominator are summed within users first.

Shape letters: U users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from experiments.cuped import Adjustment, Sums, fit_adjustment, ratio_terms


@dataclass(frozen=True, kw_only=True)
class Lift:
    """What the treatment changes in one metric, relative to the control."""

    name: str
    """Name of the metric."""
    control: float
    """The metric in the control arm."""
    treatment: float
    """The metric in the treatment arm."""
    lift: float
    """treatment / control - 1; 0.03 is three percent more."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""
    p_value: float
    """Two-sided probability of a lift this large if there is none."""
    error: float | None = None
    """Standard error of log(treatment / control)."""
    true: float | None = None
    """The lift in expectation, where a simulated world knows it."""


def ratio_lift(
    name: str,
    numerator_U: ArrayLike,
    denominator_U: ArrayLike,
    treated_U: ArrayLike,
    *,
    earlier: Sums | None = None,
    confidence: float = 0.95,
    true: float | None = None,
) -> Lift:
    """Compare a ratio of sums between arms by the delta method on the log scale.

    With R = ΣY / ΣX over the n users of an arm,

        Var(log R) ≈ (σ²_Y / μ²_Y - 2 σ_XY / (μ_X μ_Y) + σ²_X / μ²_X) / n

    and the interval of log R_treatment - log R_control is mapped back by exp. On this scale the
    comparison is symmetric: with the arms swapped, its logarithm turns its sign exactly.

    Args:
        name: Name of the metric, for the record and for messages.
        numerator_U: Sum of the numerator of each user, not negative, shape (U,).
        denominator_U: Sum of the denominator of each user, not negative, shape (U,).
        treated_U: True where the user is in the treatment, shape (U,).
        earlier: The same two sums of each user before the experiment; the ratios are then adjusted
            by them (CUPED).
        confidence: Between 0 and 1, both excluded.
        true: The true lift if known, passed on to the record.

    Returns:
        The lift with its interval.

    Raises:
        ValueError: If the shapes disagree, an arm has fewer than two users, or the numerator or
            denominator of an arm sums to zero (a ratio of zero has no logarithm).

    Source:
        Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics",
        arXiv:1803.06336.
    """
    numerator_U = np.asarray(numerator_U, np.float64)
    denominator_U = np.asarray(denominator_U, np.float64)
    treated_U = np.asarray(treated_U, np.bool_)
    if not numerator_U.shape == denominator_U.shape == treated_U.shape or numerator_U.ndim != 1:
        raise ValueError(
            f"{name}: numerators {numerator_U.shape}, denominators {denominator_U.shape} and arms "
            f"{treated_U.shape} must each be one number a user, shape (U,)"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
    adjustment = None if earlier is None else fit_adjustment((numerator_U, denominator_U), earlier)

    def of_arm(mask_U: NDArray[np.bool_], arm: str) -> tuple[float, float]:
        past = None if earlier is None else (earlier[0][mask_U], earlier[1][mask_U])
        sums = (numerator_U[mask_U], denominator_U[mask_U])
        return log_ratio(*sums, f"{name} in the {arm} arm", adjustment, past)

    log_c, variance_c = of_arm(~treated_U, "control")
    log_t, variance_t = of_arm(treated_U, "treatment")
    log_lift, error = log_t - log_c, math.sqrt(variance_t + variance_c)
    margin = -float(ndtri((1 - confidence) / 2)) * error
    if error > 0:
        p_value = float(2 * ndtr(-abs(log_lift) / error))
    else:
        p_value = 1.0 if log_lift == 0 else 0.0
    return Lift(
        name=name,
        control=math.exp(log_c),
        treatment=math.exp(log_t),
        lift=math.expm1(log_lift),
        low=math.expm1(log_lift - margin),
        high=math.expm1(log_lift + margin),
        p_value=p_value,
        error=error,
        true=true,
    )


def log_ratio(
    numerator_U: NDArray[np.float64],
    denominator_U: NDArray[np.float64],
    what: str,
    adjustment: Adjustment | None = None,
    earlier: Sums | None = None,
) -> tuple[float, float]:
    """Return log(ΣY / ΣX) over the users of one arm, and its variance; see ``ratio_lift``.

    Args:
        numerator_U: Y of each user, shape (U,).
        denominator_U: X of each user, shape (U,).
        what: Named in messages, as "ctr in the control arm".
        adjustment: Fitted over both arms; needs ``earlier``.
        earlier: The same users' sums before the experiment.

    Returns:
        The log ratio and its variance.

    Raises:
        ValueError: If there are fewer than two users, a sum is not positive, or the adjusted ratio
            is not.
    """
    users = len(numerator_U)
    if users < 2:
        raise ValueError(f"{what}: {users} users; at least two are needed for an interval")
    for values_U, part in ((numerator_U, "numerator"), (denominator_U, "denominator")):
        if not values_U.sum() > 0:
            raise ValueError(
                f"{what}: the {part} sums to {values_U.sum():g} over {users} users, so the ratio "
                "has no logarithm; the arm needs more requests"
            )
    ratio = numerator_U.mean() / denominator_U.mean()
    terms_U = ratio_terms(numerator_U, denominator_U)
    if adjustment is not None and earlier is not None and earlier[1].sum() > 0:
        here = earlier[0].mean() / earlier[1].mean()
        ratio = ratio - adjustment.coefficient * (here - adjustment.earlier_ratio)
        terms_U = terms_U - adjustment.coefficient * ratio_terms(*earlier)
        if not ratio > 0:
            raise ValueError(
                f"{what}: adjusted by the users' past the ratio is {ratio:.3g}, which has no "
                "logarithm; too few users for an adjustment"
            )
    return math.log(ratio), float(terms_U.var(ddof=1)) / users / ratio**2
