"""Categorical features without a vocabulary: values share a fixed number of rows by their hash.

Shape letters: N rows, V distinct values.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.stable_hash import NULL_HASH, hash_values


class HashedValues:
    """Values that share a fixed number of rows by their hash: no vocabulary, and collisions.

    For ids without end, whose table must not grow. Null is row 0.

    Args:
        buckets: Rows for values.
    """

    def __init__(self, *, buckets: int) -> None:
        if buckets < 1:
            raise ValueError(f"buckets is {buckets}; there must be 1 or more")
        self.buckets = buckets
        self.distinct_ = 0
        """Values that training showed."""
        self.collision_share_ = 0.0
        """Of these values, how many share their row with another one."""

    def fit_counts(self, counts: pl.DataFrame) -> Self:
        """Measure the collisions among the values of the training rows."""
        row_V = self.transform(counts["value"].unique())
        self.distinct_ = len(row_V)
        if len(row_V):
            alone = int((np.bincount(row_V, minlength=self.size) == 1).sum())
            self.collision_share_ = 1 - alone / len(row_V)
        return self

    @property
    def size(self) -> int:
        """Rows of the table, that of null included."""
        return self.buckets + 1

    def transform(self, values: pl.Series) -> NDArray[np.int32]:
        """Return each value's row, 0 where it is null, shape (N,).

        Raises:
            ValueError: If the type is not text, a whole number or a boolean.
        """
        hash_N = hash_values(values)
        row_N = (hash_N % np.uint64(self.buckets)).astype(np.int32) + np.int32(1)
        return np.where(hash_N == NULL_HASH, np.int32(0), row_N)

    def to_dict(self) -> dict[str, Any]:
        """Return what was set and measured as JSON-ready data."""
        return {
            "buckets": self.buckets,
            "distinct": self.distinct_,
            "collision_share": self.collision_share_,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return what ``to_dict`` described."""
        hashed = cls(buckets=data["buckets"])
        hashed.distinct_ = int(data["distinct"])
        hashed.collision_share_ = float(data["collision_share"])
        return hashed
