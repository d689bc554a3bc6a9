"""The texts that pairs of ids stand for, each distinct one once.

Shape letters: N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.text import product_texts

Parts = tuple[list[str], list[str], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class PairTexts:
    """Distinct texts, and which of them each pair has."""

    queries: list[str]
    products: list[str]
    query_N: NDArray[np.int64]
    """Row in ``queries`` of each pair."""
    product_N: NDArray[np.int64]
    """Row in ``products`` of each pair."""

    @property
    def readable_N(self) -> NDArray[np.bool_]:
        """Whether both sides of a pair have a text."""
        query_has = np.array([bool(text.strip()) for text in self.queries], bool)
        product_has = np.array([bool(text.strip()) for text in self.products], bool)
        return query_has[self.query_N] & product_has[self.product_N]

    def parts(self) -> Parts:
        """Queries, products, and the rows of the pairs in both."""
        return self.queries, self.products, self.query_N, self.product_N


def pair_texts(
    products: pl.DataFrame, queries: pl.DataFrame, pairs: pl.DataFrame, columns: Sequence[str]
) -> PairTexts:
    """Look up the texts of pairs.

    Args:
        products: product_id and text columns.
        queries: query_id, query.
        pairs: query_id, product_id.
        columns: Text columns of the products, in order; those that are there are joined.

    Raises:
        ValueError: If there is no pair, a pair names an unknown query or product, or no text column
            is there.
    """
    if not len(pairs):
        raise ValueError("the table of pairs has no row; there is nothing to read")
    query_ids, query_N = _distinct(pairs["query_id"])
    product_ids, product_N = _distinct(pairs["product_id"])
    query_row_Q = _rows(query_ids, queries["query_id"], "query_id", "queries", pairs)
    product_row_P = _rows(product_ids, products["product_id"], "product_id", "products", pairs)
    texts = queries["query"].cast(pl.String).fill_null("")[query_row_Q.tolist()].to_list()
    return PairTexts(
        queries=texts,
        products=product_texts(products[product_row_P.tolist()], columns),
        query_N=query_N,
        product_N=product_N,
    )


def _distinct(ids: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    """Distinct ids in order of appearance, and the place of each id among them."""
    distinct = ids.unique(maintain_order=True)
    place = pl.DataFrame({"id": distinct}).with_row_index("place")
    rows = pl.DataFrame({"id": ids}).join(place, on="id", how="left", maintain_order="left")
    return distinct, rows["place"].to_numpy().astype(np.int64)


def _rows(
    wanted: pl.Series, known: pl.Series, name: str, table: str, pairs: pl.DataFrame
) -> NDArray[np.int64]:
    """Row of each wanted id in its table."""
    place = pl.DataFrame({"id": known}).with_row_index("row").unique("id", keep="first")
    found = pl.DataFrame({"id": wanted}).join(place, on="id", how="left", maintain_order="left")
    missing = found.filter(pl.col("row").is_null())
    if len(missing):
        first = missing["id"][0]
        row = int((pairs[name] == first).arg_true()[0])
        raise ValueError(
            f"pair {row} names {name} {first!r}, which the {table} table does not have "
            f"({len(missing)} such ids in all); are the pairs of another dataset?"
        )
    return found["row"].to_numpy().astype(np.int64)
