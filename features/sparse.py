"""Categorical features: values to rows of an embedding table.

Row 0 is out-of-vocabulary: values unseen or rare in training, and null. Frequent values follow,
the most frequent first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

FEW = 2_000
"""Below this many values a dictionary answers sooner than a join does."""


class ValueIndex:
    """The place of each of a list of distinct texts.

    Raises:
        ValueError: If a text is in the list twice.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self.values = list(values)
        if len(self._place) != len(self.values):
            raise ValueError(f"{len(self.values) - len(self._place)} of the values are repeated")

    def __len__(self) -> int:
        return len(self.values)

    def rows_of(self, values: pl.Series) -> NDArray[np.int32]:
        """Return each text's place, -1 where it is unknown or null, shape (N,)."""
        if len(values) < FEW:
            return np.array([self._place.get(value, -1) for value in values.to_list()], np.int32)
        rows = (
            pl.DataFrame({"value": values.alias("value")})
            .join(self._table, on="value", how="left", maintain_order="left")
            .get_column("row")
        )
        return rows.fill_null(-1).to_numpy()

    @cached_property
    def _place(self) -> dict[str | None, int]:
        return {value: row for row, value in enumerate(self.values)}

    @cached_property
    def _table(self) -> pl.DataFrame:
        value = pl.Series(self.values, dtype=pl.String)
        return pl.DataFrame({"value": value, "row": np.arange(len(self), dtype=np.int32)})


class Vocabulary:
    """The values of one categorical feature that training showed often enough.

    Args:
        min_count: Training rows in which a value must appear to get a row of its own; rarer
            values share row 0, which so learns what a stranger is worth.
    """

    def __init__(self, *, min_count: int = 2) -> None:
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}; it must be 1 (keep all) or more")
        self.min_count = min_count
        self.values_: list[str] = []
        self._index = ValueIndex(())

    def fit(self, values: pl.Series) -> Self:
        """Count the values of the training rows, shape (N,).

        Raises:
            ValueError: If the type is not text, a whole number or a boolean.
        """
        return self.fit_counts(value_counts(values))

    def fit_counts(self, counts: pl.DataFrame) -> Self:
        """Learn from counts of the training rows, as ``value_counts`` makes them.

        Counts of parts of the rows may be put below each other: they are added up.
        """
        counts = counts.group_by("value").agg(pl.col("count").sum())
        kept = counts.filter(pl.col("count") >= self.min_count)
        # Ties are broken by value, so that the same rows give the same table in any order.
        self.values_ = kept.sort(["count", "value"], descending=[True, False])["value"].to_list()
        self._index = ValueIndex(self.values_)
        return self

    def continue_from(self, earlier: Vocabulary) -> None:
        """Keep the rows of what an earlier vocabulary knew; new values come after them."""
        known = set(earlier.values_)
        self.values_ = [*earlier.values_, *(v for v in self.values_ if v not in known)]
        self._index = ValueIndex(self.values_)

    @property
    def size(self) -> int:
        """Rows of the table, out-of-vocabulary included."""
        return len(self.values_) + 1

    def transform(self, values: pl.Series) -> NDArray[np.int32]:
        """Return each value's row, 0 where it is unknown, rare or null, shape (N,).

        Raises:
            ValueError: If the type is not text, a whole number or a boolean.
        """
        return self._index.rows_of(as_text(values)) + np.int32(1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted vocabulary as JSON-ready data."""
        return {"min_count": self.min_count, "values": self.values_}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the vocabulary that ``to_dict`` described."""
        vocabulary = cls(min_count=data["min_count"])
        vocabulary.values_ = list(data["values"])
        vocabulary._index = ValueIndex(vocabulary.values_)
        return vocabulary


def value_counts(values: pl.Series) -> pl.DataFrame:
    """Count each value of a categorical feature: columns value (text) and count, null left out.

    Raises:
        ValueError: If the type is not text, a whole number or a boolean.
    """
    text = as_text(values).cast(pl.String).drop_nulls().alias("value")
    return text.value_counts(name="count").cast({"count": pl.Int64})


def as_text(values: pl.Series) -> pl.Series:
    """Return categorical values as text: ``3`` becomes "3" and ``True`` becomes "true".

    Raises:
        ValueError: If the type is not text, a whole number or a boolean.
    """
    dtype = values.dtype
    if dtype == pl.String:
        return values
    if dtype in (pl.Categorical, pl.Enum, pl.Boolean, pl.Null) or dtype.is_integer():
        return values.cast(pl.String)
    raise ValueError(
        f"sparse feature {values.name!r} has type {dtype}; it must be text, a whole number or a "
        "boolean (a whole number with gaps becomes a decimal in pandas: cast it to Int64)"
    )
