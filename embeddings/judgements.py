"""Relevance labels arranged for drawing batches: by query, by class, and by pair.

Shape letters: N judged pairs, B queries of a batch, M products drawn for them, K pairs drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.pqc import UNKNOWN

CLASSES = 3
"""Labels 0 irrelevant, 1 moderately relevant, 2 relevant."""


class Judgements:
    """Judged pairs by row numbers, with draws in fixed class ratio.

    Queries of equal text count as one query, and products of one group as one product where it
    is asked what a pair's label is.
    """

    def __init__(
        self,
        relevance: pl.DataFrame,
        queries: pl.DataFrame,
        product_ids: Sequence[str],
        group_P: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        """Arrange the labels.

        Args:
            relevance: query_id, product_id, label. A pair judged twice gets its rounded mean.
            queries: query_id, query.
            product_ids: The catalogue, in row order.
            group_P: Product-group codes, shape (P,).
            rng: Shuffles the order in which a query's products are drawn.

        Raises:
            ValueError: If the table is empty, names an unknown query or product, has labels
                outside 0, 1, 2, or has a single class.
        """
        if not len(relevance):
            raise ValueError("the relevance table is empty; stage 2 learns from labelled pairs")
        label_N = relevance["label"].to_numpy().astype(np.int64)
        wrong_N = (label_N < 0) | (label_N >= CLASSES)
        if wrong_N.any():
            row = int(np.argmax(wrong_N))
            raise ValueError(f"relevance row {row} has label {label_N[row]}; allowed are 0, 1, 2")
        text_by_id = dict(
            zip(queries["query_id"].to_list(), queries["query"].to_list(), strict=True)
        )
        row_by_id = {key: row for row, key in enumerate(product_ids)}
        code_by_text: dict[str, int] = {}
        self.texts: list[str] = []
        """One text per query that has labels, in order of first appearance."""
        query_N = np.empty(len(relevance), np.int64)
        product_N = np.empty(len(relevance), np.int64)
        for row, (query_id, product_id) in enumerate(
            relevance.select("query_id", "product_id").iter_rows()
        ):
            if query_id not in text_by_id or product_id not in row_by_id:
                name, value, table = (
                    ("query_id", query_id, "queries")
                    if query_id not in text_by_id
                    else ("product_id", product_id, "products")
                )
                raise ValueError(
                    f"relevance row {row} names {name} {value!r}, which the {table} table does "
                    "not have; run `adtower data check` on the dataset"
                )
            text = text_by_id[query_id]
            key = text.strip().lower()
            if key not in code_by_text:
                code_by_text[key] = len(self.texts)
                self.texts.append(text)
            query_N[row], product_N[row] = code_by_text[key], row_by_id[product_id]
        query_N, product_N, label_N = _one_row_a_pair(query_N, product_N, label_N)
        if len(np.unique(label_N)) < 2:
            raise ValueError(
                f"all {len(label_N)} judged pairs have label {label_N[0]}; alignment needs at "
                "least two classes"
            )
        self._group_P, self._groups = group_P, int(group_P.max()) + 1
        self._index_pairs_(query_N, group_P[product_N], label_N)
        bucket_N = query_N * CLASSES + label_N
        order_N = np.lexsort((rng.random(len(bucket_N)), bucket_N))
        self.product_N = product_N[order_N]
        """Product rows of the pairs, those of one query and class side by side."""
        count_X = np.bincount(bucket_N, minlength=len(self.texts) * CLASSES)
        self._count_QK = count_X.reshape(-1, CLASSES)
        self._start_QK = (np.cumsum(count_X) - count_X).reshape(-1, CLASSES)
        self._cursor_QK = np.zeros_like(self._count_QK)

    @property
    def trainable(self) -> NDArray[np.int64]:
        """Queries that have a pair of label 1 or 2: the others have nothing to be drawn to."""
        return np.flatnonzero(self._count_QK[:, 1:].sum(axis=1) > 0)

    def draw(self, query_B: NDArray[np.int64], ratio: Sequence[int]) -> NDArray[np.int64]:
        """Draw products for a batch of queries.

        Args:
            query_B: Distinct query codes.
            ratio: Products of label 2, of label 1 and of label 0 to draw for each query, fewer
                where the query has fewer. A later draw takes the ones not drawn before.

        Returns:
            The distinct rows of the products drawn, sorted, shape (M,).
        """
        drawn: list[NDArray[np.int64]] = []
        for label, wanted in zip((2, 1, 0), ratio, strict=True):
            count_B = self._count_QK[query_B, label]
            step_BK = np.arange(wanted)[None, :]
            turn_BK = (self._cursor_QK[query_B, label][:, None] + step_BK) % np.maximum(count_B, 1)[
                :, None
            ]
            position_BK = self._start_QK[query_B, label][:, None] + turn_BK
            drawn.append(self.product_N[position_BK[step_BK < count_B[:, None]]])
            self._cursor_QK[query_B, label] += wanted
        return np.unique(np.concatenate(drawn))

    def labels(self, query_B: NDArray[np.int64], product_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Label of every query with every product, ``UNKNOWN`` where nobody judged, (B, M)."""
        key_BM = query_B[:, None] * self._groups + self._group_P[product_M][None, :]
        place_BM = np.minimum(np.searchsorted(self._key_U, key_BM), len(self._key_U) - 1)
        return np.where(self._key_U[place_BM] == key_BM, self._label_U[place_BM], UNKNOWN)

    def _index_pairs_(
        self, query_N: NDArray[np.int64], group_N: NDArray[np.int64], label_N: NDArray[np.int64]
    ) -> None:
        # Where two listings of one item were judged apart, the higher label stands: a known
        # positive must never serve as a negative.
        key_N = query_N * self._groups + group_N
        order_N = np.lexsort((-label_N, key_N))
        self._key_U, first_U = np.unique(key_N[order_N], return_index=True)
        self._label_U = label_N[order_N][first_U]


def _one_row_a_pair(
    query_N: NDArray[np.int64], product_N: NDArray[np.int64], label_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    pair_N2 = np.stack([query_N, product_N], axis=1)
    pair_U2, place_N = np.unique(pair_N2, axis=0, return_inverse=True)
    place_N = place_N.reshape(-1)
    mean_U = np.bincount(place_N, weights=label_N) / np.bincount(place_N)
    return pair_U2[:, 0], pair_U2[:, 1], np.floor(mean_U + 0.5).astype(np.int64)
