"""Intervals of relevance AUCs by drawing queries with replacement.

Pairs of one query succeed and fail together, so whole queries are drawn. Two scores drawn with
one seed see the same queries, and the difference of their draws is a paired one.

Shape letters: N judged pairs, Q their queries, R draws, L different scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAIRS = ((2, 0), (2, 1), (1, 0))


def relevance_auc_draws(
    score_N: NDArray[np.floating],
    label_N: NDArray[np.int64],
    query_ids: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """AUC of telling each two classes apart, in every draw of the queries.

    Args:
        score_N: Scores of the pairs.
        label_N: Labels 0, 1, 2.
        query_ids: Query of each pair.
        draws: How many R.
        seed: The same seed draws the same queries whatever the scores.

    Returns:
        ``auc_2v0``, ``auc_2v1``, ``auc_1v0`` to their draws, each (R,); without those that lack a
        class. NaN in a draw that lacks one.
    """
    _, query_N = np.unique(np.asarray(query_ids), return_inverse=True)
    _, level_N = np.unique(score_N, return_inverse=True)
    queries, levels = int(query_N.max()) + 1, int(level_N.max()) + 1
    rng = np.random.default_rng(seed)
    pairs = [(high, low) for high, low in PAIRS if {high, low} <= set(label_N.tolist())]
    out = {f"auc_{high}v{low}": np.empty(draws) for high, low in pairs}
    for draw in range(draws):
        drawn_Q = np.bincount(rng.integers(queries, size=queries), minlength=queries)
        weight_N = drawn_Q[query_N].astype(np.float64)
        by_class = {
            label: np.bincount(level_N, weights=weight_N * (label_N == label), minlength=levels)
            for label in (0, 1, 2)
        }
        for high, low in pairs:
            high_L, low_L = by_class[high], by_class[low]
            # A tie counts half.
            beaten_L = np.cumsum(low_L) - low_L / 2
            total = high_L.sum() * low_L.sum()
            wins = float(high_L @ beaten_L)
            out[f"auc_{high}v{low}"][draw] = wins / total if total else np.nan
    return out


def interval(draw_R: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The percentiles of draws between which the share ``confidence`` of them lies."""
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.nanquantile(draw_R, ends)
    return float(low), float(high)
