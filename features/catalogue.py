"""The products and queries that impressions name, and what their tables say of them.

Shape letters: N impressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import DAY_US, HOUR_US, SIDE_TABLE_KEYS, FeatureNames
from features.sparse import ValueIndex
from features.stable_hash import hash_values

if TYPE_CHECKING:
    # Only fitting reads a dataset, with pydantic and storage libraries; scoring does without.
    from features.dataset import Dataset

FILES = tuple(f"{table}.parquet" for table in SIDE_TABLE_KEYS)


class Catalogue:
    """Which product or query is which row, and the feature columns of their tables.

    Args:
        tables: By name (``products``, ``queries``), the id and the columns that are features.
    """

    def __init__(self, tables: Mapping[str, pl.DataFrame]) -> None:
        self._tables = dict(tables)
        self.index = {
            table: ValueIndex(self._tables[table][key].to_list())
            for table, key in SIDE_TABLE_KEYS.items()
        }
        """The row of each id, by table."""
        self._hashes: dict[str, NDArray[np.uint64]] = {}

    @classmethod
    def of(cls, dataset: Dataset, features: FeatureNames, train: pl.DataFrame) -> Self:
        """Return the catalogue of a dataset: its side tables, else the ids of training rows.

        Raises:
            ValueError: If a feature's table or column is missing.
        """
        return cls(
            {
                table: _side_table(dataset, table, features.of_table(table), train.select(key))
                for table, key in SIDE_TABLE_KEYS.items()
            }
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return what ``save_`` wrote."""
        return cls(
            {table: pl.read_parquet(folder / f"{table}.parquet") for table in SIDE_TABLE_KEYS}
        )

    def save_(self, folder: Path) -> None:
        """Write one parquet file a table."""
        for table, file in zip(SIDE_TABLE_KEYS, FILES, strict=True):
            self._tables[table].write_parquet(folder / file)

    def rows_of(self, frame: pl.DataFrame) -> dict[str, NDArray[np.int32]]:
        """Return the rows of each impression's product and query, -1 where unknown, by table."""
        return {
            table: self.index[table].rows_of(frame[key]) for table, key in SIDE_TABLE_KEYS.items()
        }

    def values(self, name: str) -> pl.Series:
        """Return the raw values of a side table's feature, and null for what is unknown behind."""
        table, _, column = name.partition(".")
        return self._tables[table][column].extend_constant(None, 1).alias(name)

    def column(
        self, name: str, frame: pl.DataFrame, rows: Mapping[str, NDArray[np.int32]]
    ) -> pl.Series:
        """Return the raw values of any feature, shape (N,); null where its table lacks the id.

        Args:
            name: ``COLUMN``, ``TABLE.COLUMN``, ``time.hour`` or ``time.weekday``.
            frame: Impressions in the contract's types.
            rows: What ``rows_of`` returned for them.
        """
        table, dot, column = name.partition(".")
        if not dot:
            return frame[name]
        if table == "time":
            time_us_N = frame["time"].cast(pl.Int64).to_numpy()
            return pl.Series(name, _hour(time_us_N) if column == "hour" else _weekday(time_us_N))
        values, row_N = self.values(name), rows[table]
        return values.gather(np.where(row_N < 0, len(values) - 1, row_N))

    def hashes(
        self, name: str, frame: pl.DataFrame, rows: Mapping[str, NDArray[np.int32]]
    ) -> NDArray[np.uint64]:
        """Return the hashes of a feature's raw values, shape (N,)."""
        table, dot, _ = name.partition(".")
        if not dot or table == "time":
            return hash_values(self.column(name, frame, rows))
        if name not in self._hashes:
            self._hashes[name] = hash_values(self.values(name))
        return self._hashes[name][rows[table]]


def _hour(time_us_N: NDArray[np.int64]) -> NDArray[np.int8]:
    """Hour of the day in UTC, 0 to 23."""
    return (time_us_N // HOUR_US % 24).astype(np.int8)


def _weekday(time_us_N: NDArray[np.int64]) -> NDArray[np.int8]:
    """Day of the week in UTC, 1 for Monday to 7; the time 0 was a Thursday."""
    return ((time_us_N // DAY_US + 3) % 7 + 1).astype(np.int8)


def _side_table(
    dataset: Dataset, table: str, columns: tuple[str, ...], shown: pl.DataFrame
) -> pl.DataFrame:
    """The id and feature columns of a side table; the ids shown where the dataset lacks it."""
    key = SIDE_TABLE_KEYS[table]
    if not dataset.has(table):
        if columns:
            dataset.require(table, needed_for=f"feature {table}.{columns[0]}")
        return shown.drop_nulls().unique().sort(key)
    frame = dataset.table(table)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"feature {table}.{missing[0]}: table {table} has no column {missing[0]!r}; it has "
            f"{', '.join(frame.columns)}"
        )
    return frame.select(list(dict.fromkeys((key, *columns))))
