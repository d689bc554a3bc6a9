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

from experiments.lift import log_ratio

LOOKS = 19


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a running experiment."""

    share: float
    """Of the planned requests served so far."""
    lift: float
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
    looks, smallest = [], 1.0
    for row in range(len(numerator_LU)):
        effect, error = _compare(numerator_LU[row], denominator_LU[row], treated_U)
        if not error > 0:
            continue
        margin = always_valid_margin(error, planned_error, alpha=alpha)
        smallest = min(smallest, always_valid_p_value(effect, error, planned_error, alpha=alpha))
        looks.append(
            Look(
                share=(row + 1) / len(numerator_LU),
                lift=math.expm1(effect),
                low=math.expm1(effect - margin),
                high=math.expm1(effect + margin),
                p_value=smallest,
            )
        )
    return tuple(looks)


def _compare(
    numerator_U: NDArray[np.float64], denominator_U: NDArray[np.float64], treated_U: NDArray
) -> tuple[float, float]:
    """Log lift and its error over the users seen so far; the error is 0 where there is none."""
    seen_U = denominator_U > 0
    arms = []
    for mask_U in (seen_U & ~treated_U, seen_U & treated_U):
        if mask_U.sum() < 2 or not numerator_U[mask_U].sum() > 0:
            return 0.0, 0.0
        arms.append(log_ratio(numerator_U[mask_U], denominator_U[mask_U], "a look"))
    (log_c, variance_c), (log_t, variance_t) = arms
    return log_t - log_c, math.sqrt(variance_t + variance_c)


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
