"""Requests whose candidates two models score, and the users who made them.

Shape letters: R requests, K candidates a request, U users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.ab_counts import Outcome

Scorer = Callable[[pl.DataFrame], NDArray[np.float64]]
"""Takes raw impression rows and returns the predicted click probability of each."""


class Requests(Protocol):
    """Requests drawn from a world."""

    @property
    def user_R(self) -> NDArray[Any]:
        """The user of each request: the unit of assignment."""
        ...

    @property
    def candidate_RK(self) -> NDArray[np.integer]:
        """Candidates of each request, -1 where there are fewer than K."""
        ...


class Marketplace(Protocol):
    """What the simulated A/B test needs of a world; ``experiments.marketplace`` provides one."""

    def draw_requests(self, n: int, seed: int, /) -> Requests:
        """Draw ``n`` new requests in order of time, the same for the same seed."""
        ...

    def candidate_table(self, requests: Any) -> pl.DataFrame:
        """Return one raw row a candidate, request by request: all R x K, or without padding."""
        ...

    def run(self, requests: Any, pctr_RK: NDArray[np.float64]) -> Outcome:
        """Hold the auctions with these predictions."""
        ...


def score_candidates(
    arm: str, scorer: Scorer, table: pl.DataFrame, candidate_RK: NDArray
) -> NDArray[np.float64]:
    """Return a model's predictions in the shape of the candidates, 0 where there is none, (R, K).

    Raises:
        ValueError: If there is not one score a row, or one is outside [0, 1].
    """
    present_RK = np.asarray(candidate_RK) >= 0
    p_N = np.asarray(scorer(table), np.float64)
    if p_N.shape != (table.height,):
        raise ValueError(
            f"the {arm} model returned scores of shape {p_N.shape} for {table.height} candidate "
            "rows; one probability a row is needed"
        )
    if not ((p_N >= 0) & (p_N <= 1)).all():
        row = int(np.argmin((p_N >= 0) & (p_N <= 1)))
        raise ValueError(
            f"the {arm} model scored row {row} as {p_N[row]:g}, which is no probability; were "
            "logits returned?"
        )
    if table.height == present_RK.size:
        return np.where(present_RK, p_N.reshape(present_RK.shape), 0.0)
    if table.height != present_RK.sum():
        raise ValueError(
            f"the world's candidate table has {table.height} rows for {present_RK.size} places of "
            f"which {present_RK.sum()} are filled; it must have a row for each"
        )
    p_RK = np.zeros(present_RK.shape)
    p_RK[present_RK] = p_N
    return p_RK


def user_rows(user_R: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct user ids, and each request's row among them.

    Raises:
        ValueError: If a request has no user.
    """
    ids = [None if user is None else str(user) for user in np.asarray(user_R).tolist()]
    for row, user in enumerate(ids):
        if user in (None, "", "nan"):
            raise ValueError(
                f"request {row} has no user ({user!r}); an A/B test assigns users, so every "
                "request needs one: a session or device id will do"
            )
    user_U, row_R = np.unique(np.array(ids, dtype=str), return_inverse=True)
    return user_U.tolist(), row_R
