"""Queries drawn with replacement, the same draws for every score that is compared.

What is measured on one query succeeds and fails together, so whole queries are drawn. Figures of
two scores over the same draws differ by what the scores differ in: their difference is paired.

Shape letters: N rows (of whole queries), Q queries, R draws, M measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embeddings.relevance_intervals import interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with what it was in each draw of the queries."""

    value: float
    draw_R: NDArray[np.float64]
    """NaN in a draw that lacks what the figure needs."""

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """The percentile interval; None where no draw had what the figure needs."""
        return interval(self.draw_R, confidence) if np.isfinite(self.draw_R).any() else None

    def minus(self, other: Estimate) -> Estimate:
        """The difference to a figure of the same draws."""
        return Estimate(value=self.value - other.value, draw_R=self.draw_R - other.draw_R)


class QueryDraws:
    """How often each query was drawn, in each of R draws of as many queries as there are."""

    def __init__(self, query_ids: Sequence[str], *, draws: int, seed: int) -> None:
        """Draw.

        Args:
            query_ids: Query of each row, shape (N,); rows may share one.
            draws: How many R.
            seed: The same seed draws the same queries; those of
                ``relevance_intervals.relevance_auc_draws`` too.

        Raises:
            ValueError: If there is no query, or no draw is asked for.
        """
        if not len(query_ids) or draws < 1:
            raise ValueError(
                f"{draws} draws of {len(query_ids)} rows of queries; give at least one of each"
            )
        _, self.query_N = np.unique(np.asarray(query_ids), return_inverse=True)
        queries = int(self.query_N.max()) + 1
        rng = np.random.default_rng(seed)
        self.count_RQ = np.stack(
            [
                np.bincount(rng.integers(queries, size=queries), minlength=queries)
                for _ in range(draws)
            ]
        )

    def mean(self, value_N: NDArray[np.floating]) -> Estimate:
        """The mean of one value a row; rows of NaN are left out."""
        known_N = np.isfinite(value_N)
        sum_Q, rows_Q = (
            np.bincount(self.query_N, weights=weight_N, minlength=self.count_RQ.shape[1])
            for weight_N in (np.where(known_N, value_N, 0.0), known_N.astype(np.float64))
        )
        rows_R = self.count_RQ @ rows_Q
        drawn_R = np.where(rows_R > 0, self.count_RQ @ sum_Q / np.maximum(rows_R, 1), np.nan)
        value = float(sum_Q.sum() / rows_Q.sum()) if rows_Q.sum() else float("nan")
        return Estimate(value=value, draw_R=drawn_R)
