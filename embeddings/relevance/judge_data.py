"""Human labels as the arrays that a judge learns from.

Shape letters: N pairs, B some of them, C dense columns, K = 3 classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from embeddings.relevance.judge_network import CLASSES, PairTokens
from embeddings.relevance.pair_texts import PairTexts

CALIBRATION_TENTH = 2
"""Queries whose MD5 is this, mod 10, calibrate the judge; the test queries are those of 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """What the judge learns from."""

    tokens: PairTokens
    dense_NC: Tensor
    """From ``lexical``."""
    target_NK: Tensor
    """Chances of the classes; one is 1 where one person labelled."""
    rating_N: Tensor
    """Mean rating, scaled to 0 to 1; NaN where there is none."""

    def take(self, row_B: Tensor) -> LabelledPairs:
        """Some of the pairs, in that order."""
        return LabelledPairs(
            tokens=self.tokens.take(row_B),
            dense_NC=self.dense_NC[row_B],
            target_NK=self.target_NK[row_B],
            rating_N=self.rating_N[row_B],
        )


def human_pairs(relevance: pl.DataFrame) -> pl.DataFrame:
    """One row a pair that people labelled.

    Args:
        relevance: query_id, product_id, label, [source], [rating].

    Returns:
        query_id, product_id, target (list of the shares of labels 0, 1, 2), rating (the mean,
        null where there is none).

    Raises:
        ValueError: If nobody labelled a pair, a label is not 0, 1, 2, or all are of one class.
    """
    human = relevance
    if "source" in relevance.columns:
        human = relevance.filter(pl.col("source") == "human")
    if not len(human):
        raise ValueError(
            f"the relevance table has {len(relevance)} rows and none of source 'human'; a judge "
            "learns from human labels, what machines labelled would only teach it their mistakes"
        )
    wrong = human.filter(~pl.col("label").is_in(range(CLASSES)))
    if len(wrong):
        raise ValueError(
            f"query {wrong['query_id'][0]!r} and product {wrong['product_id'][0]!r} have label "
            f"{wrong['label'][0]}; allowed are 0, 1, 2"
        )
    classes = human["label"].unique().to_list()
    if len(classes) < 2:
        raise ValueError(
            f"all {len(human)} human labels are {classes[0]}; a judge needs pairs of two classes "
            "at least to tell them apart"
        )
    shares = [(pl.col("label") == k).mean().alias(f"share_{k}") for k in range(CLASSES)]
    rated = "rating" in human.columns
    rating = pl.col("rating").cast(pl.Float64).mean() if rated else pl.lit(None, pl.Float64)
    grouped = human.group_by("query_id", "product_id", maintain_order=True)
    return grouped.agg(*shares, rating.alias("rating")).select(
        "query_id",
        "product_id",
        pl.concat_list(f"share_{k}" for k in range(CLASSES)).alias("target"),
        "rating",
    )


def rating_range(human: pl.DataFrame) -> tuple[float, float] | None:
    """Lowest and highest rating; None where nobody rated, or all alike.

    Args:
        human: From ``human_pairs``.
    """
    low, high = human["rating"].min(), human["rating"].max()
    if not isinstance(low, float) or not isinstance(high, float) or low == high:
        return None
    return low, high


def labelled_pairs(human: pl.DataFrame, tokens: PairTokens, dense_NC: Tensor) -> LabelledPairs:
    """Put labels beside tokens and dense columns.

    Args:
        human: From ``human_pairs``.
        tokens: Of the same pairs.
        dense_NC: Of the same pairs.
    """
    span = rating_range(human)
    rating_N = np.full(len(human), np.nan, np.float32)
    if span is not None:
        low, high = span
        rating_N = ((human["rating"] - low) / (high - low)).to_numpy().astype(np.float32)
    return LabelledPairs(
        tokens=tokens,
        dense_NC=dense_NC,
        target_NK=torch.tensor(human["target"].to_list(), dtype=torch.float32),
        rating_N=torch.from_numpy(rating_N),
    )


def for_calibration(texts: PairTexts) -> Tensor:
    """Which pairs have a query that calibrates, by its text, (N,)."""
    held = [
        int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 10
        == CALIBRATION_TENTH
        for text in texts.queries
    ]
    return torch.tensor(held, dtype=torch.bool)[torch.from_numpy(texts.query_N)]
