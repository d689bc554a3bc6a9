"""Which pairs are worth a label: those that retrievers rank differently.

A pair that all retrievers put first is likely relevant, one that none finds likely not; a label
says most where they differ. Pairs are taken from the top of each retriever, scored by how far their
ranks lie apart, and spread over queries and over head, torso and tail under a budget.

Shape letters: Q queries, P products, R retrievers, M candidates of a query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.evaluate import Scores

QUERY_BLOCK = 64
BANDS = ("head", "torso", "tail")
Band = Literal["head", "torso", "tail"]


def mine_pairs(
    queries: pl.DataFrame,
    retrievers: Mapping[str, Scores],
    *,
    budget: int,
    top: int = 20,
    labelled: pl.DataFrame | None = None,
    traffic: pl.DataFrame | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Choose pairs to label.

    Args:
        queries: query_id; those to choose pairs for.
        retrievers: By name, scores over one and the same catalogue.
        budget: Pairs at most.
        top: Products of each retriever and query that are candidates.
        labelled: query_id, product_id of pairs that need no label.
        traffic: query_id, count: how often each query is asked; a third of the budget then goes to
            the queries of each third of the traffic, and what one third cannot use to the others.
            Without it all queries are one band, "tail".
        seed: Decides which queries come first where the budget does not reach all.

    Returns:
        At most ``budget`` rows, best first within a query: query_id, product_id, disagreement
        (difference of the outermost ranks, in octaves: 1.0 is a rank and its double), band, and
        ``rank_NAME`` for each retriever, null below ``top``.

    Raises:
        ValueError: If the budget is below 1, there are fewer than two retrievers, their catalogues
            differ, or no candidate is left to label.
    """
    if budget < 1:
        raise ValueError(f"budget={budget} must be at least 1, the number of pairs to label")
    if len(retrievers) < 2:
        raise ValueError(
            f"{len(retrievers)} retrievers given ({', '.join(retrievers)}); disagreement needs two "
            "or more"
        )
    catalogues = [tuple(scores.product_ids) for scores in retrievers.values()]
    if len(set(catalogues)) > 1:
        raise ValueError("the retrievers rank different catalogues; make all of one dataset")
    if top < 1:
        raise ValueError(f"top={top} must be at least 1, products of each retriever and query")
    candidates = _candidates(queries["query_id"].to_list(), retrievers, top)
    if labelled is not None:
        candidates = candidates.join(
            labelled.select("query_id", "product_id"), on=["query_id", "product_id"], how="anti"
        )
    if not len(candidates):
        raise ValueError(
            f"every pair that a retriever puts among its first {top} is labelled already; raise top"
        )
    banded = candidates.join(query_bands(queries, traffic), on="query_id", how="left")
    return _under_budget(banded, budget, seed)


def rank_disagreement(rank_MR: NDArray[np.floating], top: int) -> NDArray[np.float64]:
    """How far the outermost ranks of each candidate lie apart, in octaves, (M,).

    Ranks 1 and 2 differ as much as 10 and 20: what a retriever shows first matters most. A rank
    below ``top`` counts as ``top + 1``, so equal tops give 0 wherever they end.

    Args:
        rank_MR: Rank from 1 under each retriever.
        top: Ranks beyond it are all alike.
    """
    octave_MR = np.log2(np.minimum(rank_MR, top + 1))
    return octave_MR.max(axis=1) - octave_MR.min(axis=1)


def query_bands(queries: pl.DataFrame, traffic: pl.DataFrame | None) -> pl.DataFrame:
    """Head, torso or tail: which third of the traffic a query belongs to, busiest first.

    Args:
        queries: query_id.
        traffic: query_id, count; a query that is not in it was never asked.

    Returns:
        query_id, band; all "tail" without traffic.
    """
    ids = queries.select("query_id").unique(maintain_order=True)
    if traffic is None or not traffic["count"].sum():
        return ids.with_columns(band=pl.lit("tail"))
    counted = ids.join(traffic.select("query_id", "count"), on="query_id", how="left")
    counted = counted.with_columns(pl.col("count").fill_null(0))
    counted = counted.sort("count", "query_id", descending=[True, False])
    # By the traffic above a query: the busiest is head however much it has alone.
    above = (pl.col("count").cum_sum() - pl.col("count")) / pl.col("count").sum()
    return counted.select(
        "query_id",
        pl.when(pl.col("count") == 0)
        .then(pl.lit("tail"))
        .when(above < 1 / 3)
        .then(pl.lit("head"))
        .when(above < 2 / 3)
        .then(pl.lit("torso"))
        .otherwise(pl.lit("tail"))
        .alias("band"),
    )


def _candidates(query_ids: list[str], retrievers: Mapping[str, Scores], top: int) -> pl.DataFrame:
    """The union of the retrievers' tops, with ranks and disagreement."""
    product_ids = np.array(next(iter(retrievers.values())).product_ids, dtype=object)
    top = min(top, len(product_ids))
    parts: list[pl.DataFrame] = []
    for start in range(0, len(query_ids), QUERY_BLOCK):
        block = query_ids[start : start + QUERY_BLOCK]
        tops = [_tops(scores.catalogue(block), top) for scores in retrievers.values()]
        for row, query_id in enumerate(block):
            product_M = np.unique(np.concatenate([found[row] for found in tops]))
            rank_MR = np.full((len(product_M), len(tops)), top + 1.0)
            for r, found in enumerate(tops):
                rank_MR[np.searchsorted(product_M, found[row]), r] = 1 + np.arange(len(found[row]))
            shown_MR = np.where(rank_MR <= top, rank_MR, np.nan)
            ranks = {
                f"rank_{name}": pl.Series(shown_MR[:, r]).fill_nan(None).cast(pl.Int64)
                for r, name in enumerate(retrievers)
            }
            parts.append(
                pl.DataFrame(
                    {
                        "query_id": [query_id] * len(product_M),
                        "product_id": product_ids[product_M].tolist(),
                        "disagreement": rank_disagreement(rank_MR, top),
                        **ranks,
                    }
                )
            )
    return pl.concat(parts) if parts else pl.DataFrame()


def _tops(score_QP: NDArray[np.floating], top: int) -> list[NDArray[np.int64]]:
    """Products of the highest scores of each query, best first; of equal ones the earlier row.

    A product that scores as low as the lowest was not found: word matching gives most of them 0.
    """
    tops: list[NDArray[np.int64]] = []
    for score_P in score_QP:
        threshold = np.partition(score_P, len(score_P) - top)[len(score_P) - top]
        above, level = np.flatnonzero(score_P > threshold), np.flatnonzero(score_P == threshold)
        row_K = np.concatenate([above, level])[:top]
        row_K = row_K[score_P[row_K] > score_P.min()]
        tops.append(row_K[np.argsort(-score_P[row_K], kind="stable")])
    return tops


def _under_budget(banded: pl.DataFrame, budget: int, seed: int) -> pl.DataFrame:
    """Each query's best pair, then each one's second, and so on, within the share of its band."""
    ids = banded["query_id"].unique(maintain_order=True)
    shuffled = np.random.default_rng(seed).permutation(len(ids))
    places = pl.DataFrame({"query_id": ids, "_place": shuffled})
    order = (
        banded.join(places, on="query_id", how="left")
        .sort("disagreement", "product_id", descending=[True, False])
        .with_columns(pl.int_range(pl.len()).over("query_id").alias("_turn"))
        .sort("_turn", "_place")
    )
    held = {band: int((order["band"] == band).sum()) for band in BANDS}
    share = _shares(held, budget)
    taken = order.with_columns(pl.int_range(pl.len()).over("band").alias("_nth")).filter(
        pl.col("_nth") < pl.col("band").replace_strict(share, return_dtype=pl.Int64)
    )
    ranks = [name for name in banded.columns if name.startswith("rank_")]
    return taken.sort("_place", "_turn").select(
        "query_id", "product_id", "disagreement", "band", *ranks
    )


def _shares(held: dict[str, int], budget: int) -> dict[str, int]:
    """Divide a budget evenly; what one cannot use goes to the others, the fullest first."""
    share = dict.fromkeys(held, 0)
    left = min(budget, sum(held.values()))
    while left:
        open_bands = [band for band in held if share[band] < held[band]]
        each = max(1, left // len(open_bands))
        for band in open_bands:
            given = min(each, held[band] - share[band], left)
            share[band] += given
            left -= given
    return share
