"""Judging embeddings without a click: retrieval, relevance prediction, categories.

A product is relevant to a query at label 2. What nobody judged counts as not relevant in
``recall@10``, ``mrr`` and ``ndcg@10``, which rank the whole catalogue; ``ndcg_judged@10`` ranks a
query's judged products alone.

Shape letters: N judged pairs, Q queries, P products, V vectors, D embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score

from embeddings.baselines import TfidfScores
from embeddings.store import VectorStore

CUTOFF = 10
QUERY_BLOCK = 256
"""Queries scored against the whole catalogue at a time."""
MIN_CATEGORY_ROWS = 10
"""Categories with fewer products are left out of the probe."""
PROBE_TEST_TENTHS = 3


class Scores(Protocol):
    """How well products match queries, by whatever means."""

    @property
    def product_ids(self) -> Sequence[str]:
        """The catalogue, in the order of ``catalogue``'s columns."""
        ...

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with the product beside it, (N,)."""
        ...

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with every product, (Q, P)."""
        ...


class CosineScores:
    """Cosine of stored vectors; 0 where one of the two is a row of zeros."""

    def __init__(self, product_store: VectorStore, query_store: VectorStore) -> None:
        if product_store.dim != query_store.dim:
            raise ValueError(
                f"product vectors have {product_store.dim} dimensions and query vectors "
                f"{query_store.dim}; both must come from one encoder"
            )
        self.product_ids = product_store.ids
        self._products, self._queries = product_store, query_store
        self._product_PD = _unit(product_store.vectors_VD)
        self._query_QD = _unit(query_store.vectors_VD)

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of each query with the product beside it, (N,)."""
        query_ND = self._query_QD[_known_rows(self._queries, query_ids, "query")]
        product_ND = self._product_PD[_known_rows(self._products, product_ids, "product")]
        return np.einsum("nd,nd->n", query_ND, product_ND)

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of each query with every product, (Q, P)."""
        return self._query_QD[_known_rows(self._queries, query_ids, "query")] @ self._product_PD.T


def evaluate_embeddings(
    product_store: VectorStore,
    query_store: VectorStore,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance_test: pl.DataFrame,
) -> dict[str, float]:
    """Judge product and query vectors on held-out relevance labels.

    Args:
        product_store: Vectors of the whole catalogue.
        query_store: Vectors of at least the queries in ``relevance_test``.
        products: product_id, [category], [group_id].
        queries: query_id, query.
        relevance_test: query_id, product_id, label, of queries no training saw.

    Returns:
        The metrics of ``evaluate_scores``, and ``category_f1`` of ``category_probe`` where the
        products have categories.

    Raises:
        ValueError: If ``relevance_test`` is empty or names what the stores or tables lack.
    """
    known = set(queries["query_id"].to_list())
    for query_id in relevance_test["query_id"].unique(maintain_order=True).to_list():
        if query_id not in known:
            raise ValueError(
                f"relevance_test names query_id {query_id!r}, which the queries table does not have"
            )
    metrics = evaluate_scores(CosineScores(product_store, query_store), relevance_test)
    f1 = category_probe(product_store, products)
    if f1 is not None:
        metrics["category_f1"] = f1
    return metrics


def evaluate_tfidf(
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance_test: pl.DataFrame,
    *,
    text_columns: Sequence[str] = ("title",),
) -> dict[str, float]:
    """The metrics of ``evaluate_scores`` for plain word matching."""
    return evaluate_scores(
        TfidfScores(products, queries, text_columns=text_columns), relevance_test
    )


def evaluate_scores(scores: Scores, relevance_test: pl.DataFrame) -> dict[str, float]:
    """Judge scores on held-out relevance labels.

    Returns:
        ``auc_2v0``, ``auc_2v1``, ``auc_1v0`` over all judged pairs; ``recall@10``, ``mrr`` over
        queries with a pair of label 2; ``ndcg@10``, ``ndcg_judged@10`` over queries with a label
        above 0. A metric that no pair supports is left out.

    Raises:
        ValueError: If ``relevance_test`` is empty.
    """
    if not len(relevance_test):
        raise ValueError("relevance_test is empty; there is nothing to judge embeddings by")
    label_N = relevance_test["label"].to_numpy().astype(np.int64)
    score_N = scores.pairs(
        relevance_test["query_id"].to_list(), relevance_test["product_id"].to_list()
    )
    return relevance_aucs(score_N, label_N) | _retrieval(scores, relevance_test, score_N)


def relevance_aucs(score_N: NDArray[np.floating], label_N: NDArray[np.int64]) -> dict[str, float]:
    """AUC of telling each two classes apart by the score; .5 is chance.

    Returns:
        ``auc_2v0``, ``auc_2v1``, ``auc_1v0``, without those that lack a class.
    """
    metrics: dict[str, float] = {}
    for high, low in ((2, 0), (2, 1), (1, 0)):
        high_N, low_N = score_N[label_N == high], score_N[label_N == low]
        if len(high_N) and len(low_N):
            rank = rankdata(np.concatenate([high_N, low_N]))[: len(high_N)]
            wins = rank.sum() - len(high_N) * (len(high_N) + 1) / 2
            metrics[f"auc_{high}v{low}"] = float(wins / (len(high_N) * len(low_N)))
    return metrics


def tie_corrected_ranks(
    score_P: NDArray[np.floating], of_M: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rank of some items among all: 1 + number above + half the number of ties, (M,).

    A constant score then ranks every item in the middle, not first.
    """
    sorted_P = np.sort(score_P)
    wanted_M = score_P[of_M]
    above_M = len(sorted_P) - np.searchsorted(sorted_P, wanted_M, side="right")
    equal_M = len(sorted_P) - above_M - np.searchsorted(sorted_P, wanted_M, side="left")
    return 1 + above_M + (equal_M - 1) / 2


def ndcg(rank_M: NDArray[np.float64], gain_M: NDArray[np.float64], cutoff: int = CUTOFF) -> float:
    """Discounted gain within the cutoff over the best possible; 1.0 is a perfect order."""
    within_M = rank_M <= cutoff
    reached = (gain_M[within_M] / np.log2(1 + rank_M[within_M])).sum()
    best_K = np.sort(gain_M)[::-1][:cutoff]
    return float(reached / (best_K / np.log2(2 + np.arange(len(best_K)))).sum())


def category_probe(store: VectorStore, products: pl.DataFrame) -> float | None:
    """Macro-F1 of a linear probe that reads the category off the vector.

    A ridge classifier, trained on seven tenths of the product groups, so that a listing and its
    duplicate never stand on both sides.

    Args:
        store: Product vectors.
        products: product_id, [category], [group_id].

    Returns:
        The macro-F1, or None where there are not two categories of ``MIN_CATEGORY_ROWS`` products.
    """
    if "category" not in products.columns:
        return None
    table = products.with_columns(
        pl.col("group_id").cast(pl.String).fill_null(pl.col("product_id"))
        if "group_id" in products.columns
        else pl.col("product_id").alias("group_id")
    ).filter(pl.col("category").is_not_null() & (pl.len().over("category") >= MIN_CATEGORY_ROWS))
    category_V = table["category"].cast(pl.String).to_numpy()
    held_V = np.array(
        [_tenth(group) < PROBE_TEST_TENTHS for group in table["group_id"].to_list()], bool
    )
    if len(np.unique(category_V[~held_V])) < 2 or not held_V.any():
        return None
    vector_VD = _unit(
        store.vectors_VD[_known_rows(store, table["product_id"].to_list(), "product")]
    )
    probe = RidgeClassifier(alpha=1.0).fit(vector_VD[~held_V], category_V[~held_V])
    return float(f1_score(category_V[held_V], probe.predict(vector_VD[held_V]), average="macro"))


def figure_data(
    product_store: VectorStore, query_store: VectorStore, relevance_test: pl.DataFrame
) -> dict[int, NDArray[np.float32]]:
    """Cosines of the held-out pairs by relevance label 0, 1, 2: the paper's Figure 5."""
    cosine_N = CosineScores(product_store, query_store).pairs(
        relevance_test["query_id"].to_list(), relevance_test["product_id"].to_list()
    )
    label_N = relevance_test["label"].to_numpy()
    return {label: cosine_N[label_N == label] for label in (0, 1, 2)}


def _retrieval(
    scores: Scores, relevance_test: pl.DataFrame, score_N: NDArray[np.floating]
) -> dict[str, float]:
    column = {key: place for place, key in enumerate(scores.product_ids)}
    label_N = relevance_test["label"].to_numpy().astype(np.int64)
    product_N = np.array([column[key] for key in relevance_test["product_id"].to_list()], np.int64)
    groups = relevance_test.with_row_index("row").group_by("query_id", maintain_order=True)
    rows_by_query = groups.agg(pl.col("row"), pl.col("label").max().alias("best"))
    rows_by_query = rows_by_query.filter(pl.col("best") > 0)
    recalls: list[float] = []
    reciprocals: list[float] = []
    gains: list[float] = []
    judged_gains: list[float] = []
    for block in rows_by_query.iter_slices(QUERY_BLOCK):
        score_QP = scores.catalogue(block["query_id"].to_list())
        for score_P, rows in zip(score_QP, block["row"].to_list(), strict=True):
            row_M = np.array(rows, np.int64)
            rank_M = tie_corrected_ranks(score_P, product_N[row_M])
            gain_M = label_N[row_M].astype(np.float64)
            gains.append(ndcg(rank_M, gain_M))
            judged_rank_M = tie_corrected_ranks(score_N[row_M], np.arange(len(row_M)))
            judged_gains.append(ndcg(judged_rank_M, gain_M))
            relevant_rank_M = rank_M[gain_M == 2]
            if len(relevant_rank_M):
                recalls.append(float((relevant_rank_M <= CUTOFF).mean()))
                reciprocals.append(float(1 / relevant_rank_M.min()))
    named = {
        "recall@10": recalls,
        "ndcg@10": gains,
        "ndcg_judged@10": judged_gains,
        "mrr": reciprocals,
    }
    return {name: float(np.mean(values)) for name, values in named.items() if values}


def _unit(vector_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    length_V1 = np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return np.asarray(vector_VD / np.maximum(length_V1, 1e-12), np.float32)


def _known_rows(store: VectorStore, ids: Sequence[str], what: str) -> NDArray[np.int64]:
    row_N = store.row_of(ids)
    if (row_N < 0).any():
        missing = ids[int(np.argmin(row_N))]
        raise ValueError(
            f"the store has no vector of {what} {missing!r}; was it made from another dataset?"
        )
    return row_N


def _tenth(group: str) -> int:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
