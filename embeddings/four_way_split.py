"""Judged pairs by whether training met their query and their product: four cells.

A model may do well on new products for queries that it knows, and badly the other way round; one
mean over all would hide it.

Shape letters: N judged pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

CELLS = (
    ("unseen_queries.unseen_products", False, False),
    ("unseen_queries.seen_products", False, True),
    ("seen_queries.unseen_products", True, False),
    ("seen_queries.seen_products", True, True),
)
"""Name of each cell, and whether its queries and its products were seen in training."""
MIN_QUERIES = 20
"""Of fewer queries the figures of a cell are not given: they would be noise."""


@dataclass(frozen=True, kw_only=True)
class FourWaySplit:
    """Which side of training each judged pair stands on."""

    seen_query_N: NDArray[np.bool_]
    """Whether training had a pair of this query's text."""
    seen_product_N: NDArray[np.bool_]
    """Whether training had a pair of this product, or of another listing of its group."""

    def cell(self, seen_query: bool, seen_product: bool) -> NDArray[np.bool_]:
        """The pairs of one cell, (N,)."""
        return (self.seen_query_N == seen_query) & (self.seen_product_N == seen_product)


def split_four_ways(
    pairs: pl.DataFrame, trained_on: pl.DataFrame, products: pl.DataFrame, queries: pl.DataFrame
) -> FourWaySplit:
    """Tell which queries and products of judged pairs the training pairs hold too.

    Args:
        pairs: query_id, product_id.
        trained_on: query_id, product_id of the pairs that the model learned from.
        products: product_id, [group_id].
        queries: query_id, query; queries of one text are one query.

    Raises:
        ValueError: If either table names a query or product that the dataset does not have.
    """
    if "group_id" in products.columns:
        group = products["group_id"].cast(pl.String).fill_null(products["product_id"])
    else:
        group = products["product_id"]
    item = dict(zip(products["product_id"].to_list(), group.to_list(), strict=True))
    text = {
        key: query.strip().lower() for key, query in queries.select("query_id", "query").iter_rows()
    }
    query_N, product_N = _known(pairs, text, item, "the judged pairs")
    trained_query, trained_product = _known(trained_on, text, item, "the training pairs")
    seen_texts, seen_items = set(trained_query), set(trained_product)
    return FourWaySplit(
        seen_query_N=np.array([query in seen_texts for query in query_N], bool),
        seen_product_N=np.array([product in seen_items for product in product_N], bool),
    )


def _known(
    pairs: pl.DataFrame, text: dict[str, str], item: dict[str, str], what: str
) -> tuple[list[str], list[str]]:
    """The query text and the product group of each pair."""
    found: list[list[str]] = []
    for column, known in (("query_id", text), ("product_id", item)):
        ids = pairs[column].to_list()
        for row, key in enumerate(ids):
            if key not in known:
                raise ValueError(
                    f"row {row} of {what} names {column} {key!r}, which the dataset does not "
                    "have; are they of another dataset?"
                )
        found.append([known[key] for key in ids])
    return found[0], found[1]
