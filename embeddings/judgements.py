"""Relevance labels arranged for drawing batches: by query, by class, and by pair.

Shape letters: N judged pairs, U of them that differ in query or product group, B queries of a
batch, M products drawn for them, Q queries, K turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from embeddings.pqc import CLASSES, Targets
from embeddings.soft_labels import class_chances, source_weights


class Judgements:
    """Judged pairs by row numbers, with draws in fixed class ratio.

    Queries of equal text count as one query, and products of one group as one product where it
    is asked what is known of a pair. A pair is drawn under its likeliest class.
    """

    def __init__(
        self,
        relevance: pl.DataFrame,
        queries: pl.DataFrame,
        product_ids: Sequence[str],
        group_P: NDArray[np.int64],
        rng: np.random.Generator,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Arrange the labels.

        Args:
            relevance: query_id, product_id, label, [source], [p0, p1, p2]. A pair judged twice
                gets the weighted mean of the chances, and the larger weight.
            queries: query_id, query.
            product_ids: The catalogue, in row order.
            group_P: Product-group codes, shape (P,).
            rng: Shuffles the order in which a query's products are drawn.
            weights: How much a pair of each source counts, one if it is not named; rows of weight
                zero are left out.

        Raises:
            ValueError: If the table is empty, names an unknown query or product, has labels or
                chances that cannot be, or has a single class.
        """
        if not len(relevance):
            raise ValueError("the relevance table is empty; stage 2 learns from labelled pairs")
        chance_N3 = class_chances(relevance)
        weight_N = source_weights(relevance, weights or {})
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
        used_N = weight_N > 0
        query_N, product_N, chance_N3, weight_N = _one_row_a_pair(
            query_N[used_N], product_N[used_N], chance_N3[used_N], weight_N[used_N]
        )
        label_N = likeliest(chance_N3)
        if len(np.unique(label_N)) < 2:
            raise ValueError(
                f"the {len(label_N)} judged pairs of a weight above zero are of one class; "
                "alignment needs at least two classes"
            )
        self._group_P, self._groups = group_P, int(group_P.max()) + 1
        self._index_pairs_(query_N, group_P[product_N], chance_N3, weight_N)
        bucket_N = query_N * CLASSES + label_N
        order_N = np.lexsort((rng.random(len(bucket_N)), bucket_N))
        self.product_N = product_N[order_N]
        """Product rows of the pairs, those of one query and class side by side."""
        count_X = np.bincount(bucket_N, minlength=len(self.texts) * CLASSES)
        self._count_QK = count_X.reshape(-1, CLASSES)
        self._start_QK = (np.cumsum(count_X) - count_X).reshape(-1, CLASSES)
        self.most_judged = int(self._count_QK.sum(axis=1).max())
        """Products judged for the query that has most of them."""

    @property
    def trainable(self) -> NDArray[np.int64]:
        """Queries that have a pair of label 1 or 2: the others have nothing to be drawn to."""
        return np.flatnonzero(self._count_QK[:, 1:].sum(axis=1) > 0)

    def draw(
        self, query_B: NDArray[np.int64], ratio: Sequence[int], turn: int
    ) -> NDArray[np.int64]:
        """Draw products for a batch of queries.

        Args:
            query_B: Distinct query codes.
            ratio: Products of label 2, of label 1 and of label 0 to draw for each query, fewer
                where the query has fewer.
            turn: How often these queries were drawn for before; each turn takes the products
                after those of the last, round and round.

        Returns:
            The distinct rows of the products drawn, sorted, shape (M,).
        """
        drawn: list[NDArray[np.int64]] = []
        for label, wanted in zip((2, 1, 0), ratio, strict=True):
            count_B = self._count_QK[query_B, label]
            step_BK = np.arange(wanted)[None, :]
            turn_BK = (turn * wanted + step_BK) % np.maximum(count_B, 1)[:, None]
            position_BK = self._start_QK[query_B, label][:, None] + turn_BK
            drawn.append(self.product_N[position_BK[step_BK < count_B[:, None]]])
        return np.unique(np.concatenate(drawn))

    def known(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """All that is known, as arrays: key, chances and weight of each pair."""
        return self._key_U, self._chance_U3, self._weight_U

    def positives(self, query: int) -> NDArray[np.int64]:
        """Rows of the products whose likeliest class for a query is 1 or 2."""
        first, last = self._start_QK[query, 1], self._start_QK[query, 2]
        return self.product_N[first : last + self._count_QK[query, 2]]

    def judged(self, query_B: NDArray[np.int64], product_M: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether anybody judged each query with each product, (B, M)."""
        return self._places(query_B, product_M) >= 0

    def targets(
        self, query_B: NDArray[np.int64], product_M: NDArray[np.int64], device: torch.device
    ) -> Targets:
        """What is known of every query with every product."""
        place_BM = self._places(query_B, product_M)
        # The last place stands for what nobody judged: class 0, of no weight.
        return Targets(
            chance_BM3=torch.from_numpy(self._chance_U3[place_BM]).to(device),
            weight_BM=torch.from_numpy(self._weight_U[place_BM]).to(device),
        )

    def _places(
        self, query_B: NDArray[np.int64], product_M: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where what is known of each pair is written, -1 where nobody judged, (B, M)."""
        key_BM = query_B[:, None] * self._groups + self._group_P[product_M][None, :]
        place_BM = np.minimum(np.searchsorted(self._key_U, key_BM), len(self._key_U) - 1)
        return np.where(self._key_U[place_BM] == key_BM, place_BM, -1)

    def _index_pairs_(
        self,
        query_N: NDArray[np.int64],
        group_N: NDArray[np.int64],
        chance_N3: NDArray[np.float64],
        weight_N: NDArray[np.float64],
    ) -> None:
        # Where two listings of one item were judged apart, the higher label stands: a known
        # positive must never serve as a negative.
        key_N = query_N * self._groups + group_N
        order_N = np.lexsort((-(chance_N3 @ np.arange(CLASSES)), -likeliest(chance_N3), key_N))
        self._key_U, first_U = np.unique(key_N[order_N], return_index=True)
        kept_U = order_N[first_U]
        unjudged_13 = np.eye(CLASSES)[:1]
        self._chance_U3 = np.concatenate([chance_N3[kept_U], unjudged_13]).astype(np.float32)
        self._weight_U = np.append(weight_N[kept_U], 0).astype(np.float32)


def likeliest(chance_N3: NDArray[np.float64]) -> NDArray[np.int64]:
    """The likeliest class, of two as likely the higher, (N,)."""
    return CLASSES - 1 - chance_N3[:, ::-1].argmax(axis=1)


def _one_row_a_pair(
    query_N: NDArray[np.int64],
    product_N: NDArray[np.int64],
    chance_N3: NDArray[np.float64],
    weight_N: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    pair_U2, place_N = np.unique(
        np.stack([query_N, product_N], axis=1), axis=0, return_inverse=True
    )
    place_N = place_N.reshape(-1)
    total_U = np.bincount(place_N, weights=weight_N, minlength=len(pair_U2))
    chance_U3 = np.stack(
        [
            np.bincount(place_N, weights=weight_N * chance_N, minlength=len(pair_U2))
            for chance_N in chance_N3.T
        ],
        axis=1,
    )
    largest_U = np.zeros(len(pair_U2))
    np.maximum.at(largest_U, place_N, weight_N)
    return pair_U2[:, 0], pair_U2[:, 1], chance_U3 / total_U[:, None], largest_U
