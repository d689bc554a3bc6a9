"""More labels for stage 2: pairs that nobody labelled, labelled by the judge."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from embeddings.evaluate import Scores
from embeddings.relevance.judge import Judge
from embeddings.relevance.mining import mine_pairs
from embeddings.relevance_split import is_test_query


def extend_labels(
    judge: Judge,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    labelled: pl.DataFrame,
    retrievers: Mapping[str, Scores],
    *,
    budget: int,
    top: int = 20,
    min_share: float = 0.0,
    seed: int = 0,
) -> pl.DataFrame:
    """Choose unlabelled pairs of training queries and give them the judge's soft labels.

    The pairs are near misses: near the top of some retriever and not of another
    (``mining.mine_pairs``). Test queries are left out, whatever ``queries`` holds, so that what is
    trained on the result can still be judged on them.

    Args:
        judge: Labels.
        products: product_id and text columns.
        queries: query_id, query.
        labelled: query_id, product_id of pairs that have a label.
        retrievers: By name, scores over the catalogue; two or more.
        budget: Pairs at most.
        top: Products of each retriever and query that are candidates.
        min_share: Leave out pairs whose likeliest class has a lower chance than this.
        seed: Decides which queries come first where the budget does not reach all.

    Returns:
        query_id, product_id, label, source ("judge"), p0, p1, p2: rows to put below the human ones.

    Raises:
        ValueError: As ``mine_pairs``; or if no query is left, or ``min_share`` leaves no pair.
    """
    training = queries.filter(
        pl.Series(
            [not is_test_query(text) for text in queries["query"].to_list()], dtype=pl.Boolean
        )
    )
    if not len(training):
        raise ValueError(
            f"all {len(queries)} queries are test queries; labels for them must not be trained on"
        )
    pairs = mine_pairs(training, retrievers, budget=budget, top=top, labelled=labelled, seed=seed)
    labels = judge.label(products, queries, pairs).filter(pl.col("label").is_not_null())
    sure = labels.filter(pl.max_horizontal("p0", "p1", "p2") >= min_share)
    if not len(sure):
        raise ValueError(
            f"none of {len(pairs)} pairs has a class with a chance of {min_share}; lower min_share"
        )
    return sure.select("query_id", "product_id", "label", "source", "p0", "p1", "p2")
