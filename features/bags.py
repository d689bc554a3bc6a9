"""List-valued categorical features: the tags of a product, the words of a query.

A bag becomes a fixed number of sparse columns, which every model reads like any other: the
members' rows in one vocabulary, the most frequent first, and zeros behind them. Members that
training did not know say nothing and are left out, and so are repeats.

Shape letters: N rows, M members of all bags, S slots.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.sparse import Vocabulary, value_counts


class Bag:
    """One list-valued feature.

    Args:
        name: Of the column, for messages and ``output_names``.
        slots: The longest list allowed.
        min_count: See ``Vocabulary``; counted over members.
    """

    def __init__(self, name: str, *, slots: int, min_count: int = 2) -> None:
        if slots < 1:
            raise ValueError(f"slots of bag {name!r} is {slots}; there must be 1 or more")
        self.name = name
        self.slots = slots
        self.vocabulary_ = Vocabulary(min_count=min_count)

    def fit_counts(self, counts: pl.DataFrame) -> Self:
        """Learn the vocabulary from ``member_counts`` of the training rows."""
        self.vocabulary_.fit_counts(counts)
        return self

    def member_counts(self, values: pl.Series) -> pl.DataFrame:
        """Count the members of bags, as ``value_counts`` counts values.

        Raises:
            ValueError: If the type is not a list, or a list is longer than the slots.
        """
        return value_counts(self._members(values)[1])

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the columns that ``transform`` returns."""
        return tuple(f"{self.name}.{slot + 1}" for slot in range(self.slots))

    def transform(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the rows of each bag's members, ascending, then zeros, shape (N, S).

        Raises:
            ValueError: If the type is not a list, or a list is longer than the slots.
        """
        bag_M, members = self._members(values)
        row_M = self.vocabulary_.transform(members).astype(np.int64)
        # One number a (bag, row): in ascending order repeats follow each other.
        place_M = np.sort((bag_M * self.vocabulary_.size + row_M)[row_M > 0])
        place_M = place_M[np.diff(place_M, prepend=-1) > 0]
        bag_M, row_M = np.divmod(place_M, self.vocabulary_.size)
        slot_M = np.arange(len(bag_M)) - np.searchsorted(bag_M, bag_M)
        out_NS = np.zeros((len(values), self.slots), np.int32)
        out_NS[bag_M, slot_M] = row_M
        return out_NS

    def _members(self, values: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
        """The row of each member, and the members."""
        if values.dtype == pl.Null:
            return np.zeros(0, np.int64), pl.Series([], dtype=pl.String)
        if not isinstance(values.dtype, pl.List):
            raise ValueError(
                f"bag {self.name!r} has type {values.dtype}; it must be a list of texts or of "
                "whole numbers (list it under sparse if it is a single value)"
            )
        length_N = values.list.len().fill_null(0).to_numpy().astype(np.int64)
        if (length_N > self.slots).any():
            row = int(np.argmax(length_N > self.slots))
            raise ValueError(
                f"bag {self.name!r} has {length_N[row]} members in row {row}, and its cap is "
                f"{self.slots}; raise it under bags in [features], or shorten the list"
            )
        some = values.filter(pl.Series(length_N > 0))
        return np.repeat(np.arange(len(values)), length_N), some.explode().alias(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted bag as JSON-ready data."""
        return {"name": self.name, "slots": self.slots, **self.vocabulary_.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the bag that ``to_dict`` described."""
        bag = cls(data["name"], slots=data["slots"], min_count=data["min_count"])
        bag.vocabulary_ = Vocabulary.from_dict(data)
        return bag
