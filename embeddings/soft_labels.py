"""Relevance labels as chances of the classes 0, 1 and 2, however sure their annotator was.

Shape letters: N rows of a relevance table.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from embeddings.pqc import CLASSES

CHANCE_COLUMNS = ("p0", "p1", "p2")
SUM_TOLERANCE = 0.01
"""Chances may miss a sum of one by this much, for they were rounded somewhere."""


def class_chances(relevance: pl.DataFrame) -> NDArray[np.float64]:
    """Chances of the classes for each row: p0, p1, p2 where the table gives them, else the label.

    Args:
        relevance: label, [p0, p1, p2]. A row whose three chances are null goes by its label.

    Returns:
        Shape (N, 3); each row sums to one.

    Raises:
        ValueError: If a label is outside 0, 1, 2, only some of the three columns are there or
            filled, or chances are negative or do not sum to one.
    """
    label_N = relevance["label"].to_numpy().astype(np.int64)
    wrong_N = (label_N < 0) | (label_N >= CLASSES)
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        raise ValueError(f"relevance row {row} has label {label_N[row]}; allowed are 0, 1, 2")
    chance_N3 = np.eye(CLASSES)[label_N]
    present = [name for name in CHANCE_COLUMNS if name in relevance.columns]
    if not present:
        return chance_N3
    if len(present) < CLASSES:
        raise ValueError(
            f"the relevance table has {', '.join(present)} but not all of "
            f"{', '.join(CHANCE_COLUMNS)}; chances come for all three classes"
        )
    columns = relevance.select(pl.col(CHANCE_COLUMNS).cast(pl.Float64))
    given_N3 = np.stack([columns[name].to_numpy() for name in CHANCE_COLUMNS], axis=1)
    missing_N3 = np.isnan(given_N3)
    soft_N = ~missing_N3.all(axis=1)
    total_N = given_N3.sum(axis=1)
    bad_N = soft_N & ~(np.abs(total_N - 1) <= SUM_TOLERANCE)
    bad_N |= (given_N3 < 0).any(axis=1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"relevance row {row} has chances p0, p1, p2 of {given_N3[row].tolist()}; they must "
            "not be negative and must sum to 1, or all be null where only the label is known"
        )
    chance_N3[soft_N] = given_N3[soft_N] / total_N[soft_N, None]
    return chance_N3


def source_weights(relevance: pl.DataFrame, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """How much each row counts, by who judged it, (N,); one where the source has no weight."""
    if "source" not in relevance.columns:
        return np.ones(len(relevance))
    return np.array([weights.get(source, 1.0) for source in relevance["source"].to_list()])


def rating_chances(
    rating_N: ArrayLike, bounds: tuple[float, float], deviation: float
) -> NDArray[np.float64]:
    """Chances of the classes when what is known is the mean rating of a few people.

    The mean of few ratings misses that of many; the chance of a class is that of the true mean
    lying between its bounds, the error being normal.

    Args:
        rating_N: Mean ratings.
        bounds: Where class 1 begins and where class 2 begins, on the scale of the ratings.
        deviation: Standard error of a mean rating; the larger, the softer.

    Returns:
        Shape (N, 3); each row sums to one.

    Raises:
        ValueError: If the bounds do not rise or the deviation is not positive.
    """
    if not bounds[0] < bounds[1] or deviation <= 0:
        raise ValueError(f"bounds={bounds} must rise and deviation={deviation} must be positive")
    rating_N = np.asarray(rating_N, np.float64)
    below_1_N, below_2_N = (norm.cdf((bound - rating_N) / deviation) for bound in bounds)
    return np.stack([below_1_N, below_2_N - below_1_N, 1 - below_2_N], axis=1)
