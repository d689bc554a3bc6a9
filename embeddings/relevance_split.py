"""Which queries are held out to judge embeddings.

The split is by the text of the query, so no query is seen in training under another id, and it
stays the same whatever rows the relevance table gains or loses.
"""

from __future__ import annotations

import hashlib

import polars as pl

TEST_TENTHS = 2
"""Of ten equal parts of the queries, this many are test queries."""


def is_test_query(query: str) -> bool:
    """Tell whether a query belongs to the held-out fifth: its MD5, mod 10, is below 2."""
    return query_tenth(query) < TEST_TENTHS


def query_tenth(query: str) -> int:
    """Which of ten equal parts a query belongs to: its MD5, mod 10."""
    digest = hashlib.md5(query.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 10


def split_relevance(
    relevance: pl.DataFrame, queries: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split labelled pairs into training and test pairs by query text.

    Args:
        relevance: Columns query_id, product_id, label.
        queries: Columns query_id, query.

    Returns:
        The training pairs and the test pairs, each in the order given.

    Raises:
        ValueError: If a pair names a query that ``queries`` does not have.
    """
    known = dict(zip(queries["query_id"].to_list(), queries["query"].to_list(), strict=True))
    ids = relevance["query_id"].to_list()
    for row, query_id in enumerate(ids):
        if query_id not in known:
            raise ValueError(
                f"relevance row {row} names query_id {query_id!r}, which the queries table does "
                "not have; run `adtower data check` on the dataset"
            )
    is_test = {query_id: is_test_query(known[query_id]) for query_id in set(ids)}
    mask = pl.Series([is_test[query_id] for query_id in ids], dtype=pl.Boolean)
    return relevance.filter(~mask), relevance.filter(mask)
