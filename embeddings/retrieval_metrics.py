"""How well a ranking finds what it should, in expectation over the orders of equal scores.

A product's place in a ranking is two counts: how many products score above it, and how many score
the same, itself among them. Within such a tie all orders are equally likely, so a constant score
earns what a random order earns, whatever the order of the table.

Source: McSherry and Najork 2008, "Computing Information Retrieval Performance Measures Efficiently
in the Presence of Tied Scores".

Shape letters: P products ranked, M of them that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where some products stand in a ranking."""

    above_M: NDArray[np.int64]
    """Products of a higher score."""
    equal_M: NDArray[np.int64]
    """Products of the same score, itself among them; at least 1."""

    def of(self, mask_M: NDArray[np.bool_]) -> Places:
        """The places of some of them."""
        return Places(above_M=self.above_M[mask_M], equal_M=self.equal_M[mask_M])


def places(score_P: NDArray[np.floating], of_M: NDArray[np.int64]) -> Places:
    """Find the places of some products by their scores; the highest score ranks first."""
    sorted_P = np.sort(score_P)
    wanted_M = score_P[of_M]
    below_M = np.searchsorted(sorted_P, wanted_M, side="left")
    upto_M = np.searchsorted(sorted_P, wanted_M, side="right")
    return Places(above_M=len(sorted_P) - upto_M, equal_M=upto_M - below_M)


def recall(found: Places, cutoff: int) -> float:
    """Expected share of the products that stand within the cutoff."""
    within_M = (cutoff - found.above_M) / found.equal_M
    return float(np.clip(within_M, 0, 1).mean())


def ndcg(found: Places, gain_M: NDArray[np.floating], cutoff: int) -> float:
    """Expected discounted gain within the cutoff over the best possible; 1.0 is a perfect order.

    Args:
        found: Places of the products that have a gain.
        gain_M: What each is worth, above zero for at least one.
        cutoff: Ranks that count.

    Source:
        Järvelin and Kekäläinen 2002, with linear gains, as ``sklearn.metrics.ndcg_score``.
    """
    discount_K = 1 / np.log2(2 + np.arange(cutoff))
    # Entry n is the sum of the first n discounts, so a tie's mean discount is a difference.
    total_K = np.concatenate([[0.0], np.cumsum(discount_K)])
    first_M = np.minimum(found.above_M, cutoff)
    last_M = np.minimum(found.above_M + found.equal_M, cutoff)
    reached = (gain_M * (total_K[last_M] - total_K[first_M]) / found.equal_M).sum()
    best_K = np.sort(gain_M)[::-1][:cutoff]
    return float(reached / (best_K * discount_K[: len(best_K)]).sum())


def reciprocal_rank(found: Places) -> float:
    """Expected reciprocal of the best rank among the products; 1.0 is first in every order."""
    above = int(found.above_M.min())
    best_M = found.above_M == above
    equal, relevant = int(found.equal_M[best_M][0]), int(best_M.sum())
    # The chance that the first of the relevant stands j-th in its tie, from one j to the next.
    step = np.arange(1, equal - relevant + 1)
    kept = (equal - step - relevant + 1) / (equal - step)
    chance = relevant / equal * np.concatenate([[1.0], np.cumprod(kept)])
    return float((chance / (above + 1 + np.arange(len(chance)))).sum())


def average_precision(found: Places) -> float:
    """Expected mean, over the products, of the precision at the rank of each."""
    above_T, count_T = np.unique(found.above_M, return_counts=True)
    equal_T = np.array([found.equal_M[found.above_M == above][0] for above in above_T])
    before_T = np.cumsum(count_T) - count_T
    # Standing j-th of its tie, a product has (j - 1) * share others of the tie above it.
    share_T = (count_T - 1) / np.maximum(equal_T - 1, 1)
    rest_T = before_T + 1 - share_T * (above_T + 1)
    # The sum of 1 / rank over the tie.
    harmonic_T = digamma(above_T + equal_T + 1) - digamma(above_T + 1)
    precision_T = (share_T * equal_T + rest_T * harmonic_T) / equal_T
    return float((count_T * precision_T).sum() / count_T.sum())
