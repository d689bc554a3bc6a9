"""Search requests: who searches when for what, and which products bid on it.

Shape letters: R requests, K candidates, B requests of a block, M pool size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.state import WorldState

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

# Requests per hour of the day and per weekday, relative. Stated choice: shops sleep at night, are
# busiest at noon and in the evening, and a little busier at the weekend.
HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 10, 11, 12, 10, 9, 9, 10, 12, 14, 14, 12, 10, 7, 4)
WEEKDAYS = (1.0, 0.95, 0.95, 1.0, 1.1, 1.25, 1.2)

BLOCK = 4096
"""Requests drawn at once, which bounds memory."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests with their candidates, as rows of the world's state."""

    request_id_R: NDArray[np.str_]
    time_us_R: NDArray[np.int64]
    """Microseconds since the epoch, UTC, rising."""
    user_R: NDArray[np.int64]
    query_R: NDArray[np.int64]
    candidate_RK: NDArray[np.int64]
    """Product rows, padded with -1."""
    class_RK: NDArray[np.int8]
    """True relevance of each candidate; 0 in the padding."""
    bid_micros_RK: NDArray[np.int64]
    """Bids per click; -1 in the padding."""

    def __len__(self) -> int:
        return len(self.request_id_R)

    def take(self, row_R: NDArray[np.integer] | slice) -> Requests:
        """Return the requests of these rows."""
        return Requests(**{name: value[row_R] for name, value in vars(self).items()})


def draw_times(
    requests: int, start_us: int, end_us: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw rising request times in [start, end) after the day's and the week's rhythm.

    ``start_us`` must be a midnight; the span is cut into whole hours.
    """
    hours = np.arange(max(1, (end_us - start_us) // HOUR_US))
    weekday = ((start_us + hours * HOUR_US) // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
    weight_H = np.array(HOURS)[hours % 24] * np.array(WEEKDAYS)[weekday]
    per_hour_H = rng.multinomial(requests, weight_H / weight_H.sum())
    hour_R = np.repeat(hours, per_hour_H)
    return np.sort(start_us + hour_R * HOUR_US + rng.integers(0, HOUR_US, requests))


def draw_requests(
    state: WorldState,
    time_us_R: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    id_prefix: str,
) -> Requests:
    """Draw who asks what at the given times, and the products that bid.

    A user asks by activity; half of the requests concern a favourite theme, the rest follow
    popularity. Candidates come from the query's pool, by budget, if already launched.

    Args:
        state: The hidden side of the world.
        time_us_R: Rising request times.
        rng: The source of randomness.
        id_prefix: Request ids are this and a running number.
    """
    count = len(time_us_R)
    user_R = rng.choice(len(state.user_id_U), size=count, p=state.activity_U)
    query_R = draw_queries(state, user_R, rng)
    wide = min(state.parameters.candidates, state.pool_QM.shape[1])
    candidate_RK = np.full((count, wide), -1, dtype=np.int64)
    class_RK = np.zeros((count, wide), dtype=np.int8)
    for first in range(0, count, BLOCK):
        rows = slice(first, first + BLOCK)
        pool_BM = state.pool_QM[query_R[rows]]
        launched_BM = state.launched_us_P[pool_BM] <= time_us_R[rows, None]
        wish_BM = state.exposure_P[pool_BM] + rng.gumbel(size=pool_BM.shape)
        wish_BM[(pool_BM < 0) | ~launched_BM] = -np.inf
        best_BK = np.argpartition(-wish_BM, wide - 1, axis=1)[:, :wide]
        absent_BK = np.isneginf(np.take_along_axis(wish_BM, best_BK, axis=1))
        candidate_RK[rows] = np.where(absent_BK, -1, np.take_along_axis(pool_BM, best_BK, axis=1))
        class_RK[rows] = np.where(
            absent_BK, 0, np.take_along_axis(state.class_QM[query_R[rows]], best_BK, axis=1)
        )
    jitter_RK = rng.lognormal(0.0, state.parameters.bid_jitter_sd, candidate_RK.shape)
    bid_RK = (state.bid_micros_P[candidate_RK] * jitter_RK).astype(np.int64)
    return Requests(
        request_id_R=np.array([f"{id_prefix}{row:07d}" for row in range(count)]),
        time_us_R=time_us_R,
        user_R=user_R,
        query_R=query_R,
        candidate_RK=candidate_RK,
        class_RK=class_RK,
        bid_micros_RK=np.where(candidate_RK >= 0, bid_RK, -1),
    )


def draw_queries(
    state: WorldState, user_R: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw what each user asks: a favourite theme by habit, or anything by popularity."""
    anything_R = _draw_by_weight(state.popularity_Q, rng.random(len(user_R)))
    choice_R = rng.integers(0, state.favourite_UT.shape[1], len(user_R))
    theme_R = state.favourite_UT[user_R, choice_R]
    theme_R[rng.random(len(user_R)) >= state.parameters.habit_share] = -1
    # Queries sorted by theme, so that a theme is a stretch of one cumulative popularity.
    order_Q = np.argsort(state.theme_Q, kind="stable")
    sorted_theme_Q = state.theme_Q[order_Q]
    cumulative_Q = np.concatenate([[0.0], np.cumsum(state.popularity_Q[order_Q])])
    low_R = np.searchsorted(sorted_theme_Q, theme_R, side="left")
    high_R = np.searchsorted(sorted_theme_Q, theme_R, side="right")
    low_mass_R, high_mass_R = cumulative_Q[low_R], cumulative_Q[high_R]
    aim_R = low_mass_R + rng.random(len(user_R)) * (high_mass_R - low_mass_R)
    found_R = np.clip(np.searchsorted(cumulative_Q, aim_R, side="right") - 1, low_R, high_R - 1)
    by_habit_R = (theme_R >= 0) & (high_R > low_R)
    return np.where(by_habit_R, order_Q[np.maximum(found_R, 0)], anything_R)


def _draw_by_weight(
    share_Q: NDArray[np.float64], uniform_R: NDArray[np.float64]
) -> NDArray[np.int64]:
    cumulative_Q = np.cumsum(share_Q)
    row_R = np.searchsorted(cumulative_Q, uniform_R * cumulative_Q[-1], side="right")
    return np.minimum(row_R, len(share_Q) - 1)
