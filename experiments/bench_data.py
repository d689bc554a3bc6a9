"""The generated data that ``adtower bench`` measures on.

Shape letters: N impressions, F sparse features, C dense columns.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.dataset import Dataset
from features.examples import Examples

SPARSE, DENSE = 26, 13
"""Criteo's columns."""


def criteo_shaped(rows: int, *, table_rows: int, seed: int) -> Examples:
    """Generate labelled impressions with 26 sparse and 13 dense columns.

    Ids are log-uniform, so a table's first rows are in every batch and most are rare. The clicks
    follow the dense columns and the commonest ids a little.

    Args:
        rows: N.
        table_rows: Rows of each feature's table.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    sparse_NF = np.exp(rng.random((rows, SPARSE), np.float32) * np.log(table_rows)).astype(np.int32)
    sparse_NF = np.minimum(sparse_NF, table_rows - 1)
    dense_NC = rng.standard_normal((rows, DENSE), np.float32)
    logit_N = -1.1 + 0.2 * dense_NC.sum(axis=1) + 0.3 * (sparse_NF < 10).sum(axis=1) / SPARSE**0.5
    nowhere_N = np.full(rows, -1, np.int32)
    row_N = np.arange(rows)
    return Examples(
        sparse_names=tuple(f"C{f + 1}" for f in range(SPARSE)),
        sparse_NF=sparse_NF,
        vocabulary_sizes=(table_rows,) * SPARSE,
        dense_names=tuple(f"I{c + 1}" for c in range(DENSE)),
        dense_NC=dense_NC,
        product_N=nowhere_N,
        query_N=nowhere_N,
        history_NL=np.zeros((rows, 0), np.int32),
        user_N=row_N,
        request_N=row_N,
        time_us_N=row_N,
        label_N=(rng.random(rows) < 1 / (1 + np.exp(-logit_N))).astype(np.float32),
    )


def clicks(rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Generate the impressions that metrics are timed on.

    Returns:
        Labels, scores with ties, and users in ascending order with twenty rows each on average,
        each shape (N,).
    """
    rng = np.random.default_rng(1)
    user_N = np.sort(rng.integers(rows // 20, size=rows))
    liking_N = rng.normal(size=rows // 20)[user_N]
    score_N = np.round(rng.normal(size=rows) + 0.5 * liking_N, 2)
    label_N = (rng.random(rows) < 1 / (1 + np.exp(2 - score_N - liking_N))).astype(np.float64)
    return label_N, score_N, user_N


def texts_of(world: Dataset, texts: int) -> list[str]:
    """Return titles and queries in turn, over and over if there are fewer than asked for."""
    titles = world.table("products")["title"].drop_nulls()
    queries = world.table("queries")["query"]
    both = min(len(titles), len(queries))
    mixed = pl.concat([titles.head(both), queries.head(both)]).to_list()
    mixed[::2], mixed[1::2] = mixed[:both], mixed[both:]
    return [mixed[i % len(mixed)] for i in range(texts)]
