"""What an experiment can find, told before it runs.

Effects and errors are on the log scale of ``experiments.lift``: an effect of 0.03 is a lift of
about three percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from experiments.lift import log_ratio

USUAL_POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class PowerPlan:
    """What can be found in one metric, from users that nobody experimented on."""

    metric: str
    error: float
    """Expected standard error of the log lift."""
    minimum_detectable: float
    """Lift that is found in ``power`` of the experiments; 0.05 is five percent."""
    power: float
    """Share of experiments that find ``minimum_detectable``."""
    alpha: float
    """Two-sided level of the test."""

    def power_at(self, lift: float) -> float:
        """Return the share of experiments that find a true lift of this size."""
        return power_of(math.log1p(lift), self.error, alpha=self.alpha)


def plan_power(
    metric: str,
    numerator_U: NDArray[np.float64],
    denominator_U: NDArray[np.float64],
    *,
    treatment_share: float = 0.5,
    alpha: float = 0.05,
    power: float = USUAL_POWER,
) -> PowerPlan:
    """Say what an experiment as long as a past period, on as many users, will find.

    Args:
        metric: Name of the metric.
        numerator_U: Sums of the past period, all users served alike, shape (U,).
        denominator_U: The same of the denominator.
        treatment_share: Planned share of users in the treatment.
        alpha: Level of the two-sided test.
        power: For which the minimum detectable effect is given.

    Raises:
        ValueError: If the metric is undefined in the past period, or a share is not in (0, 1).
    """
    if not 0 < treatment_share < 1:
        raise ValueError(f"treatment_share is {treatment_share}; it must lie between 0 and 1")
    _, variance = log_ratio(numerator_U, denominator_U, f"{metric} in the pre-period")
    error = math.sqrt(variance / treatment_share + variance / (1 - treatment_share))
    return PowerPlan(
        metric=metric,
        error=error,
        minimum_detectable=math.expm1(minimum_detectable(error, alpha=alpha, power=power)),
        power=power,
        alpha=alpha,
    )


def power_of(effect: float, error: float, *, alpha: float = 0.05) -> float:
    """Return the probability that a two-sided test finds ``effect``, given its standard error.

    Args:
        effect: The true effect; 0 gives ``alpha``.
        error: Standard error of the estimate, positive.
        alpha: Level of the test.

    Raises:
        ValueError: If ``error`` is not positive or ``alpha`` not between 0 and 1.
    """
    if not error > 0 or not 0 < alpha < 1:
        raise ValueError(f"error={error} must be positive and alpha={alpha} between 0 and 1")
    critical = -ndtri(alpha / 2)
    return float(ndtr(-critical - effect / error) + ndtr(effect / error - critical))


def minimum_detectable(error: float, *, alpha: float = 0.05, power: float = USUAL_POWER) -> float:
    """Return the effect that a two-sided test finds with this power.

    Raises:
        ValueError: If ``power`` does not lie between ``alpha`` and 1.
    """
    if not alpha < power < 1:
        raise ValueError(f"power is {power}; it must lie between alpha ({alpha}) and 1")
    # Ten standard errors are found but for one time in 10^15.
    found = brentq(lambda e: power_of(e, error, alpha=alpha) - power, 0.0, 20 * error, xtol=1e-15)
    return float(found)  # pyright: ignore[reportArgumentType]


def users_needed(
    variance: float,
    effect: float,
    *,
    treatment_share: float = 0.5,
    alpha: float = 0.05,
    power: float = USUAL_POWER,
) -> int:
    """Return how many users of both arms together find ``effect`` with this power.

    Args:
        variance: Of one user: the squared standard error of an estimate over n users, times n.
        effect: The true effect, not 0.
        treatment_share: Planned share of users in the treatment.
        alpha: Level of the two-sided test.
        power: Wanted.

    Raises:
        ValueError: If ``effect`` is 0 or ``variance`` not positive.
    """
    if effect == 0 or not variance > 0:
        raise ValueError(f"effect={effect} must differ from 0 and variance={variance} be positive")
    unit_error = math.sqrt(variance / treatment_share + variance / (1 - treatment_share))
    detectable = minimum_detectable(unit_error, alpha=alpha, power=power)
    return math.ceil((detectable / abs(effect)) ** 2)
