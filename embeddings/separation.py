"""How far apart the relevance classes lie in a score.

Shape letters: N judged pairs, Q their queries, R draws of queries, L levels of the score, H bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from embeddings.query_bootstrap import Estimate, QueryDraws
from embeddings.relevance_intervals import PAIRS

BINS = 40
"""Equal bins, from the lowest to the highest score, in which distributions overlap."""
_CELLS = 8_000_000
"""Draws times levels that are held at a time."""


def separation(
    score_N: NDArray[np.floating], label_N: NDArray[np.int64], draws: QueryDraws
) -> dict[str, Estimate]:
    """Distance and overlap of the score's distributions in each two classes.

    Args:
        score_N: Scores of the pairs; another positive scale changes nothing.
        label_N: Labels 0, 1, 2.
        draws: Of the pairs' queries.

    Returns:
        ``ks_2v0`` and so on: the Kolmogorov-Smirnov statistic, the largest difference of the two
        cumulative shares, 0 for one distribution and 1 for two that do not touch.
        ``overlap_2v0`` and so on: the overlap coefficient, the sum over ``BINS`` bins of the
        smaller share, 1 for one distribution and 0 for two that do not touch. Without the pairs
        of classes that are not there. Noise alone parts distributions a little: of few pairs
        the distance is too large and the overlap too small.

    Source:
        Inman and Bradley 1989, "The Overlapping Coefficient as a Measure of Agreement Between
        Probability Distributions".
    """
    _, level_N = np.unique(score_N, return_inverse=True)
    width = max(float(np.ptp(score_N)), 1e-12)
    bin_N = np.minimum((score_N - score_N.min()) / width * BINS, BINS - 1).astype(np.int64)
    once_1Q = np.ones((1, draws.count_RQ.shape[1]), np.int64)
    estimates: dict[str, Estimate] = {}
    for high, low in PAIRS:
        if not {high, low} <= set(label_N.tolist()):
            continue
        for name, place_N, measure in (("ks", level_N, _ks), ("overlap", bin_N, _overlap)):
            tables = [
                _class_table(draws.query_N, place_N, label_N == label) for label in (high, low)
            ]
            block = max(_CELLS // (int(place_N.max()) + 1), 1)
            drawn = [
                measure(*(draws.count_RQ[first : first + block] @ table for table in tables))
                for first in range(0, len(draws.count_RQ), block)
            ]
            value = float(measure(*(once_1Q @ table for table in tables))[0])
            draw_R = _centred(np.concatenate(drawn), value)
            estimates[f"{name}_{high}v{low}"] = Estimate(value=value, draw_R=draw_R)
    return estimates


def _centred(draw_R: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    """Draws moved to have the value as their mean.

    Drawing rows of a sample adds its noise a second time, which parts distributions further;
    left in, intervals would lie beside what they are intervals of.
    """
    if not np.isfinite(draw_R).any():
        return draw_R
    return np.clip(draw_R - np.nanmean(draw_R) + value, 0.0, 1.0)


def _class_table(
    query_N: NDArray[np.int64], place_N: NDArray[np.int64], of_class_N: NDArray[np.bool_]
) -> csr_array:
    """Pairs of a class by query and by level or bin."""
    shape = (int(query_N.max()) + 1, int(place_N.max()) + 1)
    cells = (query_N[of_class_N], place_N[of_class_N])
    return csr_array((np.ones(int(of_class_N.sum())), cells), shape=shape)


def _ks(high_RL: NDArray[np.float64], low_RL: NDArray[np.float64]) -> NDArray[np.float64]:
    # Summed as counts, which are exact, and divided once: all of a class is a share of exactly 1.
    high_RL, low_RL = (
        np.cumsum(count_RL, axis=1) / _total(count_RL) for count_RL in (high_RL, low_RL)
    )
    return np.abs(high_RL - low_RL).max(axis=1)


def _overlap(high_RH: NDArray[np.float64], low_RH: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(high_RH / _total(high_RH), low_RH / _total(low_RH)).sum(axis=1)


def _total(count_RL: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each row, (R, 1); NaN where a draw has none of the class."""
    total_R1 = count_RL.sum(axis=1, keepdims=True)
    return np.where(total_R1 > 0, total_R1, np.nan)
