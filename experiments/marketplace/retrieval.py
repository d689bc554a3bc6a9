"""Which products may bid on a query: what an imperfect keyword matcher offers.

Shape letters: Q queries, P products, M pool size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters


def make_pools(
    relevance_QP: NDArray[np.int8],
    department_P: NDArray[np.int64],
    parameters: WorldParameters,
    seed: int,
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Draw each query's pool: right, half right and wrong products, in the aimed shares.

    What the matching products cannot fill is filled from the half right, then from the wrong.

    Returns:
        Product rows (Q, M), padded with -1, and their true classes (Q, M).
    """
    rng = np.random.default_rng([seed, 8])
    queries, products = relevance_QP.shape
    size = min(parameters.pool_size, products)
    pool_QM = np.full((queries, size), -1, dtype=np.int32)
    class_QM = np.zeros((queries, size), dtype=np.int8)
    aimed_2 = round(size * parameters.pool_shares[2])
    aimed_0 = round(size * parameters.pool_shares[0])
    for query in range(queries):
        class_P = relevance_QP[query]
        right = rng.permutation(np.flatnonzero(class_P == 2))[:aimed_2]
        half = rng.permutation(np.flatnonzero(class_P == 1))[: size - len(right) - aimed_0]
        wrong = np.flatnonzero(class_P == 0)
        room = size - len(right) - len(half)
        at_home_D = np.zeros(department_P.max() + 1, dtype=bool)
        at_home_D[department_P[right]] = True
        near = wrong[at_home_D[department_P[wrong]]]
        broad = rng.permutation(near)[: round(room * parameters.broad_match_share)]
        free_P = class_P == 0
        free_P[broad] = False
        anywhere = rng.permutation(np.flatnonzero(free_P))[: room - len(broad)]
        chosen = np.concatenate([right, half, broad, anywhere])
        pool_QM[query, : len(chosen)] = chosen
        class_QM[query, : len(chosen)] = class_P[chosen]
    return pool_QM, class_QM


def judged_pools(
    query_N: NDArray[np.int64],
    product_N: NDArray[np.int64],
    label_N: NDArray[np.int8],
    *,
    queries: int,
    products: int,
    fill_to: int,
    seed: int,
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Make each query's pool from its judged products and random others.

    The others were judged by nobody and are assumed irrelevant, which is nearly always so in a
    catalogue of tens of thousands.

    Args:
        query_N: Query row of each judged pair.
        product_N: Product row of each judged pair.
        label_N: Its class, taken for the truth.
        queries: Number of queries.
        products: Number of products.
        fill_to: Pools smaller than this are filled with random others.
        seed: Draws the others.

    Returns:
        Product rows (Q, M), padded with -1, and their classes (Q, M).
    """
    rng = np.random.default_rng([seed, 8])
    count_Q = np.bincount(query_N, minlength=queries)
    size = min(max(fill_to, int(count_Q.max(initial=0))), products)
    pool_QM = np.full((queries, size), -1, dtype=np.int32)
    class_QM = np.zeros((queries, size), dtype=np.int8)
    order = np.argsort(query_N, kind="stable")
    slot_N = np.arange(len(order)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
    kept = slot_N < size
    pool_QM[query_N[order][kept], slot_N[kept]] = product_N[order][kept]
    class_QM[query_N[order][kept], slot_N[kept]] = label_N[order][kept]
    for query in np.flatnonzero(count_Q < min(fill_to, products)):
        judged = pool_QM[query, : count_Q[query]]
        drawn = rng.choice(products, size=min(2 * size, products), replace=False)
        others = drawn[~np.isin(drawn, judged)][: min(fill_to, products) - len(judged)]
        pool_QM[query, len(judged) : len(judged) + len(others)] = others
    return pool_QM, class_QM
