"""Judging embeddings without a click: retrieval, relevance prediction, categories.

A product is relevant to a query at label 2. What nobody judged counts as not relevant in
``recall@10``, ``mrr`` and ``ndcg@10``, which rank the whole catalogue; ``ndcg_judged@10`` ranks a
query's judged products alone.

Shape letters: N judged pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from embeddings.baselines import TfidfScores
from embeddings.probes import category_probe
from embeddings.query_rankings import judge_rankings
from embeddings.scores import CosineScores, Scores
from embeddings.store import VectorStore

CUTOFF = 10
MEASURES = ("recall@10", "ndcg@10", "ndcg_judged@10", "mrr")
"""What is reported of ``judge_rankings``."""


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
    ranked = judge_rankings(scores, relevance_test, cutoffs=(CUTOFF,))
    means = {name: ranked[name].mean() for name in MEASURES}
    retrieval = {name: mean for name, mean in means.items() if isinstance(mean, float)}
    return relevance_aucs(score_N, label_N) | retrieval


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


def figure_data(
    product_store: VectorStore, query_store: VectorStore, relevance_test: pl.DataFrame
) -> dict[int, NDArray[np.float32]]:
    """Cosines of the held-out pairs by relevance label 0, 1, 2: the paper's Figure 5."""
    cosine_N = CosineScores(product_store, query_store).pairs(
        relevance_test["query_id"].to_list(), relevance_test["product_id"].to_list()
    )
    label_N = relevance_test["label"].to_numpy()
    return {label: cosine_N[label_N == label] for label in (0, 1, 2)}
