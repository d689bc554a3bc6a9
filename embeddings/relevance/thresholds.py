"""The annotator that costs nothing: a score, such as an off-the-shelf cosine, cut in three."""

from __future__ import annotations

import numpy as np
import polars as pl

from embeddings.evaluate import Scores
from embeddings.relevance.judge_calibration import best_cuts

SAMPLE = 4000
"""Labelled pairs that the cuts are chosen on."""


def threshold_labels(
    scores: Scores, labelled: pl.DataFrame, pairs: pl.DataFrame, *, seed: int = 0
) -> pl.DataFrame:
    """Label pairs by two cuts of a score, chosen where they agree best with people.

    Args:
        scores: Of the pairs of both tables.
        labelled: query_id, product_id, label of training queries; the cuts have the highest
            quadratic weighted kappa on these, or on a sample of them.
        pairs: query_id, product_id.
        seed: Draws the sample.

    Returns:
        query_id, product_id, label, source ("rule"), one row a pair.

    Raises:
        ValueError: If there is no labelled pair.
    """
    if not len(labelled):
        raise ValueError("there is no labelled pair to choose thresholds by")
    sample = sample_pairs(labelled, seed)
    score_N = scores.pairs(sample["query_id"].to_list(), sample["product_id"].to_list())
    cuts = best_cuts(score_N, sample["label"].to_numpy().astype(np.int64))
    given_N = scores.pairs(pairs["query_id"].to_list(), pairs["product_id"].to_list())
    return pairs.select("query_id", "product_id").with_columns(
        label=pl.Series(np.digitize(given_N, cuts).astype(np.int8)), source=pl.lit("rule")
    )


def sample_pairs(labelled: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The pairs that ``threshold_labels`` chooses its cuts on: only these need a score."""
    if len(labelled) <= SAMPLE:
        return labelled
    return labelled.sample(SAMPLE, seed=seed)
