"""Retrieval of judged vectors for held-out queries, and apart for what training saw and did not.

Shape letters: N judged pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.four_way_split import CELLS, MIN_QUERIES, FourWaySplit
from embeddings.query_bootstrap import Estimate, QueryDraws
from embeddings.query_rankings import RELEVANT, judge_rankings
from embeddings.scores import Scores
from experiments.judged_vectors import JudgedSet
from experiments.progress import Report

KEPT = ("recall", "ndcg", "map", "mrr")
"""Of the measures of ``judge_rankings``, whatever the cutoff."""
UNSEEN = "unseen_queries"
"""All held-out queries with all products; its figures have no prefix."""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """What was found, in words where it is too little."""

    estimates: dict[str, dict[str, Estimate]]
    """By name of the vectors; ``recall@10`` of all held-out queries, ``CELL.recall@10`` of one."""
    counts: dict[str, int] = field(default_factory=dict)
    """``CELL.queries`` and ``CELL.relevant_pairs``."""
    notes: list[str] = field(default_factory=list)


def judge_retrieval(
    judged: JudgedSet,
    pairs: pl.DataFrame,
    split: FourWaySplit,
    *,
    cutoffs: Sequence[int],
    max_queries: int,
    draws: int,
    seed: int,
    report: Report,
) -> Retrieved:
    """Judge how well each kind of vectors retrieves, for held-out queries and in the four cells.

    Args:
        judged: What is judged.
        pairs: query_id, product_id, label.
        split: Of these pairs.
        cutoffs: Ranks at which recall and nDCG are taken.
        max_queries: Queries at most in each cell, a sample that is the same for all.
        draws: Of the queries, for intervals.
        seed: Of sample and draws.
        report: Told of each cell.

    Returns:
        The means over queries with their draws. A cell of fewer than ``MIN_QUERIES`` queries with
        a positive has a note in place of figures.
    """
    found = Retrieved(estimates={name: {} for name in judged.by_name})
    wanted = {UNSEEN: (~split.seen_query_N, np.ones(len(pairs), bool))}
    for name, seen_query, seen_product in CELLS:
        asked_N = split.seen_query_N == seen_query
        wanted[name] = (asked_N, split.seen_product_N == seen_product)
    known: dict[bytes, str] = {}
    for place, (cell, (asked_N, target_N)) in enumerate(wanted.items(), 1):
        report(place, len(wanted), cell)
        prefix = "" if cell == UNSEEN else f"{cell}."
        query_ids = _queries(cell, pairs, asked_N & target_N, max_queries, seed, found)
        if not query_ids:
            continue
        used_N = pairs["query_id"].is_in(query_ids).to_numpy()
        same = used_N.tobytes() + target_N[used_N].tobytes()
        for name, one in judged.by_name.items():
            if same in known:
                # Where all targets of the held-out queries are of one cell, it is the whole.
                values = _with_prefix(found.estimates[name], known[same])
            else:
                values = _means(
                    one.scores,
                    pairs.filter(pl.Series(used_N)),
                    target_N[used_N],
                    cutoffs=cutoffs,
                    draws=draws,
                    seed=seed,
                )
            found.estimates[name] |= {prefix + key: value for key, value in values.items()}
        known.setdefault(same, prefix)
    return found


def _queries(
    cell: str,
    pairs: pl.DataFrame,
    in_cell_N: NDArray[np.bool_],
    max_queries: int,
    seed: int,
    found: Retrieved,
) -> list[str]:
    """The queries that judge a cell, sampled; none where there are too few."""
    label_N = pairs["label"].to_numpy()
    positive_N = in_cell_N & (label_N > 0)
    query_ids = pairs.filter(pl.Series(positive_N))["query_id"].unique().sort().to_list()
    found.counts[f"{cell}.queries"] = len(query_ids)
    found.counts[f"{cell}.relevant_pairs"] = int((positive_N & (label_N == RELEVANT)).sum())
    words = f"retrieval of {cell.replace('.', ' and ').replace('_', ' ')}"
    if len(query_ids) < MIN_QUERIES:
        found.notes.append(
            f"{words}: {len(query_ids)} queries have a positive there, too few to say anything "
            f"(at least {MIN_QUERIES})"
        )
        return []
    if len(query_ids) > max_queries:
        found.notes.append(f"{words}: a sample of {max_queries:,} of {len(query_ids):,} queries")
        chosen = np.random.default_rng(seed).choice(query_ids, max_queries, replace=False)
        return sorted(chosen.tolist())
    return query_ids


def _means(
    scores: Scores,
    pairs: pl.DataFrame,
    target_N: NDArray[np.bool_],
    *,
    cutoffs: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    ranked = judge_rankings(scores, pairs, cutoffs=cutoffs, target_N=target_N)
    drawn = QueryDraws(ranked["query_id"].to_list(), draws=draws, seed=seed)
    kept = [name for name in ranked.columns if name.partition("@")[0] in KEPT]
    return {name: drawn.mean(ranked[name].to_numpy()) for name in kept}


def _with_prefix(values: dict[str, Estimate], prefix: str) -> dict[str, Estimate]:
    """The figures of the cell of a prefix, without it."""
    return {
        key.removeprefix(prefix): value
        for key, value in values.items()
        if key.startswith(prefix) and key.removeprefix(prefix).partition("@")[0] in KEPT
    }
