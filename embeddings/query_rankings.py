"""The rankings that queries get of a whole catalogue, judged one by one.

Shape letters: N judged pairs, Q queries, P products, M judged products of one query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.retrieval_metrics import average_precision, ndcg, places, recall, reciprocal_rank
from embeddings.scores import Scores

RELEVANT = 2
"""Only products of this label count for recall, mean average precision and reciprocal rank."""
QUERY_BLOCK = 256
"""Queries scored against the whole catalogue at a time."""


def judge_rankings(
    scores: Scores,
    pairs: pl.DataFrame,
    *,
    cutoffs: Sequence[int] = (10,),
    target_N: NDArray[np.bool_] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Rank the whole catalogue for each query, and judge where its positives stand.

    What nobody judged counts as not relevant.

    Args:
        scores: Rank the products.
        pairs: query_id, product_id, label.
        cutoffs: Ranks at which recall and nDCG are taken.
        target_N: Pairs whose products are to be found. A query's other positives are taken out of
            its ranking: finding them is neither right nor wrong. None means all pairs.
        report: Told of queries done and queries in all.

    Returns:
        A row a query with a positive among its targets: query_id; ``recall@K``, ``map``, ``mrr``
        (null without a target of label 2); ``ndcg@K`` with the label as gain; ``ndcg_judged@K``,
        which ranks the query's judged targets alone.

    Raises:
        ValueError: If a pair names what ``scores`` does not know.
    """
    pairs = pairs.with_columns(
        pl.Series("target", np.ones(len(pairs), bool) if target_N is None else target_N)
    )
    wanted = pl.col("target") & (pl.col("label") > 0)
    grouped = (
        pairs.group_by("query_id", maintain_order=True)
        .agg(pl.col("product_id", "label", "target"), wanted.any().alias("wanted"))
        .filter("wanted")
    )
    column = {key: place for place, key in enumerate(scores.product_ids)}
    rows: list[dict[str, object]] = []
    for block in grouped.iter_slices(QUERY_BLOCK):
        score_QP = scores.catalogue(block["query_id"].to_list())
        for score_P, query in zip(score_QP, block.iter_rows(named=True), strict=True):
            product_M = _columns(query["product_id"], column)
            label_M, target_M = np.array(query["label"], np.int64), np.array(query["target"])
            measures = _judge_one(score_P, product_M, label_M, target_M, cutoffs)
            rows.append({"query_id": query["query_id"], **measures})
        if report is not None:
            report(len(rows), len(grouped))
    names = [f"{kind}@{k}" for kind in ("recall", "ndcg", "ndcg_judged") for k in cutoffs]
    measured = dict.fromkeys([*names, "map", "mrr"], pl.Float64)
    return pl.DataFrame(rows, schema={"query_id": pl.String, **measured})


def _judge_one(
    score_P: NDArray[np.floating],
    product_M: NDArray[np.int64],
    label_M: NDArray[np.int64],
    target_M: NDArray[np.bool_],
    cutoffs: Sequence[int],
) -> dict[str, float | None]:
    """The measures of one query's ranking."""
    other_M = ~target_M & (label_M > 0)
    kept_P = np.ones(len(score_P), bool)
    kept_P[product_M[other_M]] = False
    row_P = np.cumsum(kept_P) - 1
    found = places(score_P[kept_P], row_P[product_M[target_M]])
    judged = places(score_P[product_M[target_M]], np.arange(int(target_M.sum())))
    gain_M = label_M[target_M].astype(np.float64)
    measures: dict[str, float | None] = {"map": None, "mrr": None}
    for cutoff in cutoffs:
        measures[f"ndcg@{cutoff}"] = ndcg(found, gain_M, cutoff)
        measures[f"ndcg_judged@{cutoff}"] = ndcg(judged, gain_M, cutoff)
    relevant = found.of(gain_M == RELEVANT)
    if len(relevant.above_M):
        measures |= {f"recall@{cutoff}": recall(relevant, cutoff) for cutoff in cutoffs}
        measures |= {"map": average_precision(relevant), "mrr": reciprocal_rank(relevant)}
    return measures


def _columns(product_ids: Sequence[str], column: dict[str, int]) -> NDArray[np.int64]:
    unknown = [key for key in product_ids if key not in column]
    if unknown:
        raise ValueError(
            f"nothing ranks product {unknown[0]!r}; were the vectors made from another dataset?"
        )
    return np.array([column[key] for key in product_ids], np.int64)
