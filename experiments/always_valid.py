"""Intervals that may be looked at any time, and the looks of a running experiment.

A usual 95% interval is right at one look; whoever stops at the first of 19 looks that excludes zero
is wrong in a quarter of experiments without any effect. A confidence sequence is wide enough for
all looks together.

Shape letters: L looks, U users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOOKS = 19


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a running experiment."""

    share: float
    """Of the planned requests served so far."""
    lift: float
    error: float
    """Standard error of log(1 + lift), for a usual interval beside the always-valid one."""
    low: float
    """Lower end of the always-valid interval."""
    high: float
    p_value: float
    """Smallest always-valid p-value of this look and all before it."""


def always_valid_margin(error: float, planned_error: float, *, alpha: float = 0.05) -> float:
    """Return half the width of the confidence sequence, on the scale of ``error``.

    With V = 1 / error² the information so far and a normal mixture of variance τ²,

        margin = error · sqrt((1 + 1 / (τ²V)) · (log(1 + τ²V) - 2 log α))

    and τ² is chosen to be tightest at the planned end.

    Args:
        error: Standard error of the estimate at this look, positive.
        planned_error: Expected standard error at the planned end, known before the first look.
        alpha: Probability that any look's interval misses the truth.

    Raises:
        ValueError: If an error is not positive or ``alpha`` not between 0 and 1.

    Source:
        Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central limit theory and
        asymptotic confidence sequences", arXiv:2103.06476; Johari et al. 2022 for the test.
    """
    spread = _mixture_variance(planned_error, alpha) / _squared(error, "error")
    return error * math.sqrt((1 + 1 / spread) * (math.log1p(spread) - 2 * math.log(alpha)))


def always_valid_p_value(
    effect: float, error: float, planned_error: float, *, alpha: float = 0.05
) -> float:
    """Return the p-value whose smallest value over all looks stays valid.

    It is below ``alpha`` exactly where the interval of ``always_valid_margin`` excludes zero.
    """
    spread = _mixture_variance(planned_error, alpha) / _squared(error, "error")
    log_evidence = 0.5 * ((effect / error) ** 2 * spread / (1 + spread) - math.log1p(spread))
    return math.exp(min(0.0, -log_evidence))


def take_looks(
    numerator_LU: NDArray[np.float64],
    denominator_LU: NDArray[np.float64],
    treated_U: NDArray[np.bool_],
    *,
    planned_error: float,
    alpha: float = 0.05,
) -> tuple[Look, ...]:
    """Look at a ratio metric at several times, the last one at the end.

    Args:
        numerator_LU: Each user's sum up to each look, shape (L, U).
        denominator_LU: The same of the denominator.
        treated_U: True where the user is in the treatment, shape (U,).
        planned_error: Expected standard error of the log lift at the end.
        alpha: Probability that any of the intervals misses the truth.

    Returns:
        The looks at which both arms had a ratio; early ones may be left out.
    """
    log_c, variance_c = _log_ratios(numerator_LU[:, ~treated_U], denominator_LU[:, ~treated_U])
    log_t, variance_t = _log_ratios(numerator_LU[:, treated_U], denominator_LU[:, treated_U])
    effect_L, error_L = log_t - log_c, np.sqrt(variance_t + variance_c)
    looks, smallest = [], 1.0
    for row in np.flatnonzero(error_L > 0):
        effect, error = float(effect_L[row]), float(error_L[row])
        margin = always_valid_margin(error, planned_error, alpha=alpha)
        smallest = min(smallest, always_valid_p_value(effect, error, planned_error, alpha=alpha))
        looks.append(
            Look(
                share=float(row + 1) / len(numerator_LU),
                lift=math.expm1(effect),
                error=error,
                low=math.expm1(effect - margin),
                high=math.expm1(effect + margin),
                p_value=smallest,
            )
        )
    return tuple(looks)


def _log_ratios(
    numerator_LU: NDArray[np.float64], denominator_LU: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``lift.log_ratio`` at every look at once; NaN where an arm has no ratio yet."""
    users = denominator_LU.shape[1]
    mean_y, mean_x = numerator_LU.mean(axis=1), denominator_LU.mean(axis=1)
    defined_L = (mean_y > 0) & ((denominator_LU > 0).sum(axis=1) > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_LU = numerator_LU / mean_y[:, None] - denominator_LU / mean_x[:, None]
        log_L = np.where(defined_L, np.log(mean_y / mean_x), np.nan)
        variance_L = np.where(defined_L, terms_LU.var(axis=1, ddof=1) / users, np.nan)
    return log_L, variance_L


def _mixture_variance(planned_error: float, alpha: float) -> float:
    """τ², so that τ²V at the planned end gives nearly the narrowest interval there."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1, as 0.05")
    twice = -2 * math.log(alpha)
    return (twice + math.log1p(twice)) * _squared(planned_error, "planned_error")


def _squared(error: float, name: str) -> float:
    if not (error > 0 and math.isfinite(error)):
        raise ValueError(f"{name} is {error}; a standard error is positive and finite")
    return error**2
