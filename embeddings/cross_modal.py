"""Judging image-text vectors: does a picture find its text, and is the category in the vector?

Shape letters: Q queries (pictures, say), K candidates (texts), V vectors, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score

BLOCK = 1024
"""Queries scored against all candidates at a time."""


def retrieval_ranks(
    query_QD: NDArray[np.floating],
    candidate_KD: NDArray[np.floating],
    query_group_Q: NDArray[np.int64],
    candidate_group_K: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Rank of the best candidate of each query's own group, by dot product.

    Other candidates of the own group are no rivals. A tie counts half, so constant vectors rank
    every query in the middle.

    Args:
        query_QD: Vectors, shape (Q, D).
        candidate_KD: Vectors, shape (K, D).
        query_group_Q: Product group of each query.
        candidate_group_K: Product group of each candidate.

    Returns:
        Ranks from 1, shape (Q,).

    Raises:
        ValueError: If a query's group has no candidate, naming it.
    """
    absent = np.setdiff1d(query_group_Q, candidate_group_K)
    if len(absent):
        raise ValueError(f"group {absent[0]} has queries and no candidate ({len(absent)} such)")
    rank_Q = np.empty(len(query_QD))
    for start in range(0, len(query_QD), BLOCK):
        rows = slice(start, start + BLOCK)
        score_BK = query_QD[rows] @ candidate_KD.T
        own_BK = query_group_Q[rows, None] == candidate_group_K
        best_B1 = np.where(own_BK, score_BK, -np.inf).max(1, keepdims=True)
        above_B = ((score_BK > best_B1) & ~own_BK).sum(1)
        equal_B = ((score_BK == best_B1) & ~own_BK).sum(1)
        rank_Q[rows] = 1 + above_B + equal_B / 2
    return rank_Q


def recall_at(rank_Q: NDArray[np.float64], cutoffs: Sequence[int]) -> dict[str, float]:
    """Share of queries whose own candidate is within each cutoff, as ``r1``, ``r5`` and so on."""
    return {f"r{cutoff}": float((rank_Q <= cutoff).mean()) for cutoff in cutoffs}


def linear_probe_f1(
    vector_VD: NDArray[np.floating] | csr_array,
    category_V: NDArray[np.str_],
    held_V: NDArray[np.bool_],
) -> float:
    """Macro-F1 on held-out rows of a ridge classifier that reads the category off the vector."""
    probe = RidgeClassifier(alpha=1.0).fit(vector_VD[~held_V], category_V[~held_V])
    predicted = probe.predict(vector_VD[held_V])
    return float(f1_score(category_V[held_V], predicted, average="macro"))
