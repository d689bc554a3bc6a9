"""The hidden commercial side of the products: quality, budgets, bids, launches, relative price.

Shape letters: P products, R requests, C categories.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.requests import DAY_US

HISTORY_DAYS = 84
"""Purchases reach this far back before the log, so that the first impression has a history."""

LATE_FROM, LATE_TO = 0.80, 0.95
"""Late products are launched between these shares of the requests; the test starts at the first."""


def hidden_market(products: int, parameters: WorldParameters, seed: int) -> dict[str, NDArray]:
    """Draw quality, budgets and bids, all independent of each other and of everything else.

    Returns:
        The fields of ``WorldState`` of these names.
    """
    rng = np.random.default_rng([seed, 11])
    return {
        "quality_P": rng.normal(size=products),
        "exposure_P": parameters.exposure_sd * rng.normal(size=products),
        "bid_micros_P": parameters.bid_median_micros
        * rng.lognormal(0, parameters.bid_sd, products),
    }


def launches(
    late_P: NDArray[np.bool_], time_us_R: NDArray[np.int64], start_us: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return launch times: late products among the test's requests, the others long before.

    The others were launched up to two years before the first purchase of any history.

    Returns:
        Microseconds since the epoch, UTC, shape (P,).
    """
    early_us_P = start_us - rng.integers(
        (HISTORY_DAYS + 1) * DAY_US, (HISTORY_DAYS + 730) * DAY_US, len(late_P)
    )
    at_P = (rng.uniform(LATE_FROM, LATE_TO, len(late_P)) * len(time_us_R)).astype(np.int64)
    return np.where(late_P, time_us_R[at_P], early_us_P)


def standardised_price(
    price_P: NDArray[np.float64], category_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return log price minus its category's mean, over the common spread; 0 where unknown."""
    usable_P = np.isfinite(price_P) & (price_P > 0)
    log_P = np.log(np.where(usable_P, price_P, 1.0))
    count_C = np.maximum(np.bincount(category_P, usable_P), 1)
    mean_C = np.bincount(category_P, log_P * usable_P) / count_C
    centred_P = np.where(usable_P, log_P - mean_C[category_P], 0.0)
    spread = centred_P[usable_P].std() if usable_P.any() else 0.0
    return centred_P / spread if spread > 0 else centred_P
